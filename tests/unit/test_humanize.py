"""Readable times."""

from __future__ import annotations

import pytest

from imagery_dask.humanize import human_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.23, "0.23 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"), (3600, "1 h"),
        (3661, "1 h 1 min"), (90_061, "1 d 1 h"),
    ],
)  # fmt: skip
def test_times_have_two_units_at_most(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
