"""How cutouts, and slices of them, are computed: from kept chunks at once, or block by block into one array.

dask takes longer to plan a plane than its voxels take from the cache of decoded chunks. It holds all blocks beside the
result (on a cluster: on one worker) and joins them at the end, in C order, which takes as long as decoding where codecs
are as fast as memory. Here each block is written into the result when it has been read, in the decoders' memory order.
Everything else is dask's: other arrays, other schedulers, and several arrays that are computed together.

`install` wraps functions of dask, because xarray computes by ``dask.compute`` and refuses a subclass of dask's array
beside arrays that are made of it. Arrays that are not made of cutouts pass unchanged.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
from dask.array.core import slices_from_chunks
from dask.base import get_scheduler, tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT

from imagery_dask.annotations import Array, Keywords
from imagery_dask.arrays.cutout_array import CutoutArray, CutoutSlice, basic_parts
from imagery_dask.arrays.guards import check_result
from imagery_dask.arrays.hooks import wrap
from imagery_dask.arrays.origins import name_of, part_of, remember_part, source_of
from imagery_dask.sources.volumes.chunk_cache import chunk_cache

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["block_reads", "install"]

Region = tuple[slice, ...]


@functools.cache
def install() -> None:
    """Have dask remember the slices of cutouts, and ask before it computes arrays."""
    wrap("dask.array:Array.__getitem__", _remembering)
    wrap("dask.base.compute", _reading)
    if da.array_expr_enabled():  # which are optimized before ``dask.base.compute``
        wrap("dask.array:Array.compute", _reading_one)


def _remembering(getitem: Callable[..., da.Array]) -> Callable[..., da.Array]:
    @functools.wraps(getitem)
    def remembering(array: da.Array, index: Any) -> da.Array:
        result, part = getitem(array, index), part_of(array)
        parts = None if part is None else basic_parts(index, array.shape)
        if part is not None and parts is not None:
            part = part.select(parts)
            if part.shape == result.shape:  # dask takes x[-23::-1] for x[::-1] where x is shorter
                remember_part(result, part)
        return result

    return remembering


def _reading(compute: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    @functools.wraps(compute)
    def reading(*args: Any, **options: Any) -> tuple[Any, ...]:
        voxels = _voxels(args, options)
        unread = [arg for n, arg in enumerate(args) if n not in voxels]
        rest = iter(compute(*unread, **options) if unread else ())
        return tuple(voxels[n] if n in voxels else next(rest) for n in range(len(args)))

    return reading


def _reading_one(compute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compute)
    def reading_one(array: da.Array, **options: Any) -> Any:
        voxels = _voxels([array], options)
        return voxels[0] if voxels else compute(array, **options)

    return reading_one


def _voxels(args: Sequence[Any], options: Keywords) -> dict[int, Array]:
    """Return the voxels of those arguments of ``dask.compute``, by position, that need no graph."""
    parts = {n: part for n, arg in enumerate(args) if isinstance(arg, da.Array) and (part := part_of(arg)) is not None}
    if not parts:
        return {}
    for n in parts:
        check_result(args[n])
    scheduler = _scheduler(args[min(parts)], options)
    is_local = scheduler in (dask.threaded.get, dask.local.get_sync)
    voxels = {n: kept for n, part in parts.items() if is_local and (kept := part.kept()) is not None}
    if len(args) == 1 and not voxels:
        (array,), part = args, parts[0]
        if is_local:
            voxels[0] = _fill(scheduler, array, part, options)
        elif math.prod(array.numblocks) > 1 and (source := source_of(array)) is not None:
            client = getattr(scheduler, "__self__", None)
            from distributed import Client

            if isinstance(client, Client):
                voxels[0] = _gather(client, array, source)
    return voxels


def _scheduler(array: da.Array, options: Keywords) -> Any:
    """Return the function by which dask would compute an array."""
    scheduler = options.get("scheduler")
    if scheduler is None and "distributed" not in sys.modules and dask.config.get("scheduler", None) is None:
        return dask.threaded.get  # dask would import distributed only to find that there is no client
    return get_scheduler(get=options.get("get"), scheduler=scheduler, collections=[array])


# Bytes of a result that one thread reads at once. Its chunks are written into the result as they arrive.
READ_AT_ONCE = 256 * 2**20
# Options of ``compute`` that dask takes for itself; the others are the scheduler's.
NOT_OF_SCHEDULERS = ("get", "scheduler", "optimize_graph", "traverse")


def _fill(scheduler: Any, array: da.Array, part: CutoutSlice, options: Keywords) -> Array:
    """Voxels of a cutout whose blocks this process reads into one array."""
    chunks = _joined(array.chunks, array.dtype.itemsize) if part.reads_into else array.chunks
    part, regions = part.with_layout("F"), slices_from_chunks(chunks)
    name = f"{array.name}-{uuid4().hex}"
    options = {name: value for name, value in options.items() if name not in NOT_OF_SCHEDULERS}
    if len(regions) == 1:
        return np.asarray(scheduler({name: (part.__getitem__, *regions)}, name, **options), order="F")
    voxels = np.empty(array.shape, array.dtype, order="F")
    # The chunks of a large result take its memory a second time, and push everything else out of the cache.
    cache = chunk_cache()
    keeps = cache is not None and 8 * voxels.nbytes <= cache.most

    def read(region: Region) -> None:
        part.read_into(region, voxels[region], keeps)

    tasks = {(name, n): (read, region) for n, region in enumerate(regions)}
    scheduler(tasks, list(tasks), **options)
    return voxels


def _joined(chunks: Sequence[Sequence[int]], itemsize: int) -> list[tuple[int, ...]]:
    """Return blocks that are joined up to `READ_AT_ONCE`, but still one for each thread.

    Each block waits for a server on its own, and reads the indices of shards.
    """
    joined = [tuple(along) for along in chunks]
    while math.prod(map(len, joined)) >= 2 * CPU_COUNT:
        longest = max(range(len(joined)), key=lambda axis: len(joined[axis]))
        along = joined[longest]
        if 2 * itemsize * math.prod(map(max, joined)) > READ_AT_ONCE:
            break
        joined[longest] = tuple(sum(along[n : n + 2]) for n in range(0, len(along), 2))
    return joined


def _gather(client: Client, array: da.Array, source: CutoutArray) -> Array:
    """Voxels of a cutout whose blocks a cluster reads, written into one array as they arrive."""
    regions = slices_from_chunks(array.chunks)
    blocks = client.compute(block_reads(array, source.with_layout("F")))
    places = {block.key: region for block, region in zip(blocks, regions, strict=True)}
    voxels = np.empty(array.shape, array.dtype, order="F")
    from distributed import as_completed

    for block, part in as_completed(blocks, with_results=True, loop=client.loop):
        voxels[places[block.key]] = part
        block.release()
    return voxels


def block_reads(array: da.Array, source: CutoutArray) -> list[Delayed]:
    """Return reads of each block of a cutout's array as delayed values, last axis fastest."""
    name = f"{name_of(source)}-blocks-{tokenize(array.chunks, source.layout)}"
    tasks = {(name, n): (operator.getitem, source, region) for n, region in enumerate(slices_from_chunks(array.chunks))}
    graph = HighLevelGraph.from_collections(name, tasks)
    return [Delayed(key, graph, layer=name) for key in tasks]
