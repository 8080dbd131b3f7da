"""`Vec3` agrees with elementwise arithmetic of numpy on objects, and is a tuple."""

from __future__ import annotations

import json
import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.geometry.grid import Region, region_between, region_within, start_of, stop_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.serialization import from_json, to_json

INTEGERS = st.integers(-(2**70), 2**70)
FRACTIONS = st.fractions(max_denominator=10**6)
FLOATS = st.floats(-1e9, 1e9)
NUMBERS = [INTEGERS, FRACTIONS, FLOATS]
OPERATORS = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]


def triples(numbers: st.SearchStrategy[Any], *, zero: bool = True) -> st.SearchStrategy[tuple[Any, Any, Any]]:
    numbers = numbers if zero else numbers.filter(lambda number: abs(number) > 1e-6)
    return st.tuples(numbers, numbers, numbers)


def same(result: Vec3[Any], expected: Any) -> bool:
    """Return True if the result is a Vec3 of the expected values and types."""
    values = tuple(expected)
    return type(result) is Vec3 and result == values and [type(v) for v in result] == [type(v) for v in values]


@pytest.mark.parametrize("numbers", NUMBERS, ids=["int", "Fraction", "float"])
@pytest.mark.parametrize("operation", OPERATORS)
@given(data=st.data())
def test_arithmetic_is_elementwise(operation: Callable[..., Any], numbers: Any, data: st.DataObject) -> None:
    own, other = data.draw(triples(numbers)), data.draw(triples(numbers, zero=False))
    expected = operation(np.array(own, dtype=object), np.array(other, dtype=object)).tolist()
    assert same(operation(Vec3(*own), Vec3(*other)), expected)
    assert same(operation(Vec3(*own), other), expected)
    assert same(operation(Vec3(*own), list(other)), expected)
    scalar = operation(np.array(own, dtype=object), other[0]).tolist()
    assert same(operation(Vec3(*own), other[0]), scalar)


@pytest.mark.parametrize("numbers", NUMBERS, ids=["int", "Fraction", "float"])
@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul])
@given(data=st.data())
def test_a_tuple_or_number_on_the_left_is_an_operand(operation: Any, numbers: Any, data: st.DataObject) -> None:
    left, own = data.draw(triples(numbers)), data.draw(triples(numbers))
    for operand in (left, list(left), left[0]):
        expected = operation(np.array(operand, dtype=object), np.array(own, dtype=object))
        assert operation(operand, Vec3(*own)) == tuple(expected.tolist())


