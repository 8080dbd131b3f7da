"""Levels of a pyramid: how each is made from the one above it, and where its voxels are.

A level halves the axes along which voxels are finest, so that they become near isotropic, as mips of EM volumes do::

    8 x 8 x 40 nm  --(2, 2, 1)-->  16 x 16 x 40  --(2, 2, 1)-->  32 x 32 x 40  --(2, 2, 2)-->  64 x 64 x 80

The first voxel of a level covers the first voxels of the level above, wherever the region begins: its centre lies half
of the difference of their sizes further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from imagery_dask.geometry.grid import XYZ
from imagery_dask.geometry.vec import Vec3
from imagery_dask.validate import whole_number

__all__ = ["Level", "Levels", "checked_levels", "pyramid"]

Triple = tuple[float, float, float]
Levels = int | Literal["auto", "source"]

# The coarsest level of an automatic pyramid is at most so long along each axis: a viewer loads it at a glance.
AUTO_VOXELS = 512
MOST_LEVELS = 32


@dataclass(frozen=True, slots=True)
class Level:
    """One level.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels along x, y, z.
    step : tuple of 3 int
        Voxels of the level above that become one voxel, 1 or 2 along each axis; all 1 for the first level.
    resolution_nm : tuple of 3 float or None
        Voxel size; None where nothing is known of the world.
    translation_nm : tuple of 3 float
        Centre of the first voxel (in voxels of the first level where `resolution_nm` is None).
    """

    shape: Vec3[int]
    step: Vec3[int]
    resolution_nm: Vec3[float] | None
    translation_nm: Vec3[float]


def checked_levels(levels: Any) -> Levels:
    """Give the number of levels that an argument means, ``"auto"`` or ``"source"``.

    Raises
    ------
    ValueError
        For anything else.
    """
    if isinstance(levels, str) and levels in ("auto", "source"):
        return levels  # type: ignore[return-value]
    try:
        return whole_number("levels", levels, 1, MOST_LEVELS)
    except ValueError:
        raise ValueError(
            f"levels must be 'auto', 'source' or a whole number from 1 to {MOST_LEVELS}; got {levels!r}."
        ) from None


def pyramid(
    shape: XYZ, resolution_nm: Triple | None, translation_nm: Triple, levels: int | Literal["auto"]
) -> tuple[Level, ...]:
    """Levels of a region, the region itself first.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels of the region.
    resolution_nm : tuple of 3 float or None
        Voxel size; None takes voxels as isotropic.
    translation_nm : tuple of 3 float
        Centre of the first voxel.
    levels : int or "auto"
        How many; ``"auto"`` adds levels until none is longer than 512 voxels along any axis. There are fewer where
        nothing is left to halve.

    Examples
    --------
    >>> [level.shape for level in pyramid((4097, 2048, 100), (8, 8, 40), (4, 4, 20), "auto")]
    [(4097, 2048, 100), (2049, 1024, 100), (1025, 512, 100), (513, 256, 50), (257, 128, 25)]
    """
    voxel = Vec3(1.0, 1.0, 1.0) if resolution_nm is None else Vec3.of(resolution_nm)
    world = None if resolution_nm is None else voxel
    pyramid_levels = [Level(Vec3.of(shape), Vec3(1, 1, 1), world, Vec3.of(translation_nm))]
    while len(pyramid_levels) < (MOST_LEVELS if levels == "auto" else levels):
        above = pyramid_levels[-1]
        if max(above.shape) == 1 or (levels == "auto" and max(above.shape) <= AUTO_VOXELS):
            break
        step = _step(above.shape, voxel)
        centre = above.translation_nm.map(_centre, step, voxel)
        voxel = voxel * step
        world = None if resolution_nm is None else voxel
        pyramid_levels.append(Level(above.shape.ceil_div(step), step, world, centre))
    return tuple(pyramid_levels)


def _step(shape: Vec3[int], voxel: Vec3[float]) -> Vec3[int]:
    """Halve the axes whose voxels are less than twice the finest, among those that are longer than one voxel."""
    finest = min(voxel[axis] for axis in range(3) if shape[axis] > 1)
    return shape.map(lambda length, size: 2 if length > 1 and size < 2 * finest else 1, voxel)


def _centre(centre: float, step: int, voxel: float) -> float:
    """Centre of the first voxel of the next level: half the difference of the voxel sizes further."""
    return centre + (step - 1) / 2 * voxel
