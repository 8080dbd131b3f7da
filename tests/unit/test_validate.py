"""Validation returns exact values; its errors name the argument, the value and the allowed values."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from imagery_dask import validate

NOT_WHOLE = [True, np.True_, 1.0, np.float64(2), "1", None, [1], np.array([1, 2])]


@pytest.mark.parametrize("value", [1, np.uint64(2**63), np.int8(7), np.array(3)])
def test_whole_numbers_are_returned_as_int(value: Any) -> None:
    assert type(validate.whole_number("tile", value)) is int
    assert validate.whole_number("tile", value) == int(value)


@pytest.mark.parametrize("value", [*NOT_WHOLE, 0, -1, np.int8(-3)])
def test_values_that_are_not_whole_numbers_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="^tile must be a whole number from 1; got ") as caught:
        validate.whole_number("tile", value)
    assert repr(value) in str(caught.value)


def test_whole_numbers_out_of_range_are_refused() -> None:
    assert [validate.whole_number("quality", n, 0, 9) for n in (0, 9)] == [0, 9]
    for value in (-1, 10):
        with pytest.raises(ValueError, match=f"^quality must be a whole number from 0 to 9; got {value}.$"):
            validate.whole_number("quality", value, 0, 9)


@pytest.mark.parametrize("value", NOT_WHOLE)
def test_an_integer_of_another_type_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="^version must be a whole number; got "):
        validate.integer("version", value)
    assert validate.integer("version", np.int64(-3)) == -3


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int16(3), Fraction(1, 2)])
def test_numbers_are_returned_as_int_or_float(value: Any) -> None:
    assert validate.number("block_mib", value) == value
    assert type(validate.number("block_mib", value)) in (int, float)


def test_an_int_stays_an_int() -> None:
    assert type(validate.number("alpha", 1, 0, 1)) is int


@pytest.mark.parametrize("value", [0, -1, True, "1", None, np.nan, np.inf, 1j, [1], np.array([1.0])])
def test_values_that_are_not_numbers_in_range_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="^block_mib must be a number above 0; got "):
        validate.number("block_mib", value)
    with pytest.raises(ValueError, match="^alpha must be a number from 2 to 3; got "):
        validate.number("alpha", value, 2, 3)


def test_a_choice_must_equal_an_option_in_value_and_type() -> None:
    assert validate.choice("compress", None, ("gzip", None)) is None
    assert validate.choice("bits", 8, (8, 16)) == 8
    assert validate.choice("format", np.str_("png"), ("png",)) == "png"
    for value in ("lzma", ["gzip"], np.array(["gzip", "gzip"]), None, 1, True):
        with pytest.raises(ValueError, match="^compress must be 'gzip', 'br' or 1.0; got "):
            validate.choice("compress", value, ("gzip", "br", 1.0))
    with pytest.raises(ValueError, match="^bits must be 1; got True.$"):
        validate.choice("bits", True, (1,))


def test_an_axis_is_a_number_or_a_letter() -> None:
    assert [validate.axis("slice_axis", value) for value in (0, np.int64(1), 2, "x", "y", "z")] == [0, 1, 2, 0, 1, 2]
    for value in (3, -1, True, "w", "", None, 1.0, [0]):
        with pytest.raises(ValueError, match=r"^slice_axis must be 0 \(x\), 1 \(y\) or 2 \(z\); got "):
            validate.axis("slice_axis", value)


def test_a_triple_is_three_whole_numbers() -> None:
    assert validate.whole_triple("chunks", np.array([1, 2, 3], np.uint8)) == (1, 2, 3)
    assert all(type(n) is int for n in validate.whole_triple("chunks", np.array([1, 2, 3])))
    assert validate.whole_triple("voxel_offset", (-1, 0, 2**40), least=None) == (-1, 0, 2**40)
    for value in ((1, 2), (1, 2, 0), (1.0, 2.0, 3.0), (True, True, True), "123", None, 5):
        with pytest.raises(ValueError, match=r"^chunks must be three whole numbers from 1 \(x, y, z\); got "):
            validate.whole_triple("chunks", value)


def test_a_root_id_is_an_integer_of_64_bits() -> None:
    assert validate.root_id("root_ids", np.uint64(2**64 - 1)) == 2**64 - 1
    for value in (1.0, np.float64(2), "1", None):
        with pytest.raises(TypeError, match="^root_ids must be integers; got "):
            validate.root_id("root_ids", value)
    for value in (-1, 2**64, True):
        with pytest.raises(ValueError, match="^root_ids must be integers from 0 to "):
            validate.root_id("root_ids", value)
