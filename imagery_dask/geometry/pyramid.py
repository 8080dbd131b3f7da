"""Levels of a pyramid: the downsampling step of each level, and where its voxels are.

A level halves the axes along which voxels are finest, so that voxels become nearly isotropic, as in mips of EM
volumes::

    8 x 8 x 40 nm  --(2, 2, 1)-->  16 x 16 x 40  --(2, 2, 1)-->  32 x 32 x 40  --(2, 2, 2)-->  64 x 64 x 80

The first voxel of a level covers the first voxels of the level above, wherever the region begins. The two centres
differ by half the difference of the voxel sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imagery_dask.geometry.grid import XYZ
from imagery_dask.geometry.vec import Vec3
from imagery_dask.validate import whole_number

__all__ = ["Level", "Levels", "checked_levels", "pyramid"]

Triple = tuple[float, float, float]
Levels = int | Literal["auto", "source"]

# Largest extent, along any axis, of the coarsest level of an automatic pyramid; a viewer loads it in one request.
AUTO_VOXELS = 512
MOST_LEVELS = 32


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a pyramid.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels along x, y, z.
    step : tuple of 3 int
        Voxels of the level above that become one voxel, 1 or 2 along each axis; all 1 for the first level.
    resolution_nm : tuple of 3 float or None
        Voxel size; None if it is not known.
    translation_nm : tuple of 3 float
        Centre of the first voxel (in voxels of the first level if `resolution_nm` is None).
    """

    shape: Vec3[int]
    step: Vec3[int]
    resolution_nm: Vec3[float] | None
    translation_nm: Vec3[float]


def checked_levels(levels: object) -> Levels:
    """Return a valid number of levels, ``"auto"`` or ``"source"``.

    Raises
    ------
    ValueError
        If `levels` is something else.
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
    """Return the levels of a region; the first is the region itself.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels of the region.
    resolution_nm : tuple of 3 float or None
        Voxel size; None for isotropic voxels.
    translation_nm : tuple of 3 float
        Centre of the first voxel.
    levels : int or "auto"
        Number of levels. ``"auto"`` adds levels until the last one is at most 512 voxels long along every axis. The
        result has fewer levels if a level is reduced to one voxel.

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
    """Return 2 for axes longer than one voxel whose voxel size is less than twice the finest, 1 for the others."""
    finest = min(voxel[axis] for axis in range(3) if shape[axis] > 1)
    return shape.map(lambda length, size: 2 if length > 1 and size < 2 * finest else 1, voxel)


def _centre(centre: float, step: int, voxel: float) -> float:
    """Centre of the first voxel of the next level, along one axis."""
    return centre + (step - 1) / 2 * voxel
