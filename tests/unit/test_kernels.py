"""Block functions agree with numpy: exact for ids, equal in both memory orders, also for empty blocks."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from imagery_dask import kernels

ROOT = 864691135000000001
DTYPES = ["uint8", "uint16", "uint32", "uint64", "int64", "float32"]


def block(shape: tuple[int, ...], dtype: str = "uint64", order: Any = "F") -> np.ndarray:
    """Return distinct values; those of 64 bits exceed 2**53."""
    count = int(np.prod(shape))
    first = ROOT if np.dtype(dtype).itemsize == 8 else 0
    values = np.arange(count, dtype=np.uint64) + np.uint64(first)
    return np.asarray(values.astype(dtype).reshape(shape), order=order)


def take(array: np.ndarray, indices: Any) -> np.ndarray:
    for axis, index in enumerate(indices):
        array = np.take(array, index, axis=axis)
    return array


INDICES = [
    ([0, 0, 1, 1, 2, 2, 3, 3], [0, 2, 4], [0, 1, 2]),  # finer, coarser, equal
    ([1, 2], [0, 1, 2, 3, 4], [2]),  # a run, the whole axis, one index
    ([3, 1, 2, 0], [4, 4], [1, 0, 2]),
    ([], [0, 1], [0]),
    ([0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2]),
]


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_gather_equals_numpy_take(indices: Any, dtype: str, order: str, channels: tuple[int, ...]) -> None:
    source = block((4, 5, 3, *channels), dtype, order)
    index = [np.array(part, dtype=np.int64) for part in indices]
    result = kernels.gather(source, index)
    assert result.dtype == source.dtype
    np.testing.assert_array_equal(result, take(source, index))
    np.testing.assert_array_equal(result, source[np.ix_(*index)])


def test_gather_of_ids_is_exact_where_floats_are_not() -> None:
    source = block((4, 4, 4))
    result = kernels.gather(source, [np.repeat(np.arange(4), 2)] * 3)
    assert set(np.unique(result).tolist()) == set(source.ravel().tolist())
    assert len(np.unique(source.astype(np.float64))) < 64  # as floats, ids would merge


@pytest.mark.parametrize("order", ["F", "C"])
def test_gather_and_interpolation_keep_the_memory_order(order: str) -> None:
    source = block((4, 5, 3, 1), "uint16", order)
    index = [np.array([0, 0, 1, 3]), np.array([1, 1, 4]), np.array([0, 2, 2])]
    taps = [kernels.linear_taps(0, 6, Fraction(1, 2))] * 3
    for result in (kernels.gather(source, index), kernels.interpolate(source, taps)):
        assert result.flags.f_contiguous == (order == "F")
        assert result.flags.c_contiguous == (order == "C")


def test_linear_taps_have_known_values() -> None:
    left, weight = kernels.linear_taps(0, 4, Fraction(1, 2))
    assert left.tolist() == [-1, 0, 0, 1]
    assert weight.tolist() == [0.75, 0.25, 0.75, 0.25]
    left, weight = kernels.linear_taps(-1, 3, Fraction(2))
    assert left.tolist() == [-2, 0, 2]
    assert weight.tolist() == [0.5, 0.5, 0.5]
    assert [part.size for part in kernels.linear_taps(3, 0, Fraction(2))] == [0, 0]


@pytest.mark.parametrize("order", ["F", "C"])
def test_interpolation_has_known_values(order: str) -> None:
    source = np.array([10, 20, 40], dtype=np.uint8).reshape(3, 1, 1, 1)
    same = (np.array([0]), np.array([0.0]))
    along_x = (np.array([-1, 0, 0, 1, 2]), np.array([0.75, 0.25, 0.5, 0.75, 0.25]))
    result = kernels.interpolate(np.asarray(source, order=order), [along_x, same, same])  # type: ignore[call-overload]
    assert result.dtype == np.uint8
    # Edge voxels are repeated beyond the edges; 12.5 is rounded to the even 12.
    assert result.ravel().tolist() == [10, 12, 15, 35, 40]


def test_interpolation_of_floats_is_not_rounded() -> None:
    source = np.array([0.0, 1.0], dtype=np.float32).reshape(2, 1, 1)
    same = (np.array([0]), np.array([0.0]))
    result = kernels.interpolate(source, [(np.array([0]), np.array([0.125])), same, same])
    assert result.dtype == np.float32
    assert result.ravel().tolist() == [0.125]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_interpolation_stays_within_the_limits_of_the_type(dtype: str) -> None:
    limits = np.iinfo(dtype)
    taps = [(np.array([0, 0]), np.array([0.0, 0.5])), *[(np.array([0]), np.array([0.0]))] * 2]
    for limit in (limits.min, limits.max):
        voxels = kernels.interpolate(np.full((2, 1, 1), limit, dtype), taps)
        assert voxels.ravel().tolist() == [limit, limit]


def test_interpolation_is_equal_in_both_memory_orders() -> None:
    source = np.random.default_rng(0).random((5, 6, 7, 2)).astype(np.float32)
    taps = [kernels.linear_taps(0, n, Fraction(7, 9)) for n in (6, 7, 8)]
    in_order = [kernels.interpolate(np.asarray(source, order=order), taps) for order in ("F", "C")]  # type: ignore[call-overload]
    np.testing.assert_array_equal(*in_order)


# ------------------------------------------------------------------------------------------------------ ids


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize(
    "ids",
    [
        [0, 7, ROOT, ROOT + 1, 2**63 - 1],
        [0, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1],
        [ROOT, ROOT, 2**64 - 1, 2**63, 1],
    ],
)
def test_ids_that_are_not_listed_become_zero(ids: list[int], order: Any) -> None:
    source = np.asarray(np.array(ids * 4, dtype=np.uint64).reshape(5, 2, 2, 1), order=order)
    before = source.copy()
    for keep in ([], [ids[1]], ids[2:4], [2**64 - 1], ids, [ROOT + 5], [0], [ids[1] + 1]):
        result = kernels.keep_ids(source, keep)
        assert result.dtype == np.uint64
        expected = np.where(np.isin(source, np.array(keep, dtype=np.uint64)), source, np.uint64(0))
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(source, before)  # a block may be shared and must not change


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int64"])
def test_listed_ids_that_the_type_cannot_hold_match_nothing(dtype: str) -> None:
    largest = int(np.iinfo(dtype).max)
    source = np.array([0, 1, 5, largest], dtype=dtype).reshape(4, 1, 1)
    # If they wrapped, 2**64 - 1, 2**64 - 5 and 2**32 + 1 would match voxels.
    result = kernels.keep_ids(source, [5, largest, largest + 1, largest + 2, 2**64 - 1, 2**64 - 5, 2**63])
    assert result.dtype == dtype
    assert result.ravel().tolist() == [0, 0, 5, largest]
    assert not kernels.keep_ids(source, [largest + 2]).any()


@pytest.mark.parametrize("shape", [(0, 3, 3, 1), (2, 0, 2)])
def test_empty_blocks_stay_empty(shape: tuple[int, ...]) -> None:
    source = np.zeros(shape, dtype=np.uint64)
    assert kernels.keep_ids(source, [ROOT]).shape == shape
    assert kernels.to_int64(source).shape == shape
    assert kernels.is_id(source, ROOT).shape == shape
    assert kernels.unique_ids(source).size == 0


@pytest.mark.parametrize("value", [0, 1, ROOT, 2**63 - 1])
def test_ids_that_fit_int64_are_converted_exactly(value: int) -> None:
    result = kernels.to_int64(np.full((2, 2, 2), value, dtype=np.uint64))
    assert result.dtype == np.int64
    assert set(result.ravel().tolist()) == {value}


@pytest.mark.parametrize("value", [2**63, 2**63 + 1, 2**64 - 1])
def test_ids_that_do_not_fit_int64_are_an_error(value: int) -> None:
    source = np.full((2, 2, 2), ROOT, dtype=np.uint64)
    source[1, 0, 1] = value
    with pytest.raises(OverflowError, match="convert_to_int64=False") as caught:
        kernels.to_int64(source)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "int64"])
def test_smaller_ids_always_fit_int64(dtype: str) -> None:
    source = np.array([0, np.iinfo(dtype).max], dtype=dtype)
    result = kernels.to_int64(source)
    assert result.dtype == np.int64
    assert result.tolist() == [0, int(np.iinfo(dtype).max)]


@pytest.mark.parametrize("root_id", [0, ROOT, 2**63 + 5, 2**64 - 1])
def test_is_id_compares_exactly(root_id: int) -> None:
    source = np.array([0, ROOT, ROOT + 1, 2**63 + 5, 2**64 - 1], dtype=np.uint64).reshape(5, 1, 1)
    result = kernels.is_id(source, root_id)
    assert result.dtype == bool
    assert result.ravel().tolist() == [value == root_id for value in source.ravel().tolist()]


def test_an_id_that_the_type_cannot_hold_matches_nothing() -> None:
    source = np.array([1, 255], dtype=np.uint8).reshape(2, 1, 1)
    for root_id in (256 + 1, ROOT, 2**64 - 1, -1):
        assert not kernels.is_id(source, root_id).any()


def test_unique_ids_are_sorted_and_exact() -> None:
    ids = [2**64 - 1, ROOT, 0, ROOT + 1, ROOT, 2**63]
    result = kernels.unique_ids(np.array(ids, dtype=np.uint64).reshape(3, 2, 1))
    assert result.dtype == np.uint64
    assert result.tolist() == sorted(set(ids))


@pytest.mark.parametrize("order", ["C", "F"])
def test_one_sort_gives_the_masks_of_all_ids(order: str) -> None:
    ids = np.array([0, 2**53, 2**53 + 1, 2**63, 2**64 - 1], dtype=np.uint64)
    block = np.asarray(ids[np.random.default_rng(0).integers(0, 5, (7, 6, 5))], order=order)
    places = kernels.places_of(block)
    assert sorted(places) == ids.tolist()
    for value, at in places.items():
        mask = kernels.mask_at(at, block)
        np.testing.assert_array_equal(mask, block == np.uint64(value), strict=True)
        assert mask.flags.f_contiguous == (order == "F")
    assert kernels.places_of(block[:0]) == {}
    with pytest.raises(ValueError, match="order"):
        kernels.places_of(block[::2, ::2])


def test_remapping_is_exact_for_ids_that_a_float_would_merge() -> None:
    block = np.array([[2**63, 2**63 + 1], [0, 2**64 - 1]], dtype=np.uint64)
    stored = kernels.unique_ids(block)
    values = np.array([0, 2**60 + 1, 2**60, 5], dtype=np.uint64)
    expected = values[np.searchsorted(stored, block)]
    np.testing.assert_array_equal(kernels.remap(block.copy(), stored, values), expected, strict=True)


@pytest.mark.parametrize("order", ["F", "C", "not contiguous"])
@pytest.mark.parametrize("dtype", [np.uint64, np.uint32])
@pytest.mark.parametrize(
    "ids",
    [[0], [2**64 - 1], [0, 2**64 - 1, 2**64 - 2], [2**53, 2**53 + 1], [0, 2**60 + 1, 2**60 + 300], [1, 2**63], []],
    ids=str,
)
def test_ids_are_replaced_by_what_a_function_says_of_distinct_ones(ids: list[int], dtype: Any, order: str) -> None:
    ours = np.array([value & np.iinfo(dtype).max for value in ids], dtype=dtype)
    shape = (65, 33, 17, 1) if ids else (0, 3, 2, 1)
    whole = ours[np.random.default_rng(0).integers(0, len(ids), shape)] if ids else np.zeros(shape, dtype)
    block = whole.repeat(2, axis=0)[::2] if order == "not contiguous" else np.array(whole, order=order)
    asked = []

    def new_ids(distinct: Any) -> Any:
        asked.append(distinct.tolist())
        return distinct[::-1].copy()

    replaced = kernels.replace_ids(block, new_ids)
    distinct = sorted(set(ours.tolist()))
    names = dict(zip(distinct, reversed(distinct), strict=True))
    expected = [names[value] for value in whole.ravel().tolist()]
    assert (asked, replaced.ravel().tolist()) == ([distinct], expected)


def test_ids_are_replaced_in_memory_that_is_small_beside_the_block() -> None:
    random = np.random.default_rng(0)
    block = np.asfortranarray(random.integers(2**53, 2**53 + 5000, (128, 128, 64, 1), dtype=np.uint64))
    block[:9] = 0
    expected = np.where(block == 0, block, block + np.uint64(2**60))
    tracemalloc.start()
    try:
        replaced = kernels.replace_ids(block, lambda ids: np.where(ids == 0, ids, ids + np.uint64(2**60)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(replaced, expected, strict=True)
    assert peak < block.nbytes / 8


@pytest.mark.parametrize("shape", [(40, 5, 19), (17, 16, 33, 3), (1, 1, 1)])
def test_blocks_of_any_order_become_fortran_ordered(shape: tuple[int, ...]) -> None:
    whole = np.random.default_rng(0).integers(2**53, 2**60, shape, dtype=np.uint64)
    fortran = np.asfortranarray(whole)
    assert kernels.fortran_ordered(fortran) is fortran
    views = (whole, whole[1:], whole[:, :, ::2], fortran[:-1], fortran[::2], np.moveaxis(whole, 0, 1))
    for block in views:
        converted = kernels.fortran_ordered(block)
        assert converted.flags.f_contiguous
        np.testing.assert_array_equal(converted, block)
        assert kernels.digest_of(block) == kernels.digest_of(converted)
