"""Lazy arrays: a resolved cutout behind dask's and xarray's interfaces.

The only place that builds source graphs. Each is one symbolic layer over a small array-like (`CutoutArray`): opening
costs the same for ten blocks or ten billion, and slices reach the array-like, which reads the storage chunks that they
cross and no more.

dask has two kinds of arrays, chosen when it is imported: graphs, and expressions (``array.query-planning``). Both are
made by `dask.array.from_array`. In a graph dask merges a slice with the task that reads; an expression reads whole
blocks and slices them afterwards, unless it is one of `imagery_dask.arrays.expressions`.
"""

from __future__ import annotations

import math
import operator
import sys
import weakref
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.array.core import slices_from_chunks
from dask.base import get_scheduler, tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from imagery_dask.annotations import Array, JsonObject, Keywords
from imagery_dask.arrays import guards
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.origins import remember_source, source_of
from imagery_dask.config import config
from imagery_dask.geometry.block_plan import SPLIT_ABOVE
from imagery_dask.geometry.grid import AXES, edge_at_or_after, source_span
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.moments import describe_moment
from imagery_dask.urls import without_secrets

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

__all__ = [
    "block_edges",
    "block_reads",
    "described",
    "grow_block",
    "lazy_array",
    "lazy_block_edges",
    "lazy_dataarray",
]

Chunks = tuple[tuple[int, ...], ...]
# Along an axis: volumes have thousands of blocks; bounds in a wrong unit give millions, all with an edge in memory.
MOST_BLOCKS = 2**20
Region = tuple[slice, ...]


class WholeCutout:
    """The ``compute`` of a cutout's array, which it has as an attribute of its own.

    Each block is written into the result when it has been read, in the decoders' memory order. dask's own way holds all
    blocks beside the result (on a cluster: on one worker) and joins them at the end, in C order, which takes as long as
    decoding where codecs are as fast as memory.

    It is an attribute because xarray refuses a subclass of dask's array beside arrays that are made of it.

    Parameters
    ----------
    array : dask.array.Array
        The array of a cutout. Assignments turn it into another one, which dask computes.
    """

    def __init__(self, array: da.Array) -> None:
        # A strong reference to the array, which holds this, would keep both until a garbage collection.
        self._array, self._again = weakref.ref(array), _again(array)

    def __reduce__(self) -> tuple[object, ...]:
        return WholeCutout, (self._again,)

    def __call__(self, **kwargs: Any) -> Any:
        """Read the voxels; where a cutout has several blocks, the result is in Fortran order."""
        own = self._array()
        array = self._again if own is None or own.name == self._again.name else _again(own)
        if _has_no_client():
            kwargs.setdefault("scheduler", dask.threaded.get)
        source = source_of(array)
        if source is None:
            return array.compute(**kwargs)
        guards.check_read(array)
        scheduler = get_scheduler(collections=[array], scheduler=kwargs.get("scheduler"))
        if math.prod(array.numblocks) > 1:
            source = source.with_layout("F")
            if scheduler in (dask.threaded.get, dask.local.get_sync):
                kwargs = {name: value for name, value in kwargs.items() if name not in NOT_OF_SCHEDULERS}
                return _fill(scheduler, array, source, kwargs)
            client = getattr(scheduler, "__self__", None)
            from distributed import Client

            if isinstance(client, Client):
                return _gather(client, array, source)
        return np.asarray(array.compute(**kwargs))


def _again(array: da.Array) -> da.Array:
    """Return another object of the same array, which dask computes."""
    return da.Array(array.expr) if da.array_expr_enabled() else array.copy()


def _has_no_client() -> bool:
    """Return True if dask would import distributed only to find that it has no client."""
    return "distributed" not in sys.modules and dask.config.get("scheduler", None) is None


# Options of ``compute`` that dask takes for itself; the others are the scheduler's.
NOT_OF_SCHEDULERS = ("scheduler", "optimize_graph", "traverse")


def _fill(scheduler: Any, array: da.Array, source: CutoutArray, options: Keywords) -> Array:
    """Voxels of a cutout whose blocks this process reads into one array."""
    voxels = np.empty(array.shape, array.dtype, order="F")

    def read(region: Region) -> None:
        voxels[region] = source[region]

    name = f"{array.name}-{uuid4().hex}"
    tasks = {(name, n): (read, region) for n, region in enumerate(slices_from_chunks(array.chunks))}
    scheduler(tasks, list(tasks), **options)
    return voxels


def _gather(client: Client, array: da.Array, source: CutoutArray) -> Array:
    """Voxels of a cutout whose blocks a cluster reads, written into one array as they arrive."""
    regions = slices_from_chunks(array.chunks)
    blocks = client.compute(block_reads(array, source))
    places = {block.key: region for block, region in zip(blocks, regions, strict=True)}
    voxels = np.empty(array.shape, array.dtype, order="F")
    from distributed import as_completed

    for block, part in as_completed(blocks, with_results=True, loop=client.loop):
        voxels[places[block.key]] = part
        block.release()
    return voxels


