"""Edges of the blocks of a lazy array."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from imagery_dask.geometry.block_plan import SPLIT_ABOVE
from imagery_dask.geometry.grid import AXES, edge_at_or_after, nearest_index
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout

__all__ = ["block_edges", "grow_block"]

# Along an axis: volumes have thousands of blocks; bounds in a wrong unit give millions, all with an edge in memory.
MOST_BLOCKS = 2**20


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
    first = nearest_index(start, 1, step)[0]
    last = nearest_index(stop - 1, 1, step)[0]
    inner = range((int(first) - origin) // size + 1, (int(last) - origin) // size + 1)
    if step == 1:
        crossings = [origin + size * k for k in inner]
    else:
        crossings = [edge_at_or_after(origin + size * k, step) for k in inner]
    return [0, *sorted({edge - start for edge in crossings if start < edge < stop}), stop - start]
