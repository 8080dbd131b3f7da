from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imagery_dask.checking.level_pairs import LevelPair, corner_of, pair_of
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.layer import Mip


def level(start: Any, shape: Any, resolution: Any = (8, 8, 40), number: int = 0) -> Mip:
    return Mip(number, str(number), VoxelGrid(start, shape, resolution), Vec3(32, 32, 16), "raw")


def pairs(fine: Mip, coarse: Mip) -> tuple[LevelPair, ...]:
    found = pair_of(fine, coarse)
    assert not isinstance(found, str)
    return found


def test_windows_lie_where_their_voxel_is() -> None:
    fine, coarse = level((64, -32, 16), (75, 70, 40)), level((32, -16, 16), (38, 35, 40), (16, 16, 40), 1)
    (pair,) = pairs(fine, coarse)
    assert (pair.factor, pair.offset) == ((2, 2, 1), (0, 0, 0))
    start, shape = Vec3(36, 0, 0), Vec3(2, 35, 40)
    window = pair.window(start, shape)
    assert window == VoxelGrid((136, -32, 16), (3, 70, 40), (8, 8, 40))
    voxels = np.arange(3 * 70 * 40, dtype=np.uint64).reshape(3, 70, 40, 1)
    filled = pair.filled(voxels, start, shape)
    assert filled.shape == (4, 70, 40, 1)
    np.testing.assert_array_equal(filled[:3], voxels)
    np.testing.assert_array_equal(filled[3], voxels[2])
    assert pair.are_whole(start, shape)[:, 0, 0, 0].tolist() == [True, False]


def test_offsets_that_are_no_multiples_have_two_readings() -> None:
    fine, coarse = level((3, 4, 0), (20, 20, 10)), level((1, 2, 0), (10, 10, 10), (16, 16, 40), 1)
    in_world, from_first = pairs(fine, coarse)
    assert (in_world.offset, from_first.offset) == ((-1, 0, 0), (0, 0, 0))
    box = Vec3(0, 0, 0), Vec3(10, 10, 10)
    assert in_world.window(*box) == VoxelGrid((3, 4, 0), (19, 20, 10), (8, 8, 40))
    assert in_world.filled(np.ones((19, 20, 10, 1)), *box).shape == (20, 20, 10, 1)
    assert in_world.are_whole(*box)[:, 0, 0, 0].tolist() == [False, *[True] * 9]
    assert from_first.are_whole(*box).all()
    assert len(pairs(fine, replace(coarse, refusal="it begins at half a voxel"))) == 1


def test_a_level_of_a_part_of_the_volume_is_compared_with_that() -> None:
    (pair,) = pairs(level((0, 0, 0), (100, 100, 10)), level((20, 20, 0), (20, 20, 10), (16, 16, 40), 1))
    assert pair.window(Vec3(0, 0, 0), Vec3(20, 20, 10)) == VoxelGrid((40, 40, 0), (40, 40, 10), (8, 8, 40))
    (other,) = pairs(level((0, 0, 0), (100, 100, 10)), level((200, 20, 0), (20, 20, 10), (16, 16, 40), 1))
    assert other.window(Vec3(0, 0, 0), Vec3(20, 20, 10)) is None


@pytest.mark.parametrize(("resolution", "times"), [((12, 12, 40), "1.5 x 1.5 x 1"), ((8, 8, 40), "1 x 1 x 1")])
def test_levels_without_windows_say_why(resolution: Any, times: str) -> None:
    found = pair_of(level((0, 0, 0), (100, 100, 10)), level((0, 0, 0), (30, 30, 10), resolution, 1))
    assert isinstance(found, str)
    assert f"its voxels are {times} times as large" in found


def test_voxel_sizes_from_numbers_of_voxels_are_those_of_windows() -> None:
    size = 8 * 75 / 38
    (pair,) = pairs(level((0, 0, 0), (75, 75, 10)), level((0, 0, 0), (38, 38, 10), (size, size, 40), 1))
    assert pair.factor == (2, 2, 1)


def test_corners_hold_no_more_voxels_than_asked_for() -> None:
    for most in (1, 7, 100, 10**6):
        start, shape = corner_of((5, 5, 5), (38, 37, 21), most, at_end=False)
        assert start == (5, 5, 5)
        assert 0 < shape.prod() <= most
        last, same = corner_of((5, 5, 5), (38, 37, 21), most, at_end=True)
        assert (last + same, same) == ((38, 37, 21), shape)