def block_reads(array: da.Array, source: CutoutArray) -> list[Delayed]:
    """Return reads of each block of a cutout's array as delayed values, last axis fastest."""
    name = f"{_name_of(source)}-blocks-{tokenize(array.chunks, source.layout)}"
    tasks = {(name, n): (operator.getitem, source, region) for n, region in enumerate(slices_from_chunks(array.chunks))}
    graph = HighLevelGraph.from_collections(name, tasks)
    return [Delayed(key, graph, layer=name) for key in tasks]


def lazy_array(cutout: Cutout, *, squeeze: bool = True) -> da.Array:
    """Dask array of a cutout.

    Parameters
    ----------
    cutout : Cutout
        What to read.
    squeeze : bool
        Drop axes of length 1.

    Returns
    -------
    dask.array.Array
        Axes x, y, z and, where there are several, channels. Its blocks begin and end on storage chunks.
    """
    # Copying root ids to C order takes as long as finding them; images are looked at more, and joined by dask.
    source = CutoutArray(cutout, squeeze, "C" if cutout.query is None else "F")
    edges = [*lazy_block_edges(cutout), [0, cutout.channels]]
    chunks = tuple(tuple(b - a for a, b in pairwise(edges[axis])) for axis in source.axes)
    name = _name_of(source)
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
    array.compute = WholeCutout(array)
    return array


def _name_of(source: CutoutArray) -> str:
    cutout = source.cutout
    kind = "image" if cutout.labels is None else "mask" if cutout.labels.mask_of is not None else "segmentation"
    moment = "" if cutout.query is None else f"-{describe_moment(cutout.query.timestamp)}"
    return f"{kind}-mip{cutout.mip.level}{moment}-{tokenize(source)}"


def lazy_block_edges(cutout: Cutout) -> tuple[list[int], list[int], list[int]]:
    """Return the edges of the blocks of a lazy array along x, y, z, in voxels from its start."""
    return block_edges(cutout, config.get("lazy.block_bytes"))


def lazy_dataarray(cutout: Cutout, name: str) -> xr.DataArray:
    """Return a cutout as an xarray object: dims x, y, z (and channel), coordinates of voxel centres in nm."""
    target, array = cutout.target, lazy_array(cutout, squeeze=False)
    dims = (*AXES, "channel") if cutout.channels > 1 else AXES
    coords = {
        axis: (axis, target.centres_nm(index), {"units": "nm", "long_name": f"voxel centre, {axis}"})
        for index, axis in enumerate(AXES)
    }
    import xarray as xr

    return xr.DataArray(array, dims=dims, coords=coords, attrs=described(cutout), name=name)


def described(cutout: Cutout) -> JsonObject:
    """Describe the origin of a cutout in plain values: attributes of arrays and stores."""
    target, query = cutout.target, cutout.query
    attributes = {
        "source": without_secrets(cutout.path),
        "mip": cutout.mip.level,
        "resolution_nm": list(target.resolution_nm),
        "voxel_offset": list(target.start),
    }
    if query is not None:
        attributes |= {"timestamp": describe_moment(query.timestamp), "timestamp_unix_s": query.timestamp}
        attributes |= {} if query.version is None else {"materialization_version": query.version}
    return attributes


# ---------------------------------------- edges of blocks


def block_edges(cutout: Cutout, block_bytes: int) -> tuple[list[int], list[int], list[int]]:
    """Edges of blocks along x, y, z, in target voxels from the cutout's start.

    Blocks are whole units (storage chunks, or graph chunks of them; doubled until a block holds `block_bytes`) wherever
    the cutout's border does not cut them, so that no two blocks read the same chunk or look up the same supervoxel.
    """
    target = cutout.target
    source = cutout.mip.grid
    steps = target.steps_from(source.resolution_nm)
    # Where the target is coarser, a block's memory is that of its source voxels.
    voxel_bytes = np.dtype(cutout.stored_dtype).itemsize * cutout.channels * max(1.0, float(steps.prod()))
    voxels = block_bytes // voxel_bytes
    unit = cutout.unit
    if unit.prod() / steps.prod() > SPLIT_ABOVE * voxels:
        unit = cutout.mip.chunk_shape
    shape = grow_block(unit, source.shape, steps, voxels)
    for axis, name in enumerate(AXES):
        if target.shape[axis] * steps[axis] / shape[axis] > MOST_BLOCKS:
            raise ValueError(
                f"The cutout is {target.shape[axis]:,} voxels long along {name}; the volume has "
                f"{source.shape[axis]:,} there. Check the bounds, and the resolution that they are given in."
            )
    return target.start.map(_axis_edges, target.stop, source.start, shape, steps)


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
