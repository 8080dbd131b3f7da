"""Names of the codecs of arrays that others wrote, as `Compressor` knows them."""

from __future__ import annotations

from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.export.zarr.compressors import CODECS
from imagery_dask.sources.zarr.chunk_codecs import codecs_of_chunks, configuration_of, name_of
from imagery_dask.sources.zarr.stored_chunks import shuffle_named

__all__ = ["codec_of"]

AUTOSHUFFLE = -1  # of numcodecs: by the data type


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
        shuffle = compressor.get("shuffle", AUTOSHUFFLE)
        shuffle = "shuffle" if shuffle == AUTOSHUFFLE else shuffle_named(shuffle)
        return _named(str(compressor.get("id")), compressor | {"shuffle": shuffle}, compressor.get("level"))
    others = [codec for codec in codecs_of_chunks(array) if name_of(codec) not in ("bytes", "transpose")]
    if not others:
        return "none"
    configuration = configuration_of(others[0])
    return _named(name_of(others[0]), configuration, configuration.get("level")) if len(others) == 1 else None


def _named(name: str, configuration: JsonObject, level: Any) -> str | None:
    if name == "blosc":
        words = ("blosc", configuration.get("cname"), configuration.get("shuffle"))
        name, level = "-".join(str(word) for word in words if word != "shuffle"), configuration.get("clevel")
    if name not in CODECS:
        return None
    least, most = CODECS[name]
    return f"{name}:{min(max(int(level or least), least), most)}"
