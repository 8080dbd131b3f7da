"""How many storage chunks of its sources an export reads: exact, from the edges of its blocks, without a request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from imagery_dask.export.plans import Part
from imagery_dask.lazy import CutoutArray
from imagery_dask.plan import BlockPlan

__all__ = ["chunk_reads", "source_chunks"]


def source_chunks(parts: Iterable[tuple[Part, Sequence[CutoutArray | None]]]) -> int | None:
    """Storage chunks that all blocks read, those that several of them read as often; None where that is not known."""
    total = 0
    for part, sources in parts:
        for source in sources:
            if source is None:
                return None
            total += chunk_reads(source, part.blocks)
    return total


def chunk_reads(source: CutoutArray, blocks: BlockPlan) -> int:
    """Storage chunks that blocks of a cutout cross, each counted in every piece of a block that does."""
    return math.prod(_along(source, blocks, axis) for axis in range(3))


def _along(source: CutoutArray, blocks: BlockPlan, axis: int) -> int:
    """Chunks that the pieces of blocks cross along an axis: what pieces cross in all is the product of these."""
    cutout = source.cutout
    grid, chunk = cutout.mip.grid, cutout.mip.chunk_shape[axis]
    inner = () if blocks.inner is None else blocks.inner[axis]
    edges = sorted({*blocks.edges[axis], *inner})
    offset, shape, reads = [0, 0, 0], [1, 1, 1], 0
    for first, stop in pairwise(edges):
        offset[axis], shape[axis] = first, stop - first
        box = cutout.target.crop(tuple(offset), tuple(shape)).at(grid.resolution_nm)
        halo = int(cutout.order == 1 and cutout.target.resolution_nm != grid.resolution_nm)
        low = max(box.start[axis] - halo, grid.start[axis]) - grid.start[axis]
        high = min(box.stop[axis] + halo, grid.stop[axis]) - grid.start[axis]
        reads += max(0, -(-high // chunk) - low // chunk) if high > low else 0
    return reads
