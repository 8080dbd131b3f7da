"""`VoxelGrid` and the index maps: examples with known results, and refused values."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from imagery_dask.geometry.grid import VoxelGrid, edge_at_or_after, nearest_index, ratio, voxel_bounds, voxel_of

EM = (8.0, 8.0, 40.0)


def test_a_grid_has_stop_size_and_centres() -> None:
    grid = VoxelGrid((10, -20, 3), (4, 5, 6), EM)
    assert grid.stop == (14, -15, 9)
    assert grid.size == 120
    assert grid.translation_nm == (84.0, -156.0, 140.0)
    assert grid.centres_nm(1).tolist() == [-156.0, -148.0, -140.0, -132.0, -124.0]


def test_the_size_of_a_petascale_grid_does_not_overflow() -> None:
    assert VoxelGrid((0, 0, 0), (10**7, 10**7, 10**7), EM).size == 10**21


def test_fields_are_converted_to_python_numbers() -> None:
    grid = VoxelGrid(np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([8, 8, 40]))  # type: ignore[arg-type]
    assert grid == VoxelGrid((1, 2, 3), (4, 5, 6), EM)
    assert {type(value) for value in (*grid.start, *grid.shape)} == {int}
    assert {type(value) for value in grid.resolution_nm} == {float}


def test_a_grid_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        VoxelGrid((0, 0, 0), (1, 1, 1), EM).start = (1, 1, 1)  # type: ignore[misc]


def test_equal_grids_have_equal_hashes() -> None:
    grid = VoxelGrid((0, 0, 0), (1, 2, 3), EM)
    assert len({grid, VoxelGrid((0, 0, 0), (1, 2, 3), (8, 8, 40))}) == 1
    assert grid != VoxelGrid((0, 0, 0), (1, 2, 3), (8, 8, 41))
    assert grid != VoxelGrid((0, 0, 1), (1, 2, 3), EM)


@pytest.mark.parametrize("shape", [(-1, 1, 1), (1, 1, -2)])
def test_a_negative_shape_is_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match="shape cannot be negative") as caught:
        VoxelGrid((0, 0, 0), shape, EM)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("resolution", [(0, 8, 40), (-8, 8, 40), (math.nan, 8, 40), (8, math.inf, 40), (8, 40)])
def test_a_resolution_must_be_three_positive_numbers(resolution: Any) -> None:
    with pytest.raises(ValueError, match="three positive numbers in nm") as caught:
        VoxelGrid((0, 0, 0), (1, 1, 1), resolution)
    assert str(tuple(float(value) for value in resolution)) in str(caught.value)


def test_between_is_empty_if_the_stop_is_not_after_the_start() -> None:
    assert VoxelGrid.between((0, 5, 9), (3, 5, 2), EM).shape == (3, 0, 0)


def test_crop_gives_a_box_relative_to_the_start() -> None:
    assert VoxelGrid((10, 10, 10), (9, 9, 9), EM).crop((1, 2, -3), (4, 5, 6)) == VoxelGrid((11, 12, 7), (4, 5, 6), EM)


def test_intersection_and_contains_compare_boxes() -> None:
    volume, box = VoxelGrid((0, 0, 0), (10, 10, 10), EM), VoxelGrid((8, -3, 2), (5, 6, 3), EM)
    assert volume.intersection(box) == box.intersection(volume) == VoxelGrid((8, 0, 2), (2, 3, 3), EM)
    assert not volume.contains(box)
    assert volume.contains(volume.intersection(box))
    assert volume.intersection(VoxelGrid((20, 0, 0), (5, 5, 5), EM)).size == 0
    assert volume.contains(VoxelGrid((99, 99, 99), (0, 5, 5), EM))


def test_intersecting_grids_of_different_resolutions_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"convert with at\(\)") as caught:
        VoxelGrid((0, 0, 0), (1, 1, 1), EM).intersection(VoxelGrid((0, 0, 0), (1, 1, 1), (16, 16, 40)))
    assert "(8.0, 8.0, 40.0)" in str(caught.value)
    assert "(16.0, 16.0, 40.0)" in str(caught.value)


def test_at_gives_the_smallest_box_of_other_voxels() -> None:
    grid = VoxelGrid((10, -4, 0), (5, 3, 2), EM)
    # Coarser: voxels 10..14 lie in 5..7. Finer: the centre of voxel 10 is the edge between 20 and 21, a point of 21.
    assert grid.at((16, 16, 40)) == VoxelGrid((5, -2, 0), (3, 2, 2), (16, 16, 40))
    assert grid.at((4, 4, 20)) == VoxelGrid((21, -7, 1), (9, 5, 3), (4, 4, 20))
    assert grid.at(EM) == grid


def test_at_of_an_empty_grid_is_empty() -> None:
    assert VoxelGrid((3, 3, 3), (0, 4, 4), EM).at((16, 16, 40)).shape[0] == 0


def test_steps_from_gives_exact_fractions() -> None:
    grid = VoxelGrid((0, 0, 0), (1, 1, 1), (8.6, 9.7, 40))
    assert grid.steps_from((4.3, 4.3, 33.3)) == (Fraction(2), Fraction(97, 43), Fraction(400, 333))


def test_tiles_cover_the_grid_in_order() -> None:
    grid = VoxelGrid((1, 2, 3), (4, 4, 4), EM)
    assert list(grid.tiles((4, 9, 4))) == [grid]
    assert [tile.start for tile in grid.tiles((3, 4, 2))] == [(1, 2, 3), (4, 2, 3), (1, 2, 5), (4, 2, 5)]


def test_ratio_treats_floats_as_decimal_numbers() -> None:
    assert ratio(8.6, 4.3) == 2  # also in binary floats, where 0.3 / 0.1 is not 3
    assert ratio(0.3, 0.1) == 3
    assert ratio(1, 3) == Fraction(1, 3)


@pytest.mark.parametrize(
    ("start", "size", "step", "expected"),
    [
        (0, 6, Fraction(1, 2), [0, 0, 1, 1, 2, 2]),
        (-3, 6, Fraction(1, 2), [-2, -1, -1, 0, 0, 1]),
        (0, 4, Fraction(2), [1, 3, 5, 7]),
        (-2, 4, Fraction(3), [-5, -2, 1, 4]),
        (0, 5, Fraction(2, 3), [0, 1, 1, 2, 3]),
        (7, 3, Fraction(1), [7, 8, 9]),
        (7, 0, Fraction(1, 2), []),
    ],
)
def test_nearest_index_has_known_values(start: int, size: int, step: Fraction, expected: list[int]) -> None:
    index = nearest_index(start, size, step)
    assert index.dtype == np.int64
    assert index.tolist() == expected


def test_nearest_index_is_exact_for_a_ratio_with_many_digits() -> None:
    step = Fraction(10**20 + 1, 10**20)
    assert nearest_index(10**15, 2, step).tolist() == [10**15, 10**15 + 1]


@pytest.mark.parametrize(
    ("edge", "step", "expected"), [(64, Fraction(1, 2), 128), (64, Fraction(2), 32), (63, Fraction(2), 31),
                                   (-64, Fraction(1, 2), -128), (5, Fraction(3, 2), 3)],
)  # fmt: skip
def test_edge_at_or_after_has_known_values(edge: int, step: Fraction, expected: int) -> None:
    assert edge_at_or_after(edge, step) == expected
    assert nearest_index(expected - 1, 2, step).tolist()[0] < edge <= nearest_index(expected - 1, 2, step).tolist()[1]


@pytest.mark.parametrize(
    ("lower", "upper", "bounds_nm", "voxel_nm", "expected"),
    [
        ((10, 10, 1), (14, 14, 2), EM, EM, ((10, 10, 1), (14, 14, 2))),
        # Corners are truncated towards zero, not rounded down.
        ((-5, 5, -1), (-1, 9, 1), EM, (16, 16, 40), ((-2, 2, -1), (0, 4, 1))),
        # Fractions of corners are dropped before the conversion: 10.9 becomes 10.
        ((10.9, -10.9, 0.5), (13.2, 10.9, 2.999), EM, (4, 4, 40), ((20, -20, 0), (26, 20, 2))),
        ((1, 1, 1), (2, 2, 2), EM, (16, 16, 40), ((0, 0, 1), (1, 1, 2))),
        ((0, 0, 0), (1, 1, 1), EM, (16, 16, 40), ((0, 0, 0), (0, 0, 1))),
        ((3, 3, 3), (9, 9, 9), (4.3, 4.3, 9.7), (8.6, 8.6, 9.7), ((1, 1, 3), (4, 4, 9))),
    ],
)
def test_voxel_bounds_have_known_values(lower: Any, upper: Any, bounds_nm: Any, voxel_nm: Any, expected: Any) -> None:
    assert voxel_bounds(lower, upper, bounds_nm, voxel_nm) == expected


@pytest.mark.parametrize(
    ("value", "own_nm", "voxel_nm", "expected"),
    [
        (4400, 1, 4.4, 1000),
        (4399, 1, 4.4, 999),
        (30.8, 1, 4.4, 7),
        (-30.8, 1, 4.4, -7),
        (30.7, 1, 4.4, 6),
        # Coordinates that were computed in floats, and resolutions that were rounded to 16 digits.
        (3.3000000000000003, 1, 1.1, 3),
        (999.9999999999999, 8, 8, 1000),
        (999.9999, 8, 8, 999),
        (3000, 33.333333333333336, 100, 1000),
        (7 * 4.4, 1.0, 4.4, 7),
        (2**52, 4.4, 4.4, 2**52),
        (2**52, 4.4, 2.2, 2**53),
    ],
)
def test_a_coordinate_on_an_edge_is_that_voxel(value: float, own_nm: float, voxel_nm: float, expected: int) -> None:
    assert voxel_of(value, own_nm, voxel_nm) == expected


def test_ratios_of_rounded_resolutions_are_the_ratios_that_were_meant() -> None:
    assert ratio(200 / 3, 100 / 3) == 2
    assert ratio(100, 100 / 3) == 3
    assert ratio(4.3, 9.7) == Fraction(43, 97)
    assert ratio(1.00001, 1) == Fraction(100001, 100000)
    assert ratio(1e-4, 1e4) == Fraction(1, 10**8)
