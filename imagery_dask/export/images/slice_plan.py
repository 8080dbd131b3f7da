"""Cut a region into slabs of slices and tiles of planes, one of each for a task.

A slab is as deep as the storage chunks, so that each chunk is read once, and a task writes all slices of a slab::

    storage chunks   |----------|----------|----------|------    along the slice axis
    slabs            |----------|---------------------|------    several chunks where these are small
    slices           ||||||||||||||||||||||||||||||||||||||||

Tiles end at edges of storage chunks and are as large as that allows::

    storage chunks     |---|------|------|------|------|---      across
    tiles of 15        |----------|-------------|----------
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from imagery_dask.arrays.lazy import block_edges
from imagery_dask.export.core.inputs import Volume
from imagery_dask.export.images.slice_files import plane_axes
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import AXES, XYZ

__all__ = ["plan_slices", "refuse_too_large", "storage_edges"]

Edges = Sequence[int]
# Copies of a slab in memory: its voxels, the planes of its pages, and the buffers of the codec.
BLOCKS_HELD = 3


def storage_edges(volumes: Sequence[Volume]) -> tuple[Edges, Edges, Edges]:
    """Return edges along x, y, z that cut no chunk of any volume, or if there are none, those of the last volume."""
    own = [_own_edges(volume) for volume in volumes]
    x, y, z = (_shared([edges[axis] for edges in own]) for axis in range(3))
    return x, y, z


def plan_slices(edges: tuple[Edges, Edges, Edges], axis: int, tile: int | None, voxels: int) -> BlockPlan:
    """Return the slabs and tiles of a region.

    Parameters
    ----------
    edges : tuple of 3 sequences of int
        Edges of storage chunks along x, y, z, from 0 to the region's size.
    axis : int
        Slice axis.
    tile : int or None
        Largest number of rows and columns of a page; None for whole planes.
    voxels : int
        Largest number of voxels of a slab that is several chunks deep.

    Examples
    --------
    >>> plan_slices(([0, 30, 94, 100], [0, 50], [0, 8, 24, 40]), 2, 64, 32_000).edges
    ((0, 30, 94, 100), (0, 50), (0, 8, 24, 40))
    """
    spans = [list(e) for e in edges]
    for across in plane_axes(axis):
        size = spans[across][-1]
        spans[across] = [0, size] if tile is None else _grouped(spans[across], tile, cut=True)
    area = math.prod(max(np.diff(spans[across])) for across in plane_axes(axis))
    spans[axis] = _grouped(spans[axis], max(1, voxels // int(area)), cut=False)
    x, y, z = (tuple(span) for span in spans)
    return BlockPlan((x, y, z), (True, True, True))


def refuse_too_large(plan: BlockPlan, axis: int, bytes_each: float, memory: int | None) -> None:
    """Raise if a slab does not fit into a worker.

    Raises
    ------
    ValueError
        A slab is too large; the message names both sizes and a tile that fits.
    """
    largest = plan.largest
    needed = BLOCKS_HELD * bytes_each * math.prod(largest)
    if memory is None or needed <= memory:
        return
    side = math.isqrt(int(memory / (BLOCKS_HELD * bytes_each * largest[axis])))
    remedy = (
        f"Write tiles: tile={2 ** (side.bit_length() - 1)} (--tile) or less, or take workers with more memory."
        if side
        else "Take workers with more memory."
    )
    shape = "x".join(f"{n:,}" for n in largest)
    raise ValueError(
        f"A task would hold {shape} voxels (whole storage chunks along {AXES[axis]}), {needed / 1e9:.3g} GB while it "
        f"writes them; a worker has {memory / 1e9:.3g} GB for it. {remedy}"
    )


def _own_edges(volume: Volume) -> tuple[Edges, Edges, Edges]:
    shape: XYZ = volume.shape
    if volume.source is not None:
        return block_edges(volume.source.cutout, 1)  # with a limit of one byte, blocks are single storage chunks
    if volume.held is not None:
        x, y, z = (range(n + 1) for n in shape)
        return x, y, z
    x, y, z = ([0, *accumulate(int(n) for n in volume.array.chunks[axis])] for axis in range(3))  # type: ignore[assignment]
    return x, y, z


def _shared(edges: Sequence[Edges]) -> Edges:
    common = sorted(set(edges[0]).intersection(*edges[1:]))
    return common if len(common) > 2 else edges[-1]


def _grouped(edges: Edges, most: int, cut: bool) -> list[int]:
    """Join neighboring spans up to a length; longer spans stay, or with `cut` are cut into equal parts."""
    out = [0]
    while out[-1] < edges[-1]:
        start = out[-1]
        last = edges[bisect_right(edges, start + most) - 1]
        if last > start:
            out.append(last)
            continue
        stop = edges[bisect_right(edges, start)]
        pieces = -(-(stop - start) // most) if cut else 1
        out.extend(start + (stop - start) * piece // pieces for piece in range(1, pieces + 1))
    return out
