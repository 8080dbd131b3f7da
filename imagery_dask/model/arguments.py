"""Validation of bounds: arrays and lists become exact values, or an error that names the argument."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from imagery_dask.geometry.grid import AXES
from imagery_dask.validate import LARGEST, numbers, triple

__all__ = ["Triple", "bounds_from_center", "check_region_names", "corners"]

Triple = tuple[float, float, float]
REGION_NAME = re.compile(r"\w[\w.-]*")
# Of most file systems, less what is added to names of temporary files.
LONGEST_NAME = 200


def bounds_from_center(ctr: ArrayLike, width: float = 1, height: float = 1, depth: float = 1) -> Any:
    """Return the bounds of a box around a center.

    Parameters
    ----------
    ctr : array-like of 3 numbers
        Center x, y, z, in voxels.
    width, height, depth : int
        Size of the box along x, y and z, in voxels.

    Returns
    -------
    numpy.ndarray, shape (2, 3)
        Lower (inclusive) and upper (exclusive) corner. With an even size the center is the first voxel of the upper
        half.

    Examples
    --------
    >>> bounds_from_center((100, 100, 10), 4, 4, 1)
    array([[ 98,  98,  10],
           [102, 102,  11]])
    """
    values = triple("ctr", ctr)
    center = np.asarray(values, dtype=np.int64 if _is_whole(ctr) else np.float64)
    size = np.asarray([width, height, depth])
    lower = center - size // 2
    return np.array([lower, lower + size])


def corners(value: object) -> tuple[Triple, Triple]:
    """Return the lower and upper corner of bounds given as 2 x 3 numbers."""
    if value is None:
        raise ValueError("bounds are needed: two corners, or a center together with bbox_size or image_size.")
    array = numbers("bounds", value, "two corners of three numbers")
    if array.shape == (3,):
        raise ValueError(
            f"bounds must be two corners (2 x 3); got {value!r}. To cut around a center, give bbox_size or image_size."
        )
    if array.shape != (2, 3):
        raise ValueError(f"bounds must be two corners (2 x 3); got {value!r} of shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"bounds must be finite; got {value!r}.")
    if (np.abs(array) >= LARGEST).any():
        raise ValueError(f"bounds must be below 2**53 voxels from the origin; got {value!r}.")
    inverted = [AXES[axis] for axis in range(3) if array[1, axis] <= array[0, axis]]
    if inverted:
        raise ValueError(
            f"bounds are inverted or empty along {', '.join(inverted)}: {value!r}. The first corner is the lower one, "
            "the second is exclusive."
        )
    (x0, y0, z0), (x1, y1, z1) = array.tolist()
    return (x0, y0, z0), (x1, y1, z1)


def check_region_names(names: Sequence[object]) -> None:
    """Raise ValueError unless these are names of folders, each of another one; the message names the first other."""
    if not names:
        raise ValueError("there are no regions: give at least one.")
    known: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not REGION_NAME.fullmatch(name) or name.endswith(".receipts"):
            raise ValueError(f"{name!r} names a folder and must be letters, digits, dots, dashes and underscores.")
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(f"{name[:20]!r}... has {len(name)} characters, and names a folder; take a shorter name.")
        # Some file systems do not distinguish capital letters.
        if (other := known.get(name.lower())) is not None:
            alike = "is the name of two regions" if name == other else f"and {other!r} are one folder on some disks"
            raise ValueError(f"{name!r} {alike}; choose another name.")
        known[name.lower()] = name


def _is_whole(value: object) -> bool:
    return bool(np.issubdtype(np.asarray(value).dtype, np.integer))