@pytest.mark.parametrize("numbers", NUMBERS, ids=["int", "Fraction", "float"])
@given(data=st.data())
def test_named_operations_are_elementwise(numbers: Any, data: st.DataObject) -> None:
    own, other = data.draw(triples(numbers)), data.draw(triples(numbers, zero=False))
    a, b = np.array(own, dtype=object), np.array(other, dtype=object)
    vec = Vec3(*own)
    assert same(vec.ceil_div(other), (-(-a // b)).tolist())
    assert same(vec.minimum(other), np.minimum(a, b).tolist())
    assert same(vec.maximum(other), np.maximum(a, b).tolist())
    assert same(vec.maximum(other[0]), np.maximum(a, other[0]).tolist())
    assert same(-vec, (-a).tolist())
    assert same(vec.zyx, own[::-1])
    assert same(vec.map(max, other), [max(pair) for pair in zip(own, other, strict=True)])
    assert vec.prod() == own[0] * own[1] * own[2]
    assert vec.all_le(other) == bool((a <= b).all())
    assert vec.all_lt(other) == bool((a < b).all())
    assert (vec.x, vec.y, vec.z) == own


@given(own=triples(INTEGERS), other=triples(INTEGERS))
def test_a_vector_is_the_tuple_of_its_values(own: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    vec = Vec3(*own)
    assert isinstance(vec, tuple)
    assert vec == own
    assert own == vec
    assert (vec == other, vec < Vec3(*other), vec < other) == (own == other, own < other, own < other)
    assert hash(vec) == hash(own)
    assert len({vec, own}) == 1
    assert {own: 1}[vec] == 1
    assert (repr(vec), str(vec), f"{vec}") == (repr(own), str(own), f"{own}")
    assert json.dumps(vec) == json.dumps(own)
    assert to_json(vec) == to_json(own)
    assert (*vec, 1) == (*own, 1)
    assert type(vec[:2]) is tuple
    again = pickle.loads(pickle.dumps(vec))
    assert type(again) is Vec3
    assert again == vec


def test_numpy_accepts_a_vector_as_shape_and_index() -> None:
    vec = Vec3(2, 3, 4)
    assert np.zeros(vec).shape == (2, 3, 4)
    assert np.asarray(vec).dtype == np.asarray((2, 3, 4)).dtype
    voxels = np.arange(60).reshape(3, 4, 5)
    assert voxels[vec] == voxels[2, 3, 4]
    assert np.array_equal(voxels[Vec3(0, 1, 2).map(slice, Vec3(2, 4, 5))], voxels[0:2, 1:4, 2:5])
    for array in (vec + np.array([1, 2, 3]), np.array([1, 2, 3]) + vec):
        assert isinstance(array, np.ndarray)
        assert array.tolist() == [3, 5, 7]


@pytest.mark.parametrize("operation", [*OPERATORS, Vec3.minimum, Vec3.all_le])
@pytest.mark.parametrize("operand", [(1,), (1, 2), (1, 2, 3, 4), []])
def test_operands_of_other_lengths_are_errors(operation: Callable[..., Any], operand: Any) -> None:
    with pytest.raises(ValueError, match="values to unpack"):
        operation(Vec3(1, 2, 3), operand)


def test_adding_a_tuple_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="values to unpack"):
        (1,) + Vec3(1, 2, 3)


@pytest.mark.parametrize("values", [(1, 2), (1, 2, 3, 4), ()])
def test_a_vector_has_three_values(values: Any) -> None:
    with pytest.raises(ValueError, match="values to unpack"):
        Vec3.of(values)
    with pytest.raises(ValueError, match="argument"):
        Vec3(1, 2, 3).map(max, values)


def test_a_vector_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Vec3(1, 2, 3).x = 4  # type: ignore[misc]


@dataclass(frozen=True)
class Box:
    start: Vec3[int]
    resolution_nm: Vec3[float] | None


@pytest.mark.parametrize("resolution_nm", [None, Vec3(8.0, 8.0, 40.0)])
def test_a_vector_returns_from_json(resolution_nm: Vec3[float] | None) -> None:
    box = Box(Vec3(1, 2**60, -3), resolution_nm)
    again = from_json(Box, json.loads(json.dumps(to_json(box))))
    assert again == box
    assert type(again.start) is Vec3
    assert all(type(value) is int for value in again.start)


def test_integers_beyond_64_bits_and_fractions_stay_exact() -> None:
    assert Vec3(10**7, 10**7, 10**7).prod() == 10**21
    assert (Vec3(2**53, 0, 0) + 1).x == 2**53 + 1
    assert Vec3(Fraction(1, 3), Fraction(1, 7), Fraction(2)) * Fraction(21) == (7, 3, 42)


@st.composite
def regions(draw: st.DrawFn) -> tuple[Region, Region]:
    """Draw a region and another one that contains it."""
    corners = [sorted(draw(st.tuples(*[st.integers(0, 12)] * 4))) for _ in range(3)]
    first, start, stop, last = zip(*corners, strict=True)
    return region_between(start, stop), region_between(first, last)


@given(pair=regions())
def test_region_within_selects_a_part_of_a_larger_region(pair: tuple[Region, Region]) -> None:
    part, outer = pair
    voxels = np.arange(12**3).reshape(12, 12, 12)
    assert np.array_equal(voxels[outer][region_within(part, outer)], voxels[part])
    assert region_between(start_of(part), stop_of(part)) == part


def test_numpy_reductions_accept_a_vector() -> None:
    shape = Vec3(3, 4, 5)
    assert (np.prod(shape), np.prod(shape, dtype=object), np.sum(shape), np.max(shape)) == (60, 60, 12, 5)
    assert np.zeros(shape).shape == shape
