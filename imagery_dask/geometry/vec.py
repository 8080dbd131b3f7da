"""Three values along x, y and z with elementwise arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["Vec3"]

T = TypeVar("T")
M = TypeVar("M")


class Vec3(NamedTuple, Generic[T]):
    """Three values along x, y and z: a tuple whose arithmetic is elementwise.

    Operands are tuples or lists of three values, or one number for all axes. numpy treats a `Vec3` as a sequence, like
    every tuple. Integers stay Python integers, which do not overflow; fractions stay exact. ``==``, ``<``, hash, repr
    and JSON are those of the plain tuple; `all_le` and `all_lt` compare along every axis.

    Examples
    --------
    >>> start, stop = Vec3(10, 20, 0), Vec3(300, 148, 64)
    >>> stop - start, start + 2 * Vec3(1, 1, 0)
    ((290, 128, 64), (12, 22, 0))
    >>> (stop - start).ceil_div((128, 128, 64))
    (3, 1, 1)
    >>> stop.prod(), stop.zyx, stop.y
    (2841600, (64, 148, 300), 148)
    >>> start.maximum(12), start.all_le(stop), stop == (300, 148, 64)
    ((12, 20, 12), True, True)
    >>> Vec3.of([1.0, 2.5, 3.0]).map(int)
    (1, 2, 3)
    """

    x: T
    y: T
    z: T

    @classmethod
    def of(cls, values: Iterable[M]) -> Vec3[M]:
        """Return the three values of an iterable as a `Vec3`."""
        x, y, z = values
        return Vec3(x, y, z)

    def map(self, function: Callable[..., M], *others: Iterable[Any]) -> Vec3[M]:
        """Return ``function(value, *values_of_others)`` along each axis."""
        along_x, along_y, along_z = zip(self, *others, strict=True)
        return Vec3(function(*along_x), function(*along_y), function(*along_z))

    @property
    def zyx(self) -> Vec3[T]:
        """The values in the order z, y, x."""
        return Vec3(self[2], self[1], self[0])

    def prod(self, axis: None = None, dtype: object = None, out: None = None) -> T:
        """Return the product of the values; numpy's arguments make ``np.prod`` of a `Vec3` give the same."""
        del axis, dtype, out
        x, y, z = _numbers(self)
        return x * y * z  # type: ignore[no-any-return]

    def ceil_div(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:
        """Return quotients rounded up."""
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return Vec3(-(-x // a), -(-y // b), -(-z // c))

    def minimum(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:
        """Return the smaller value along each axis."""
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return Vec3(min(x, a), min(y, b), min(z, c))

    def maximum(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:
        """Return the larger value along each axis."""
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return Vec3(max(x, a), max(y, b), max(z, c))

    def all_le(self, other: T | tuple[T, T, T] | list[T]) -> bool:
        """Return True if no value is greater than the other's along its axis."""
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return bool(x <= a and y <= b and z <= c)

    def all_lt(self, other: T | tuple[T, T, T] | list[T]) -> bool:
        """Return True if every value is less than the other's along its axis."""
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return bool(x < a and y < b and z < c)

    def __add__(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:  # type: ignore[override]
        if not isinstance(other, OPERANDS):
            return NotImplemented
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return Vec3(x + a, y + b, z + c)

    def __sub__(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:
        if not isinstance(other, OPERANDS):
            return NotImplemented
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return Vec3(x - a, y - b, z - c)

    def __mul__(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:  # type: ignore[override]
        if not isinstance(other, OPERANDS):
            return NotImplemented
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return Vec3(x * a, y * b, z * c)

    def __floordiv__(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:
        if not isinstance(other, OPERANDS):
            return NotImplemented
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return Vec3(x // a, y // b, z // c)

    def __mod__(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:
        if not isinstance(other, OPERANDS):
            return NotImplemented
        (x, y, z), (a, b, c) = _numbers(self), _numbers(other)
        return Vec3(x % a, y % b, z % c)

    # Python calls these before tuple's own methods, so that ``tuple + Vec3`` adds and does not concatenate.
    def __radd__(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:
        return self + other

    def __rmul__(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:  # type: ignore[override]
        return self * other

    def __rsub__(self, other: T | tuple[T, T, T] | list[T]) -> Vec3[T]:
        return -self + other

    def __neg__(self) -> Vec3[T]:
        x, y, z = _numbers(self)
        return Vec3(-x, -y, -z)

    def __repr__(self) -> str:
        return f"({self[0]!r}, {self[1]!r}, {self[2]!r})"


OPERANDS = (tuple, list, int, float, Fraction)


def _numbers(operand: object) -> tuple[Any, Any, Any]:
    """Return an operand's values along x, y, z; a number is repeated."""
    if isinstance(operand, (tuple, list)):
        x, y, z = operand
        return x, y, z
    return operand, operand, operand
