"""Levels of a pyramid: how each is made from the one above it, and where its voxels are.

A level halves the axes along which voxels are finest, so that they become near isotropic, as mips of EM volumes do::

    8 x 8 x 40 nm  --(2, 2, 1)-->  16 x 16 x 40  --(2, 2, 1)-->  32 x 32 x 40  --(2, 2, 2)-->  64 x 64 x 80

The first voxel of a level covers the first voxels of the level above, wherever the region begins: its centre lies half
of the difference of their sizes further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from imagery_dask.geometry.grid import XYZ
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

    shape: XYZ
    step: XYZ
    resolution_nm: Triple | None
    translation_nm: Triple


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
    found = [Level(shape, (1, 1, 1), resolution_nm, translation_nm)]
    size = resolution_nm or (1.0, 1.0, 1.0)
    while len(found) < (MOST_LEVELS if levels == "auto" else levels):
        last = found[-1]
        if max(last.shape) == 1 or (levels == "auto" and max(last.shape) <= AUTO_VOXELS):
            break
        step = _step(last.shape, size)
        size = _mul(size, step)
        below = tuple(-(-n // s) for n, s in zip(last.shape, step, strict=True))
        centre = tuple(
            c + (s - 1) / 2 * r
            for c, s, r in zip(last.translation_nm, step, last.resolution_nm or _over(size, step), strict=True)
        )
        found.append(Level(_three(below), step, None if resolution_nm is None else size, _three(centre)))
    return tuple(found)


def _step(shape: XYZ, size: Triple) -> XYZ:
    """Halve the axes whose voxels are less than twice the finest, among those that are longer than one voxel."""
    finest = min(s for s, n in zip(size, shape, strict=True) if n > 1)
    return _three([2 if n > 1 and s < 2 * finest else 1 for s, n in zip(size, shape, strict=True)])


def _mul(size: Triple, step: XYZ) -> Triple:
    return _three([r * s for r, s in zip(size, step, strict=True)])


def _over(size: Triple, step: XYZ) -> Triple:
    return _three([r / s for r, s in zip(size, step, strict=True)])


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    x, y, z = values
    return (x, y, z)
