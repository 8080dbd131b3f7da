"""Lazy arrays: a resolved cutout behind dask's and xarray's interfaces.

The only place that builds source graphs. Each is one symbolic layer over a small array-like (`CutoutArray`): opening
costs the same for ten blocks or ten billion, and slices reach the array-like, which reads the storage chunks that they
cross and no more.

dask has two kinds of arrays, chosen when it is imported: graphs, and expressions (``array.query-planning``). Both are
made by `dask.array.from_array`. In a graph dask merges a slice with the task that reads; an expression reads whole
blocks and slices them afterwards, unless it is one of `imagery_dask.arrays.expressions`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import dask.array as da
import numpy as np
from dask.base import tokenize

from imagery_dask.annotations import JsonObject
from imagery_dask.arrays import computing, guards
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.origins import name_of, remember_part, remember_source
from imagery_dask.config import config
from imagery_dask.geometry.block_plan import SPLIT_ABOVE
from imagery_dask.geometry.grid import AXES, VoxelGrid, edge_at_or_after, source_span
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.chunkedgraph import SUPERVOXEL_LAYER
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.moments import describe_moment
from imagery_dask.urls import without_secrets

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Edges",
    "block_edges",
    "described",
    "grow_block",
    "lazy_array",
    "lazy_block_edges",
    "lazy_dataarray",
    "shared_block_edges",
]

Chunks = tuple[tuple[int, ...], ...]
# Edges of blocks along x, y, z, in voxels from the start of an array.
Edges = tuple[list[int], list[int], list[int]]
# Blocks of several volumes hold this many chunks along an axis at most, where fewer would cut chunks of another volume.
MOST_UNITS = 4
# Along an axis: volumes have thousands of blocks; bounds in a wrong unit give millions, all with an edge in memory.
MOST_BLOCKS = 2**20


def lazy_array(cutout: Cutout, *, squeeze: bool = True, blocks: Edges | None = None) -> da.Array:
    """Dask array of a cutout.

    Parameters
    ----------
    cutout : Cutout
        What to read.
    squeeze : bool
        Drop axes of length 1.
    blocks : tuple of 3 lists of int, optional
        Edges of the blocks along x, y, z, as of `shared_block_edges`.

    Returns
    -------
    dask.array.Array
        Axes x, y, z and, where there are several, channels. By default its blocks begin and end on storage chunks.
    """
    # Copying root ids to C order takes as long as finding them; images are looked at more, and joined by dask.
    source = CutoutArray(cutout, squeeze, "C" if cutout.query is None else "F")
    own = lazy_block_edges(cutout)
    edges = [*(own if blocks is None else blocks), [0, cutout.channels]]
    chunks = tuple(tuple(b - a for a, b in pairwise(edges[axis])) for axis in source.axes)
    name = name_of(source)
    if blocks is not None and blocks != own:  # the names of other blocks are others
        name += f"-{tokenize(blocks)[:8]}"
    source = remember_source(name, source)
    meta = np.empty((0,) * source.ndim, dtype=source.dtype)
    array = da.from_array(source, chunks=chunks, name=name, asarray=False, inline_array=True, meta=meta)
    if da.array_expr_enabled():
        # With private names of dask. In a version without them, slices are right too, but read the blocks that they
        # cross.
        with suppress(ImportError):
            from imagery_dask.arrays.expressions import with_pushdown

            array = with_pushdown(array)
    remember_source(array.name, source)  # expressions have names of their own
    guards.install()
    computing.install()
    remember_part(array, source.select([range(size) for size in source.shape]))
    return array


def lazy_block_edges(cutout: Cutout) -> Edges:
    """Return the edges of the blocks of a lazy array along x, y, z, in voxels from its start."""
    return block_edges(cutout, config.get("lazy.block_bytes"))


def lazy_dataarray(cutout: Cutout, name: str, blocks: Edges | None = None) -> xr.DataArray:
    """Return a cutout as an xarray object: dims x, y, z (and channel), coordinates of voxel centres in nm."""
    target, array = cutout.target, lazy_array(cutout, squeeze=False, blocks=blocks)
    dims = (*AXES, "channel") if cutout.channels > 1 else AXES
    coords = {
        axis: (axis, target.centres_nm(index), {"units": "nm", "long_name": axis}) for index, axis in enumerate(AXES)
    }
    import xarray as xr

    attributes = {"long_name": _long_name(cutout)} | described(cutout)
    return xr.DataArray(array, dims=dims, coords=coords, attrs=attributes, name=name)


def _long_name(cutout: Cutout) -> str:
    """Return what voxels are, for labels of plots."""
    query = cutout.query
    if query is None:
        return "segment id" if cutout.holds_ids else "intensity"
    names = {None: "root id", SUPERVOXEL_LAYER: "supervoxel id"}
    return names.get(query.stop_layer, f"id at layer {query.stop_layer}")


def described(cutout: Cutout) -> JsonObject:
    """Describe the origin of a cutout in plain values: attributes of arrays and stores."""
    target, query = cutout.target, cutout.query
    attributes = {
        "source": without_secrets(cutout.path),
        "mip": cutout.mip.level,
        "resolution_nm": list(target.resolution_nm),
        "voxel_offset": list(target.start),
    }
    if cutout.timestamp is not None:
        attributes |= {"timestamp": describe_moment(cutout.timestamp), "timestamp_unix_s": cutout.timestamp}
    if query is not None and query.version is not None:
        attributes["materialization_version"] = query.version
    return attributes


# ---------------------------------------- edges of blocks


def shared_block_edges(cutouts: Sequence[Cutout]) -> Edges:
    """Return edges of blocks that cutouts on one grid share, so that they can be computed together.

    Along each axis, blocks are whole units of every cutout wherever there are such blocks of a few units, and otherwise
    whole units of the cutout whose units are longest.
    """
    target, block_bytes = cutouts[0].target, config.get("lazy.block_bytes")
    voxels = min(block_bytes // _voxel_bytes(cutout) for cutout in cutouts)
    along = zip(*(_rulers(cutout, voxels) for cutout in cutouts), strict=True)
    rulers = [functools.reduce(_common, of_axis) for of_axis in along]
    return _edges_of(target, rulers, voxels)


def block_edges(cutout: Cutout, block_bytes: int) -> Edges:
    """Edges of blocks along x, y, z, in target voxels from the cutout's start.

    Blocks are whole units (storage chunks, or graph chunks of them; doubled until a block holds `block_bytes`) wherever
    the cutout's border does not cut them, so that no two blocks read the same chunk or look up the same supervoxel.
    """
    voxels = block_bytes // _voxel_bytes(cutout)
    return _edges_of(cutout.target, _rulers(cutout, voxels), voxels)


class _Ruler(NamedTuple):
    """Where units of a cutout begin along an axis, in voxels of its source."""

    #: A voxel at which a unit begins.
    origin: int
    #: Voxels of a unit, and of the whole volume.
    unit: int
    size: int
    #: Voxels of the source in one of the target.
    step: Fraction

    @property
    def length(self) -> Fraction:
        """Length of a unit in voxels of the target."""
        return self.unit / self.step


def _rulers(cutout: Cutout, voxels: float) -> list[_Ruler]:
    source = cutout.mip.grid
    steps, unit = cutout.target.steps_from(source.resolution_nm), cutout.unit
    if unit.prod() / steps.prod() > SPLIT_ABOVE * voxels:
        unit = cutout.mip.chunk_shape
    return [_Ruler(*along) for along in zip(source.start, unit, source.shape, steps, strict=True)]


def _common(one: _Ruler, other: _Ruler) -> _Ruler:
    """Return a ruler whose units begin where units of both do, or else the one of longer units."""
    long, short = (one, other) if one.length >= other.length else (other, one)
    for count in range(1, MOST_UNITS + 1):
        if (count * long.length) % short.length == 0:
            for first in range(count):
                origin = long.origin + first * long.unit
                if (origin / long.step - short.origin / short.step) % short.length == 0:
                    return long._replace(origin=origin, unit=count * long.unit)
    return long


def _voxel_bytes(cutout: Cutout) -> float:
    """Return the bytes that a voxel of the result takes; where it is coarser, those of its source voxels."""
    steps = cutout.target.steps_from(cutout.mip.grid.resolution_nm)
    return np.dtype(cutout.stored_dtype).itemsize * cutout.channels * max(1.0, float(steps.prod()))


def _edges_of(target: VoxelGrid, rulers: Sequence[_Ruler], voxels: float) -> Edges:
    origins, units, sizes, steps = (Vec3.of(along) for along in zip(*rulers, strict=True))
    shape = grow_block(units, sizes, steps, voxels)
    for axis, name in enumerate(AXES):
        if target.shape[axis] * steps[axis] / shape[axis] > MOST_BLOCKS:
            raise ValueError(
                f"The cutout is {target.shape[axis]:,} voxels long along {name}; the volume has "
                f"{sizes[axis]:,} there. Check the bounds, and the resolution that they are given in."
            )
    return target.start.map(_axis_edges, target.stop, origins, shape, steps)


@functools.lru_cache(maxsize=256)
def grow_block(unit: Vec3[int], extent: Vec3[int], steps: Vec3[Fraction], voxels: float) -> Vec3[int]:
    """Shape of a block in source voxels, near `voxels` target voxels.

    A unit (a storage chunk) is doubled along its shortest axis while a block has at most that many. Only where one unit
    becomes more than eight times as many, because the target is much finer, is it split, and read more than once.
    """
    block = list(unit)

    def span(axis: int) -> Fraction:
        return block[axis] / steps[axis]

    most = SPLIT_ABOVE * max(voxels, unit.prod())
    while math.prod(span(axis) for axis in range(3)) > most and max(block) > 1:
        longest = max((axis for axis in range(3) if block[axis] > 1), key=span)
        block[longest] = -(-block[longest] // 2)
    while 2 * math.prod(span(axis) for axis in range(3)) <= voxels:
        growing = [axis for axis in range(3) if block[axis] < extent[axis]]
        if not growing:
            break
        block[min(growing, key=span)] *= 2
    return Vec3.of(block)


def _axis_edges(start: int, stop: int, origin: int, size: int, step: Fraction) -> list[int]:
    first, after = source_span(start, stop, step)
    inner = range((first - origin) // size + 1, (after - 1 - origin) // size + 1)
    if step == 1:
        crossings = [origin + size * k for k in inner]
    else:
        crossings = [edge_at_or_after(origin + size * k, step) for k in inner]
    return [0, *sorted({edge - start for edge in crossings if start < edge < stop}), stop - start]
