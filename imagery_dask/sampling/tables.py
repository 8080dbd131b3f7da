"""Tables of points: arrays and data frames as coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.validate import numbers

__all__ = ["points_of"]

# Columns that are looked for in a data frame: a position in one column, or its parts in three.
POSITIONS = ("pt_position", "position", "point")
PARTS = ("x", "y", "z")


def points_of(table: Any, position: str | Sequence[str] | None = None) -> NDArray[np.float64]:
    """Return the points of a table.

    Parameters
    ----------
    table : pandas.DataFrame or array-like, shape (n, 3)
        The table. A data frame has columns ``x``, ``y``, ``z``, or ``pt_position`` (a triple in each row), or
        ``pt_position_x``, ``pt_position_y``, ``pt_position_z``, as CAVE's tables have.
    position : str or sequence of 3 str, optional
        Column, beginning of the names of three columns, or three columns, where they have other names.

    Returns
    -------
    numpy.ndarray of float64, shape (n, 3)
        Points x, y, z.

    Raises
    ------
    ValueError, TypeError
        There are no such columns, or they do not hold finite numbers.
    """
    columns = getattr(table, "columns", None)
    if columns is None:
        if position is not None:
            raise ValueError(f"position={position!r} names columns, and points are an array; leave it out.")
        return _checked(numbers("points", table, "x, y, z of n points (n x 3)"), table)
    names = [position] if isinstance(position, str) else [*POSITIONS, ""] if position is None else []
    for name in names:
        if name in columns:
            return _checked(numbers(f"points[{name!r}]", list(table[name]), "three numbers x, y, z in each row"), table)
        parts = [f"{name}_{axis}" if name else axis for axis in PARTS]
        if all(part in columns for part in parts):
            return _of_columns(table, parts)
    if position is not None and not names:
        if len(position) == 3 and all(name in columns for name in position):
            return _of_columns(table, position)
        names = [str(name) for name in position]
    raise ValueError(
        f"points has no columns of positions {position or (*POSITIONS, PARTS)!r}: it has {list(columns)!r}. Name the "
        "column, or the three columns, with position=."
    )


def _of_columns(table: Any, names: Sequence[str]) -> NDArray[np.float64]:
    values = [numbers(f"points[{name!r}]", table[name], "a number in each row") for name in names]
    return _checked(np.stack(values, axis=1), table)


def _checked(points: NDArray[np.float64], table: Any) -> NDArray[np.float64]:
    points = points.reshape(0, 3) if points.size == 0 else points
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise ValueError(f"points must be finite x, y, z of n points (n x 3); got {table!r}.")
    return points
