"""Whether chunks of a zarr source become chunks of an array as they are stored, instead of being encoded again.

The codec, its parameters, the grid of chunks, the axes and the data type have to agree. A chunk is decoded all the
same: its hash is that of its voxels, and a damaged one is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.export.core.inputs import Volume
from imagery_dask.export.multiscale.level_layout import LevelLayout
from imagery_dask.export.zarr.compressors import Compressor
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.model.labels import LabelRule
from imagery_dask.sources import open_volume
from imagery_dask.sources.volumes.addresses import is_zarr
from imagery_dask.sources.zarr.chunk_codecs import configuration_of, name_of
from imagery_dask.sources.zarr.zarr_volume import ZarrVolume

__all__ = ["is_copied"]

AS_STORED = (None, LabelRule())
# By numcodecs' number.
SHUFFLES = {0: "noshuffle", 1: "shuffle", 2: "bitshuffle"}
BLOSC_FIELDS = ("cname", "clevel", "shuffle", "blocksize")


def is_copied(volume: Volume, layout: LevelLayout, options: ZarrOptions) -> bool:
    """Return True if chunks of a volume's source may be chunks of a level as they are."""
    if volume.source is None or volume.relabel or options.axes is not None:
        return False
    cutout = volume.source.cutout
    is_as_stored = cutout.target.resolution_nm == cutout.mip.grid.resolution_nm and not cutout.downsampled
    if not is_zarr(cutout.path) or not is_as_stored or cutout.labels not in AS_STORED or cutout.channels != 1:
        return False
    stored = open_volume(cutout.path)
    assert isinstance(stored, ZarrVolume)
    array, axes, metadata = stored.stored_as(cutout.mip.level)
    if axes != ("z", "y", "x") or array.codec.order is not None or array.codec.of_voxels:
        return False
    if array.codec.dtype.newbyteorder("<") != array.codec.dtype or np.dtype(volume.stored_dtype) != array.dtype:
        return False
    if array.chunk != layout.chunk.zyx or array.dtype.kind == "b":
        return False
    if any((cutout.target.start - cutout.mip.grid.start) % layout.chunk):
        return False
    compressor = options.compressor(volume.labels)
    return _stored_codec(metadata) == (None if compressor is None else _own_codec(compressor))


def _own_codec(compressor: Compressor) -> tuple[Any, ...]:
    """Return name and parameters of a codec of an export."""
    codec = compressor.of_zarr(3).to_dict()
    return _normal(codec["name"], codec["configuration"])


def _stored_codec(metadata: JsonObject) -> tuple[Any, ...] | None:
    """Return name and parameters of the only compressor of an array; ("several",) if it has others."""
    if metadata.get("zarr_format") == 2:
        config = metadata.get("compressor")
        return ("several",) if metadata.get("filters") else config and _normal(config["id"], config)
    codecs = metadata["codecs"]
    if name_of(codecs[0]) == "sharding_indexed":
        codecs = configuration_of(codecs[0])["codecs"]
    first, *rest = codecs
    if name_of(first) != "bytes" or len(rest) > 1:
        return ("several",)
    return _normal(name_of(rest[0]), configuration_of(rest[0])) if rest else None


def _normal(name: str, configuration: JsonObject) -> tuple[Any, ...]:
    if name != "blosc":
        return name, configuration.get("level"), bool(configuration.get("checksum", False))
    shuffle = configuration.get("shuffle")
    fields = configuration | {"shuffle": SHUFFLES.get(shuffle, shuffle) if isinstance(shuffle, int) else shuffle}
    return (name, *(str(getattr(value := fields.get(field), "value", value)) for field in BLOSC_FIELDS))
