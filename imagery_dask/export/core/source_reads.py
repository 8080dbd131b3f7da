"""Count the storage chunks of its sources that an export reads: exactly, from the edges of its blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import XYZ, VoxelGrid
from imagery_dask.kernels import linear_taps

__all__ = ["chunk_reads", "source_chunks"]


def source_chunks(reads: Iterable[tuple[BlockPlan, Sequence[CutoutArray | None], XYZ]]) -> int | None:
    """Count the reads of storage chunks by all blocks; None where an array is computed.

    Parameters
    ----------
    reads : iterable of (BlockPlan, sequence of CutoutArray or None, tuple of 3 int)
        Blocks, what each of them reads, and the margin of voxels around a block that is read with it. Margins end
        where the region does.
    """
    total = 0
    for blocks, sources, margin in reads:
        for source in sources:
            if source is None:
                return None
            total += chunk_reads(source, blocks, margin)
    return total


def chunk_reads(source: CutoutArray, blocks: BlockPlan, margin: XYZ = (0, 0, 0)) -> int:
    """Count the storage chunks that blocks of a cutout cross, once for every piece of a block."""
    return math.prod(_along(source, blocks, axis, margin[axis]) for axis in range(3))


def _along(source: CutoutArray, blocks: BlockPlan, axis: int, margin: int) -> int:
    """Count the chunks that the pieces of blocks cross along an axis; the product over the axes is the total."""
    cutout = source.cutout
    grid, chunk = cutout.mip.grid, cutout.mip.chunk_shape[axis]
    inner = () if blocks.inner is None else blocks.inner[axis]
    edges = sorted({*blocks.edges[axis], *inner})
    offset, shape, reads = [0, 0, 0], [1, 1, 1], 0
    for first, stop in pairwise(edges):
        offset[axis] = max(0, first - margin)
        shape[axis] = min(edges[-1], stop + margin) - offset[axis]
        box = cutout.target.crop(tuple(offset), tuple(shape))
        start, end = _linear(source, box, axis) if _interpolates(source) else _nearest(source, box, axis)
        low, high = max(start, grid.start[axis]) - grid.start[axis], min(end, grid.stop[axis]) - grid.start[axis]
        reads += -(-high // chunk) - low // chunk if high > low else 0
    return reads


def _interpolates(source: CutoutArray) -> bool:
    return source.cutout.order == 1 and source.cutout.target.resolution_nm != source.cutout.mip.grid.resolution_nm


def _nearest(source: CutoutArray, box: VoxelGrid, axis: int) -> tuple[int, int]:
    """Return the first voxel of the source that a box takes along an axis, and the one after the last."""
    within = box.at(source.cutout.mip.grid.resolution_nm)
    return within.start[axis], within.stop[axis]


def _linear(source: CutoutArray, box: VoxelGrid, axis: int) -> tuple[int, int]:
    """Return the same for linear interpolation, which takes two voxels for one."""
    step = box.steps_from(source.cutout.mip.grid.resolution_nm)[axis]
    first, last = (int(linear_taps(at, 1, step)[0][0]) for at in (box.start[axis], box.stop[axis] - 1))
    return first, last + 2
