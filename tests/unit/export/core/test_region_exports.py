"""Exports of named regions: their plan is the plans of the regions, block by block."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.plans import ExportPlan, said_of
from imagery_dask.export.core.region_exports import are_regions
from imagery_dask.export.registry import KINDS

RESOURCES = WorkerResources(1, 2**31)
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))


@given(st.lists(SHAPES, min_size=1, max_size=4), st.integers(1, 3), st.sampled_from(["zarr", "precomputed"]))
def test_the_plan_has_the_blocks_of_each_region(shapes: list[Any], levels: int, kind: str) -> None:
    data = {f"r{n}": da.zeros(shape, dtype=np.uint8, chunks=-1) for n, shape in enumerate(shapes)}
    options: dict[str, Any] = {
        "chunks": (8, 8, 8),
        "levels": levels,
        "resolution_nm": (8, 8, 40),
        "translation_nm": (4, 4, 20),
    }
    export = KINDS[kind](data, "/nowhere/out", **options)
    plan = export.plan(RESOURCES, 4096)
    assert ExportPlan.from_json(plan.to_json()) == plan
    parts = export.by_region(plan)
    assert list(parts) == list(data)
    assert plan.blocks == sum(own.blocks for _, own in parts.values())
    assert plan.voxels == sum(own.voxels for _, own in parts.values()) == sum(array.size for array in data.values())
    for name, (one, own) in parts.items():
        assert own.stages == one.plan(RESOURCES, 4096).stages
        assert own.url == f"/nowhere/out/{name}"
    names = export.metadata_names()
    assert len(names) == len(set(names))
    assert {name.partition("/")[0] for name in names} - set(data) <= {"zarr.json"}


def test_a_region_that_cannot_be_exported_is_named() -> None:
    data = {"fine": np.zeros((4, 4, 4), np.uint8), "bad": np.zeros((4, 4, 4), "U3")}
    with pytest.raises(TypeError, match="region 'bad': "):
        KINDS["zarr"](data, "/nowhere/out")


def test_xarray_objects_are_no_regions() -> None:
    assert are_regions({"a": 1})
    assert not are_regions(xr.Dataset())
    assert not are_regions(xr.DataTree())


def test_notes_name_three_regions() -> None:
    assert said_of([""], "note") == "note"
    assert said_of(["a", "a", "b"], "note") == "a, b: note"
    assert said_of(list("abcde"), "note") == "a, b, c and 2 more: note"
