"""File names of slice exports."""

from __future__ import annotations

from typing import Any

import pytest

from imagery_dask.export.images.slice_files import SliceNames


def names(axis: int = 2, start: Any = None, tiled: bool = False, shape: Any = (100, 80, 40)) -> SliceNames:
    return SliceNames("em", axis, shape, start, tiled, "png")


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (names(), "em_slice_3_imagery.png"),
        (names(shape=(9, 9, 1)), "em_imagery.png"),
        (names(tiled=True), "em_slice_3_imagery_y20_x10.png"),
        (names(0, tiled=True), "em_slice_3_imagery_z20_y10.png"),
        (names(1, tiled=True), "em_slice_3_imagery_z20_x10.png"),
        (names(start=(0, 0, 21_357)), "em_imagery_z021360.png"),
        (names(1, (0, 7, 0)), "em_imagery_y000010.png"),
        (names(start=(-15, 5, 9_999_990), tiled=True), "em_imagery_z09999993_y000025_x-000005.png"),
        (names(start=(0, 0, -5)), "em_imagery_000003_z-000002.png"),
        (names(start=(0, 0, 5), shape=(9, 9, 1)), "em_imagery_z000008.png"),
    ],
)
def test_names_have_slice_tile_and_position(called: SliceNames, expected: str) -> None:
    index = 3 if called.shape[called.axis] > 1 or called.start else 0
    assert called.name("imagery", index, (10, 20)) == expected


@pytest.mark.parametrize("first", [0, 7, 999_995, -5, -20, -1_000_005])
def test_absolute_names_sort_in_the_order_of_slices(first: int) -> None:
    called = names(start=(0, 0, first), shape=(9, 9, 20))
    listed = [called.name("imagery", index) for index in range(20)]
    assert sorted(listed) == listed
    assert [int(name.rpartition("_z")[2].removesuffix(".png")) for name in listed] == list(range(first, first + 20))


@pytest.mark.parametrize("count", [1, 2, 10, 11, 100, 101, 1001])
def test_padded_names_sort_in_the_order_of_slices_and_tiles(count: int) -> None:
    called = SliceNames("em", 2, (2000, 300, count), None, True, "png", padded=True)
    listed = [
        called.name("imagery", index, (column, row))
        for index in range(count)
        for row in range(0, 300, 64)
        for column in range(0, 2000, 512)
    ]
    assert sorted(listed) == listed
    assert len(set(listed)) == len(listed)
    if count == 1001:
        assert listed[:2] == ["em_slice_0000_imagery_y000_x0000.png", "em_slice_0000_imagery_y000_x0512.png"]
    if count == 10:  # no more digits than the last slice has
        assert listed[0] == "em_slice_0_imagery_y000_x0000.png"
