"""Values return exactly from JSON, and other JSON is refused with the name of the field."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from functools import cache
from typing import Any, Literal, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery_dask.export.core.plans import StageBlocks
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.cutout import Cutout
from imagery_dask.serialization import from_json, to_json

Stages = tuple[tuple[StageBlocks, ...], ...]
KINDS = [Cutout, Stages, BlockPlan, tuple[int, ...], tuple[str | None, bool, float]]

# Text of digits must stay text.
TEXT = st.one_of(st.text(max_size=5), st.sampled_from(["12", "9007199254740993", "-1"]))
INTEGERS = st.one_of(st.integers(), st.integers(2**53 - 2, 2**53 + 2), st.integers(2**63, 2**64 - 1))
FLOATS = st.floats(allow_nan=False)
SIZES, STEPS = st.integers(0, 2**60), st.one_of(st.floats(0.1, 100), st.just(1e-300))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), TEXT),
    lambda items: st.one_of(st.lists(items, max_size=4), st.dictionaries(TEXT, items, max_size=4)),
    max_leaves=6,
)


@cache
def values(hint: Any) -> st.SearchStrategy[Any]:
    """Draw any value of a type."""
    if hint is VoxelGrid:
        return st.builds(VoxelGrid, st.tuples(*[INTEGERS] * 3), st.tuples(*[SIZES] * 3), st.tuples(*[STEPS] * 3))
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: values(inner) for name, inner in typing.get_type_hints(hint).items()})
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, inner))
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(values(inner[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, inner))
    if isinstance(origin, type) and issubclass(origin, tuple):
        return st.builds(origin, *[values(inner[0])] * 3)
    return {int: INTEGERS, float: FLOATS, str: TEXT, bool: st.booleans(), type(None): st.none()}[hint]


def places(content: Any, keys: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the keys that lead to each item of plain JSON data."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [keys, *(place for key, item in items for place in places(item, (*keys, key)))]


def put(content: Any, place: tuple[Any, ...], item: Any) -> Any:
    if not place:
        return item
    copy = content.copy()
    copy[place[0]] = put(content[place[0]], place[1:], item)
    return copy


def same(one: Any, other: Any) -> bool:
    """Return True if values and types are equal: 1 differs from 1.0 and from True."""
    return repr(one) == repr(other)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_values_return_exactly_from_json(kind: Any, data: st.DataObject) -> None:
    value = data.draw(values(kind))
    text = json.dumps(to_json(value))
    assert all(abs(number) <= 2**53 for number in numbers_in(json.loads(text)))
    assert from_json(kind, json.loads(text)) == value
    assert same(from_json(kind, json.loads(text)), value)


def numbers_in(content: Any) -> list[int]:
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [content] if type(content) is int else [number for item in items for number in numbers_in(item)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_other_json_is_refused_or_returns_itself(kind: Any, data: st.DataObject) -> None:
    content = to_json(data.draw(values(kind)))
    place = data.draw(st.sampled_from(places(content)))
    damaged = put(content, place, data.draw(JSON))
    try:
        value = from_json(kind, damaged)
    except ValueError as error:
        refusal = str(error)
    else:
        # A value that was read returns from JSON, so that nothing was converted except numbers.
        assert from_json(kind, to_json(value)) == value
        return
    assert "; got " in refusal
    assert "\n" not in refusal


CUTOUT = {
    "path": "p", "stored_dtype": "uint8", "channels": 1,
    "mip": {
        "level": 0, "key": "k", "chunk_shape": [1, 1, 1], "encoding": "raw",
        "grid": {"start": [0, 0, 0], "shape": [1, 1, 1], "resolution_nm": [1.0, 1, 1]},
    },
    "target": {"start": [0, 0, 0], "shape": [1, 1, 1], "resolution_nm": [1.0, 1, 1]},
}  # fmt: skip


def test_fields_may_be_left_out_where_they_have_a_default() -> None:
    assert from_json(Cutout, CUTOUT).missing == "fill"


@pytest.mark.parametrize(
    ("place", "item", "message"),
    [
        (("target", "start", 2), True, "Cutout.target.start[2]: Input should be a valid integer; got True."),
        (("target", "start", 2), 1.0, "Cutout.target.start[2]: Input should be a valid integer; got 1.0."),
        (("target", "start", 2), " 1", "Cutout.target.start[2]: Input should be a valid integer; got ' 1'."),
        (("target", "start", 2), None, "Cutout.target.start[2]: Input should be a valid integer; got None."),
        (("target", "resolution_nm", 0), "8", "Cutout.target.resolution_nm[0]: Input should be a valid number; got"),
        (("mip", "key"), 3, "Cutout.mip.key: Input should be a valid string; got 3."),
        (("mip",), [], "Cutout.mip: Input should be a valid dictionary; got []."),
        (("missing",), "zero", "Cutout.missing: Input should be 'fill' or 'error'; got 'zero'."),
        (("colour",), 1, "Cutout.colour: Extra inputs are not permitted; got 1."),
        (("labels",), {"keep": ["1x"]}, "Cutout.labels.keep[0]: Input should be a valid integer"),
    ],
)
def test_messages_name_the_field_and_its_value(place: tuple[Any, ...], item: Any, message: str) -> None:
    content = put(CUTOUT | {"missing": "fill", "labels": None, "colour": 0}, place, item)
    if place != ("colour",):
        del content["colour"]
    with pytest.raises(ValueError, match=r"^Cutout\.") as caught:
        from_json(Cutout, content)
    assert message in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"^Cutout\.path: Field required; got "):
        from_json(Cutout, {name: value for name, value in CUTOUT.items() if name != "path"})
