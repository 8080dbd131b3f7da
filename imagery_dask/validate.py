"""Checks of arguments: each function returns the checked value, or raises an error that names the argument."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "axis", "choice", "expanded_path", "integer", "number", "numbers", "root_id", "sizes", "triple", "whole_number",
    "whole_triple",
]  # fmt: skip

AXES = ("x", "y", "z")
# float64 does not represent every integer above this.
LARGEST = 2.0**53

T = TypeVar("T")


def integer(name: str, value: object) -> int:
    """Return an int; refuse bools and floats.

    Raises
    ------
    TypeError
        When the value is not an integer.
    """
    index = _index(value)
    if index is None:
        raise TypeError(f"{name} must be a whole number; got {value!r}.")
    return index


def whole_number(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Return a whole number from `least` to `most`, both inclusive.

    Raises
    ------
    ValueError
        When the value is not an integer, or out of range.

    Examples
    --------
    >>> whole_number("tile", 512)
    512
    >>> whole_number("tile", 0)
    Traceback (most recent call last):
    ValueError: tile must be a whole number from 1; got 0.
    """
    index = _index(value)
    if index is None or index < least or (most is not None and index > most):
        up_to = "" if most is None else f" to {most}"
        raise ValueError(f"{name} must be a whole number from {least}{up_to}; got {value!r}.")
    return index


def number(name: str, value: Any, least: float | None = None, most: float | None = None) -> float:
    """Return a finite number from `least` to `most`, both inclusive; above 0 if `least` is None.

    An int stays an int, so that it is recorded as the caller wrote it.

    Raises
    ------
    ValueError
        When the value is not a number, or out of range.

    Examples
    --------
    >>> number("alpha", 0.2, 0, 1)
    0.2
    >>> number("block_mib", 0)
    Traceback (most recent call last):
    ValueError: block_mib must be a number above 0; got 0.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    low_enough = is_number and (value > 0 if least is None else value >= least)
    if not low_enough or not math.isfinite(value) or (most is not None and value > most):
        allowed = "above 0" if least is None else f"from {least}"
        allowed += "" if most is None else f" to {most}"
        raise ValueError(f"{name} must be a number {allowed}; got {value!r}.")
    return value if isinstance(value, (int, float)) else float(value)


def choice(name: str, value: object, allowed: Sequence[T]) -> T:
    """Return one of the allowed values.

    Raises
    ------
    ValueError
        When the value is not one of them; the message lists them.

    Examples
    --------
    >>> choice("codec", "lzma", ("zstd", "gzip"))
    Traceback (most recent call last):
    ValueError: codec must be 'zstd' or 'gzip'; got 'lzma'.
    """
    for option in allowed:
        # `True == 1`, and arrays are compared elementwise: compare the types first.
        same_kind = isinstance(value, type(option)) and isinstance(value, bool) == isinstance(option, bool)
        if same_kind and value == option:
            return option
    *first, last = (repr(option) for option in allowed)
    words = f"{', '.join(first)} or {last}" if first else last
    raise ValueError(f"{name} must be {words}; got {value!r}.")


def axis(name: str, value: object, letters: bool = True) -> int:
    """Return the index of an axis, given as 0, 1, 2 or (with `letters`) as ``"x"``, ``"y"``, ``"z"``.

    Raises
    ------
    ValueError
        When the value is not an axis.
    """
    if letters and isinstance(value, str) and value in AXES:
        return AXES.index(value)
    index = _index(value)
    if index not in (0, 1, 2):
        raise ValueError(f"{name} must be 0 (x), 1 (y) or 2 (z); got {value!r}.")
    return index


def expanded_path(path: str | os.PathLike[str]) -> str:
    """Return a local path with ``~`` and ``~user`` replaced by home folders.

    Raises
    ------
    ValueError
        When there is no such user: the path would be that of a folder named ``~user``.

    Examples
    --------
    >>> expanded_path("data/em"), expanded_path("./~nobody-here/em")
    ('data/em', './~nobody-here/em')
    """
    text = os.fspath(path)
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        user = text.partition("/")[0]
        raise ValueError(
            f"{text!r} begins with {user}, the home folder of a user whom this machine does not know; write './{text}' "
            "for a folder of that name."
        )
    return expanded


def triple(name: str, value: object, *, positive: bool = False) -> tuple[float, float, float]:
    """Return three finite numbers, along x, y and z, as a tuple.

    Raises
    ------
    TypeError
        When the value cannot be read as numbers.
    ValueError
        When it does not have three numbers, or one is not finite, 2**53 or more, or (with `positive`) not above 0.
    """
    import numpy as np

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


def whole_triple(name: str, value: object, least: int | None = 1) -> tuple[int, int, int]:
    """Return three whole numbers, along x, y and z, as a tuple; each is at least `least` (None: no limit).

    Raises
    ------
    ValueError
        When the value is not three whole numbers, or one is too small.

    Examples
    --------
    >>> whole_triple("chunks", [64, 64, 0])
    Traceback (most recent call last):
    ValueError: chunks must be three whole numbers from 1 (x, y, z); got [64, 64, 0].
    """
    import numpy as np

    array = np.asarray(value)
    whole = array.shape == (3,) and np.issubdtype(array.dtype, np.integer)
    if not whole or (least is not None and not (array >= least).all()):
        allowed = "" if least is None else f" from {least}"
        raise ValueError(f"{name} must be three whole numbers{allowed} (x, y, z); got {value!r}.")
    x, y, z = array.tolist()
    return (x, y, z)


def sizes(name: str, value: object, whole: bool = False) -> tuple[float, float, float]:
    """Return a size along x, y, z from 2 positive numbers (the size along z is then 1) or 3.

    Raises
    ------
    TypeError
        When the value cannot be read as numbers.
    ValueError
        When it is not 2 or 3 positive numbers, or (with `whole`) one is not whole.
    """
    import numpy as np

    array = numbers(name, value, "2 or 3 numbers")
    if array.shape == (2,):
        array = np.append(array, 1)
    elif array.shape != (3,):
        raise ValueError(f"{name} must be 2 or 3 numbers; got {value!r}.")
    size = triple(name, array, positive=True)
    if whole and any(n != math.floor(n) for n in size):
        raise ValueError(f"{name} must be whole numbers of pixels; got {value!r}.")
    return size


def numbers(name: str, value: object, expected: str) -> NDArray[np.float64]:
    """Return a float64 array of any shape; `expected` completes the error message "must be ...".

    Raises
    ------
    TypeError
        When the value cannot be read as numbers.
    """
    import numpy as np

    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be {expected}; got {value!r}.") from error


def root_id(name: str, value: Any) -> int:
    """Return an id from 0 to 2**64 - 1.

    Raises
    ------
    TypeError
        When the value is not an integer: a float has already rounded ids above 2**53.
    ValueError
        When it is a bool or out of range.
    """
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be integers; got {value!r} ({type(value).__name__}). Ids exceed 2**53: a float has already "
            "rounded them."
        ) from None
    if isinstance(value, bool) or not 0 <= index < 2**64:
        raise ValueError(f"{name} must be integers from 0 to 2**64 - 1; got {value!r}.")
    return index


def _index(value: Any) -> int | None:
    """Return the value as an int, or None if it is not an integer."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
