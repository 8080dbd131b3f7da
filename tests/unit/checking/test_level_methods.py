from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.volumes import coordinate_volume

from imagery_dask import kernels
from imagery_dask.checking.level_methods import Tally, compare
from imagery_dask.geometry.vec import Vec3

WHOLE = np.ones((1, 1, 1, 1), bool)
OF_IDS = ["mode", "mode of ids that are not 0", "striding", "nearest"]


def noise(shape: tuple[int, ...], dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(1).integers(0, 256, (*shape, 1)).astype(dtype)


def ids(shape: tuple[int, ...]) -> NDArray[np.uint64]:
    known = np.array([0, 2**60, 2**60 + 1, 2**63 + 1], np.uint64)
    return known[np.random.default_rng(3).integers(0, 4, (*shape, 1))]


def differing(fine: Any, coarse: Any, factor: Any, are_ids: bool, **options: Any) -> dict[str, int]:
    found = compare(fine, np.asarray(coarse), Vec3.of(factor), WHOLE, are_ids, **options)
    assert {tally.voxels + tally.cut for tally in found.values()} == {coarse.size}
    return {name: tally.differing for name, tally in found.items()}


@pytest.mark.parametrize("factor", [(2, 2, 1), (2, 2, 2), (4, 4, 1), (3, 3, 3), (1, 1, 2)])
def test_each_method_is_told_from_the_others(factor: tuple[int, int, int]) -> None:
    fine = ids((24, 24, 12))
    last = fine[tuple(slice(n // 2, None, n) for n in factor)]
    windows = fine.reshape(24 // factor[0], factor[0], 24 // factor[1], factor[1], 12 // factor[2], factor[2])
    windows = windows.transpose(0, 2, 4, 1, 3, 5).reshape(*last.shape, -1)
    mode = np.zeros(last.shape, np.uint64)
    for at in np.ndindex(last.shape):
        values, counts = np.unique(windows[at], return_counts=True)
        mode[at] = values[np.flatnonzero(counts == counts.max())[-1]]  # of the most frequent ones, the largest
    made = {"mode": mode, "striding": fine[tuple(slice(None, None, n) for n in factor)], "nearest": last}
    for name, coarse in made.items():
        found = differing(fine, coarse, factor, are_ids=True)
        assert list(found) == OF_IDS
        assert found[name] == 0
        if factor[0] > 1:  # of two voxels, each is a mode
            assert min(count for other, count in found.items() if other in made and other != name) > 0
    wrong = mode + np.uint64(1000)
    assert differing(fine, wrong, factor, are_ids=True)["striding"] == wrong.size


def test_ids_that_differ_by_one_beyond_floats_are_different() -> None:
    fine = np.full((4, 4, 2, 1), 2**60, np.uint64)
    coarse = np.full((2, 2, 1, 1), 2**60 + 1, np.uint64)
    assert set(differing(fine, coarse, (2, 2, 2), are_ids=True).values()) == {4}
    assert set(differing(fine, coarse - np.uint64(1), (2, 2, 2), are_ids=True).values()) == {0}


def test_the_mode_may_ignore_background() -> None:
    fine = np.zeros((4, 2, 1, 1), np.uint64)
    fine[3, 1] = 2**60
    coarse = np.array([0, 2**60], np.uint64).reshape(2, 1, 1, 1)
    assert differing(fine, coarse, (2, 2, 1), are_ids=True) == {
        "mode": 1, "mode of ids that are not 0": 0, "striding": 1, "nearest": 0
    }  # fmt: skip
    assert differing(fine, coarse * np.uint64(0), (2, 2, 1), are_ids=True)["mode of ids that are not 0"] == 1


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("rounding", [np.floor, np.rint, np.ceil])
@pytest.mark.parametrize("factor", [(2, 2, 1), (2, 2, 2), (3, 3, 1)])
def test_means_may_be_rounded_in_any_way(dtype: str, rounding: Any, factor: Any) -> None:
    fine = noise((12, 12, 6), "int8" if dtype == "int8" else "uint8").astype(dtype)
    shape = [n // by for n, by in zip((12, 12, 6), factor, strict=True)]
    parts = fine.reshape(shape[0], factor[0], shape[1], factor[1], shape[2], factor[2], 1).astype(float)
    mean = parts.mean(axis=(1, 3, 5))
    coarse = (mean if dtype == "float32" else rounding(mean)).astype(dtype)
    found = differing(fine, coarse, factor, are_ids=False)
    assert found["mean"] == 0
    assert found["striding"] > coarse.size / 2
    assert ("mode" in found) == (dtype != "float32")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "float32"])
@pytest.mark.parametrize("factor", [(2, 2, 1), (2, 2, 2), (3, 3, 3)])
def test_medians_of_numpy_are_medians(dtype: str, factor: Any) -> None:
    fine = noise((12, 12, 6), "int8" if dtype == "int8" else "uint8").astype(dtype)
    shape = [n // by for n, by in zip((12, 12, 6), factor, strict=True)]
    parts = fine.reshape(shape[0], factor[0], shape[1], factor[1], shape[2], factor[2], 1)
    coarse = np.median(parts, axis=(1, 3, 5)).astype(dtype)
    found = differing(fine, coarse, factor, are_ids=False)
    assert found["median"] == 0
    assert min(found["mean"], found["striding"]) > coarse.size / 4


def test_floats_that_are_no_numbers_are_equal_to_themselves() -> None:
    fine = noise((8, 8, 4), "float32")
    fine[0], fine[3, 3] = np.nan, np.inf
    for coarse in (kernels.downsample(fine, (2, 2, 2), labels=False), fine[::2, ::2, ::2]):
        assert min(differing(fine, coarse, (2, 2, 2), are_ids=False).values()) == 0


def test_masks_have_modes_and_no_means() -> None:
    fine = noise((8, 8, 4)) > 128
    found = differing(fine, kernels.downsample(fine, (2, 2, 2), labels=True), (2, 2, 2), are_ids=False)
    assert found.keys() == {"mode", "striding", "nearest"}
    assert found["mode"] == 0


def test_loss_is_tolerated_of_imagery_only() -> None:
    fine = noise((16, 16, 4), "uint16") + np.uint16(100)
    mean = kernels.downsample(fine, (2, 2, 1), labels=False)
    lossy = mean + np.random.default_rng(2).integers(0, 10, mean.shape).astype(np.uint16)
    assert differing(fine, lossy, (2, 2, 1), are_ids=False)["mean"] > lossy.size / 2
    assert differing(fine, lossy, (2, 2, 1), are_ids=False, is_lossy=True)["mean"] == 0
    large = fine.astype(np.uint64)
    found = differing(large, large[::2, ::2] + np.uint64(1), (2, 2, 1), are_ids=True, is_lossy=True)
    assert found["striding"] == lossy.size


def test_voxels_of_cut_windows_are_counted_apart() -> None:
    fine = coordinate_volume((8, 8, 4))[..., np.newaxis]
    coarse = fine[::2, ::2].copy()
    coarse[-1] += np.uint64(1)
    are_whole = np.ones((4, 1, 1, 1), bool)
    are_whole[-1] = False
    found = compare(fine, coarse, Vec3(2, 2, 1), are_whole, are_ids=True)
    assert found["striding"] == Tally(48, 0, 16, 16)
    assert (found["nearest"].differing, found["nearest"].cut_differing) == (48, 16)


def test_tallies_are_added() -> None:
    tally = Tally(1, 2, 3, 4, 5.0)
    tally.add(Tally(10, 20, 30, 40, 50.0))
    assert tally == Tally(11, 22, 33, 44, 55.0)
