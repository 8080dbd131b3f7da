"""``imagery-dask info``: readable sizes."""

from __future__ import annotations

import pytest

from imagery_dask.cli.cmd_info import human_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (131072, "131 kB"), (3.4e12, "3.4 TB"), (5e18, "5e+03 PB")],
)
def test_sizes_have_decimal_units(count: float, text: str) -> None:
    assert human_bytes(count) == text
