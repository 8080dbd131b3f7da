"""Names of the codecs of arrays that others wrote, as `Compressor` knows them."""

from __future__ import annotations

from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.export.zarr.compressors import CODECS

__all__ = ["codec_of"]

# Of numcodecs: how bytes are shuffled.
SHUFFLES = {0: "noshuffle", 1: "shuffle", 2: "bitshuffle", -1: "shuffle"}


def codec_of(array: JsonObject) -> str | None:
    """Return the compression of an array, with its level, as the option ``codec`` names it.

    Parameters
    ----------
    array : dict
        Content of ``.zarray``, or of the ``zarr.json`` of an array.

    Returns
    -------
    str or None
        None for a codec that exports do not write.

    Examples
    --------
    >>> codec_of({"zarr_format": 2, "compressor": {"id": "zstd", "level": 3}})
    'zstd:3'
    """
    if array.get("zarr_format") == 2:
        compressor = array.get("compressor")
        if compressor is None:
            return "none"
        shuffle = SHUFFLES.get(compressor.get("shuffle", 1), "")
        return _named(str(compressor.get("id")), compressor | {"shuffle": shuffle}, compressor.get("level"))
    codecs = array.get("codecs") or []
    if len(codecs) == 1 and codecs[0].get("name") == "sharding_indexed":
        codecs = codecs[0]["configuration"]["codecs"]
    names = [str(codec.get("name")) for codec in codecs]
    compressors = [codec for codec in codecs if codec.get("name") in ("blosc", "zstd", "gzip")]
    if set(names) <= {"bytes", "transpose"}:
        return "none"
    if len(compressors) != 1 or len(names) > len({"bytes", "transpose"} & set(names)) + 1:
        return None
    configuration: JsonObject = compressors[0].get("configuration") or {}
    return _named(str(compressors[0]["name"]), configuration, configuration.get("level"))


def _named(name: str, configuration: JsonObject, level: Any) -> str | None:
    if name == "blosc":
        words = ("blosc", configuration.get("cname"), configuration.get("shuffle"))
        name, level = "-".join(str(word) for word in words if word != "shuffle"), configuration.get("clevel")
    if name not in CODECS:
        return None
    least, most = CODECS[name]
    return f"{name}:{min(max(int(level or least), least), most)}"
