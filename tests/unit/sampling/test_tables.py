"""Points of data frames and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from imagery_dask.sampling.tables import points_of

POINTS = np.array([[1.0, 2.0, 3.0], [4.0, 5.5, 6.0]])


@pytest.mark.parametrize(
    ("table", "position"),
    [
        (POINTS, None),
        (POINTS.tolist(), None),
        (pd.DataFrame(POINTS, columns=["x", "y", "z"]), None),
        (pd.DataFrame({"pt_position": POINTS.tolist()}), None),
        (pd.DataFrame(POINTS, columns=["pt_position_x", "pt_position_y", "pt_position_z"]), None),
        (pd.DataFrame({"at": list(POINTS)}), "at"),
        (pd.DataFrame(POINTS, columns=["at_x", "at_y", "at_z"]), "at"),
        (pd.DataFrame(POINTS, columns=["a", "b", "c"]), ("a", "b", "c")),
    ],
)
def test_positions_are_found(table: Any, position: Any) -> None:
    np.testing.assert_array_equal(points_of(table, position), POINTS)


@pytest.mark.parametrize(
    ("table", "position", "message"),
    [
        (POINTS[:, :2], None, "n x 3"),
        (POINTS, "x", "points are an array"),
        (pd.DataFrame({"a": [1]}), None, r"it has \['a'\]"),
        (pd.DataFrame({"a": [1]}), ("a", "b", "c"), "no columns of positions"),
        (pd.DataFrame({"x": [1.0], "y": [np.nan], "z": [1.0]}), None, "finite"),
    ],
)
def test_others_are_refused(table: Any, position: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        points_of(table, position)


def test_no_points_are_none() -> None:
    assert points_of([]).shape == (0, 3)
    assert points_of(pd.DataFrame({"x": [], "y": [], "z": []})).shape == (0, 3)
