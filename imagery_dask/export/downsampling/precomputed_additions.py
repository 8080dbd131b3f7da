"""Levels to add to a precomputed volume: scales in a folder of its own, which its info then names."""

from __future__ import annotations

import math
from dataclasses import replace

from imagery_dask.annotations import JsonObject
from imagery_dask.arrays.lazy import lazy_dataarray
from imagery_dask.errors import SourceError
from imagery_dask.export.downsampling.additions import (
    Additions,
    NothingLeft,
    folder_for,
    new_levels,
    writable_location,
)
from imagery_dask.export.downsampling.downsample_options import DownsampleOptions
from imagery_dask.export.downsampling.metadata_files import MetadataFile
from imagery_dask.export.precomputed.precomputed_options import IMAGE_ENCODINGS, LABEL_ENCODINGS, PrecomputedOptions
from imagery_dask.export.precomputed.to_precomputed import PrecomputedExport
from imagery_dask.geometry.pyramid import Level
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import whole_layer
from imagery_dask.model.labels import Kind
from imagery_dask.model.layer import Mip
from imagery_dask.sources import open_volume
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.targets import VolumeTarget
from imagery_dask.urls import location_of, redacted

__all__ = ["precomputed_additions"]


def precomputed_additions(path: str, options: DownsampleOptions) -> Additions | NothingLeft:
    """Return the scales that a precomputed volume lacks.

    Raises
    ------
    SourceError, ValueError, TypeError
        The volume cannot be read or written, or its format cannot hold the levels.
    """
    location = writable_location(path)
    options.refuse_others(is_zarr=False)
    volume = open_volume(path)
    if location_of(volume.data_path) != location_of(path):
        raise SourceError(f"{redacted(path)!r} redirects to {redacted(volume.data_path)!r}: add levels to that.")
    layer, info = volume.layer, MetadataFile.read(Files.at(location), "info")
    if info is None:
        raise SourceError(f"{location}/info has vanished.")
    stored = [mip for mip in layer.mips if not mip.is_placeholder]
    coarsest = max(stored, key=lambda mip: (math.prod(mip.grid.resolution_nm), mip.level))
    grid = coarsest.grid
    levels = new_levels(path, grid.shape, grid.resolution_nm, len(layer.mips), options.levels)
    if isinstance(levels, NothingLeft):
        return levels
    _check_offsets(coarsest, levels, len(layer.mips))
    kind: Kind = options.kind or ("segmentation" if layer.holds_ids else "image")
    cutout = replace(whole_layer(layer, coarsest.level), kind=kind).coarser(levels[0].step)
    folder = folder_for([mip.key for mip in layer.mips], lambda name: VolumeTarget(f"{location}/{name}"))
    own = PrecomputedOptions(
        encoding=options.encoding or _encoding_of(coarsest), chunks=options.chunks or coarsest.chunk_shape,
        levels=len(levels), compress=options.compress, quality=options.quality, kind=kind,
        sharding=options.sharding,
    )  # fmt: skip
    export = PrecomputedExport(lazy_dataarray(cutout, kind), f"{location}/{folder}", own)
    made = export.layers[0].info
    if made["data_type"] != layer.dtype:
        raise ValueError(
            f"Ids are written as {made['data_type']}, and {redacted(path)!r} holds {layer.dtype}. Export it with "
            "levels to another volume."
        )
    scales = [scale | {"key": f"{folder}/{scale['key']}"} for scale in made["scales"]]

    def add(content: JsonObject) -> None:
        content["scales"] += scales

    return Additions(path, export, lambda: [(info, add)])


def _encoding_of(mip: Mip) -> str:
    if mip.encoding not in (*IMAGE_ENCODINGS, *LABEL_ENCODINGS):
        raise ValueError(
            f"The levels that are there are encoded as {mip.encoding}, which can only be read. Choose another encoding "
            "(--encoding), such as raw."
        )
    return mip.encoding


def _check_offsets(coarsest: Mip, levels: tuple[Level, ...], present: int) -> None:
    """Raise for levels that would begin within a voxel."""
    start, factor = coarsest.grid.start, Vec3(1, 1, 1)
    for number, level in enumerate(levels):
        factor = factor * level.step
        if any(start % factor):
            fewer = f", or {present + number} levels (--levels {present + number})" if number else ""
            raise ValueError(
                f"A level of {level.resolution_nm} nm would begin within a voxel: the coarsest level begins at voxel "
                f"{tuple(start)}, which is not a multiple of {tuple(factor)}, and levels of precomputed volumes begin "
                f"at whole voxels. Export it to OME-Zarr with levels (imagery-dask export zarr){fewer}."
            )
