"""Reading what callers pass: arrays, lists and numbers become exact values, or an error that names the argument."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imagery_dask.geometry.grid import AXES

__all__ = ["Triple", "bounds_from_center", "corners", "numbers", "root_id", "sizes", "triple", "whole_triple"]

Triple = tuple[float, float, float]
# Above, float64 does not tell neighbouring voxels apart.
LARGEST = 2.0**53


def bounds_from_center(ctr: ArrayLike, width: float = 1, height: float = 1, depth: float = 1) -> Any:
    """Bounds of a box around a center.

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


def triple(name: str, value: Any, *, positive: bool = False) -> Triple:
    """Three finite numbers as a tuple.

    Raises
    ------
    ValueError, TypeError
        When they are not three, not numbers, not finite, or (with `positive`) not above 0.
    """
    array = numbers(name, value, "three numbers x, y, z")
    if array.shape == (1, 3):
        array = array[0]
    if array.shape != (3,):
        raise ValueError(f"{name} must be three numbers x, y, z; got {value!r} of shape {array.shape}.")
    if not np.isfinite(array).all() or (np.abs(array) >= LARGEST).any():
        raise ValueError(f"{name} must be finite, and below 2**53; got {value!r}.")
    if positive and not (array > 0).all():
        raise ValueError(f"{name} must be positive; got {value!r}.")
    x, y, z = array.tolist()
    return (x, y, z)


def whole_triple(name: str, value: Any) -> tuple[int, int, int]:
    """Three whole numbers above 0 as a tuple.

    Raises
    ------
    ValueError
        When they are not.
    """
    values = np.asarray(value)
    if values.shape != (3,) or not np.issubdtype(values.dtype, np.integer) or not (values > 0).all():
        raise ValueError(f"{name} must be three whole numbers above 0 (x, y, z); got {value!r}.")
    x, y, z = (int(number) for number in values)
    return (x, y, z)


def sizes(name: str, value: Any, whole: bool = False) -> Triple:
    """Size along x, y, z from 2 numbers (one voxel in z) or 3, all positive."""
    array = numbers(name, value, "2 or 3 numbers")
    if array.shape == (2,):
        array = np.append(array, 1)
    elif array.shape != (3,):
        raise ValueError(f"{name} must be 2 or 3 numbers; got {value!r}.")
    size = triple(name, array, positive=True)
    if whole and any(n != math.floor(n) for n in size):
        raise ValueError(f"{name} is a number of pixels and must be whole; got {value!r}.")
    return (size[0], size[1], size[2])


def corners(value: Any) -> tuple[Triple, Triple]:
    """Lower and upper corner of bounds given as 2 x 3 numbers."""
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


def root_id(value: Any) -> int:
    """Id as an integer from 0 to 2**64 - 1; floats are refused, since they have rounded it already."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"root_ids must be integers; got {value!r} ({type(value).__name__}). Ids exceed 2**53: a float has already "
            "rounded them."
        ) from None
    if isinstance(value, (bool, np.bool_)) or not 0 <= number < 2**64:
        raise ValueError(f"root_ids must be integers from 0 to 2**64 - 1; got {value!r}.")
    return number


def numbers(name: str, value: Any, expected: str) -> NDArray[np.float64]:
    """Array of numbers, or an error that says what was expected."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be {expected}; got {value!r}.") from error


def _is_whole(value: Any) -> bool:
    return bool(np.issubdtype(np.asarray(value).dtype, np.integer))
