"""Which voxels of a level a voxel of the next coarser level was made from.

A voxel of a coarser level has a window of voxels of the finer level. Windows lie where the voxel is in the world, or
side by side from the first voxel on, as programs make them that do not look at offsets::

    finer      |--|--|--|--|--|--|--|     first voxel 3
    in world   |--|-----|-----|-----|     first voxel 1, windows of 2: the first is cut
    from first |-----|-----|-----|--|     first voxel 1: the last is cut
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.layer import Mip

__all__ = ["LevelPair", "corner_of", "pair_of"]


@dataclass(frozen=True, slots=True)
class LevelPair:
    """A level and the next coarser one.

    Parameters
    ----------
    fine, coarse : Mip
        The levels.
    factor : tuple of 3 int
        Voxels of the finer level in a window along x, y, z.
    offset : tuple of 3 int
        First voxel of the first window, from the first voxel of the finer level on; negative where that window is cut.
    """

    fine: Mip
    coarse: Mip
    factor: Vec3[int]
    offset: Vec3[int]

    def window(self, start: Vec3[int], shape: Vec3[int]) -> VoxelGrid | None:
        """Return the voxels of the finer level, absolute, in the windows of a box; None if a window has none.

        Parameters
        ----------
        start : tuple of 3 int
            First voxel of the box, from the first voxel of the coarser level on.
        shape : tuple of 3 int
            Its voxels.
        """
        first, last = start * self.factor + self.offset, (start + shape - 1) * self.factor + self.offset
        own = self.fine.grid
        if not (Vec3(0, 0, 0).all_lt(first + self.factor) and last.all_lt(own.shape)):
            return None
        low, high = first.maximum(0), (last + self.factor).minimum(own.shape)
        return own.crop(low, high - low)

    def filled(self, voxels: Array, start: Vec3[int], shape: Vec3[int]) -> Array:
        """Return the voxels of a `window` with those at the edges of the volume repeated, where windows are cut."""
        first = start * self.factor + self.offset
        ahead = (-first).maximum(0)
        behind = shape * self.factor - ahead - Vec3.of(voxels.shape[:3])
        if not any((*ahead, *behind)):
            return voxels
        return np.pad(voxels, [*zip(ahead, behind, strict=True), (0, 0)], mode="edge")

    def are_whole(self, start: Vec3[int], shape: Vec3[int]) -> NDArray[np.bool_]:
        """Return a mask (x, y, z, 1) of the voxels of a box whose windows are not cut."""
        masks = []
        for axis in range(3):
            first = (start[axis] + np.arange(shape[axis])) * self.factor[axis] + self.offset[axis]
            masks.append((first >= 0) & (first + self.factor[axis] <= self.fine.grid.shape[axis]))
        x, y, z = masks
        whole: NDArray[np.bool_] = x[:, None, None, None] & y[:, None, None] & z[:, None]
        return whole


def pair_of(fine: Mip, coarse: Mip) -> tuple[LevelPair, ...] | str:
    """Return how the voxels of two levels may belong together, or why no voxel has a window.

    Returns
    -------
    tuple of LevelPair
        In the world, and from the first voxel on where this differs.
    """
    ratios = coarse.grid.steps_from(fine.grid.resolution_nm)
    factor = ratios.map(_factor, fine.grid.shape, coarse.grid.shape)
    if min(factor) == 0 or max(factor) == 1:
        times = " x ".join(f"{float(ratio):g}" for ratio in ratios)
        return f"its voxels are {times} times as large, and no voxels of level {fine.level} make one of them"
    from_first = LevelPair(fine, coarse, factor, Vec3(0, 0, 0))
    if fine.refusal or coarse.refusal:  # levels that are not at whole voxels
        return (from_first,)
    in_world = LevelPair(fine, coarse, factor, coarse.grid.start * factor - fine.grid.start)
    if not in_world.offset.map(abs).all_lt(factor):  # it is a level of a part of the volume
        return (in_world,)
    return (in_world,) if in_world == from_first else (in_world, from_first)


def _factor(ratio: Fraction, fine: int, coarse: int) -> int:
    """Return the size of a window along an axis; 0 if there is none.

    Programs that divide the numbers of voxels write ratios such as 75 / 38 of a level that was halved.
    """
    nearest = round(ratio)
    if ratio == nearest or (nearest > 0 and coarse in (fine // nearest, -(-fine // nearest))):
        return nearest
    return 0


def corner_of(start: Sequence[int], stop: Sequence[int], voxels: int, at_end: bool) -> tuple[Vec3[int], Vec3[int]]:
    """Return the first voxel and the shape of a part of a box that has no more voxels than given.

    Parameters
    ----------
    start, stop : tuple of 3 int
        The box.
    voxels : int
        Most voxels of the part.
    at_end : bool
        Take the last corner of the box, not the first.

    Examples
    --------
    >>> corner_of((0, 0, 0), (64, 64, 16), 8192, at_end=True)
    ((32, 48, 0), (32, 16, 16))
    """
    first, after = Vec3.of(start), Vec3.of(stop)
    shape = list(after - first)
    while np.prod(shape, dtype=object) > max(1, voxels):
        longest = max(range(3), key=lambda axis: (shape[axis], axis))
        shape[longest] = -(-shape[longest] // 2)
    size = Vec3.of(shape)
    return (after - size if at_end else first), size
