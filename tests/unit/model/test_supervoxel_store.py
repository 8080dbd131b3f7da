"""Infos of graphs say whether supervoxels are split, and where the pieces are; unknown forms are refused."""

from __future__ import annotations

from typing import Any

import pytest

from imagery_dask.errors import InvalidInfoError
from imagery_dask.model.supervoxel_store import StoreLayer, SupervoxelStore

PATH = "graphene://https://host/segmentation/table/t"
WS = "gs://bucket/ws"
LAYERS = [
    {"base": f"{WS}/ocdbt/base/"},
    {"exact": "manifest.ocdbt", "base": f"{WS}/ocdbt/t/manifest.ocdbt"},
    {"prefix": "t_d/", "base": f"{WS}/ocdbt/t/t_d/"},
]
SPEC: dict[str, Any] = {
    "driver": "ocdbt",
    "base": {"driver": "kvstack", "layers": LAYERS},
    "value_data_prefix": "t_d/",
    "btree_node_data_prefix": "t_d/",
    "version_tree_node_data_prefix": "t_d/",
}


def store(**graph: Any) -> SupervoxelStore | None:
    return SupervoxelStore.from_info(PATH, {"graph": graph})


@pytest.mark.parametrize(
    "graph",
    [
        {},
        {"ocdbt_seg": False},
        {"ocdbt_seg": False, "ocdbt_path": "ocdbt/base"},  # as servers say whose graphs have none
        {"ocdbt_seg": False, "ocdbt_kvstore_spec": None},
        {"ocdbt_path": ""},
    ],
    ids=str,
)
def test_graphs_without_split_supervoxels_have_no_store(graph: dict[str, Any]) -> None:
    assert store(**graph) is None
    assert SupervoxelStore.from_info(PATH, {}) is None


def test_the_layers_of_a_specification_are_kept_in_their_order() -> None:
    expected = SupervoxelStore(
        (
            StoreLayer(f"{WS}/ocdbt/base/"),
            StoreLayer(f"{WS}/ocdbt/t/manifest.ocdbt", exact="manifest.ocdbt"),
            StoreLayer(f"{WS}/ocdbt/t/t_d/", prefix="t_d/"),
        )
    )
    assert store(ocdbt_seg=True, ocdbt_kvstore_spec=SPEC) == expected
    assert store(ocdbt_kvstore_spec=SPEC | {"config": {"max_inline_value_bytes": 1}}) == expected


@pytest.mark.parametrize("version", [7, "2026-01-01T00:00:00Z"])
def test_a_specification_may_be_one_folder_at_one_version(version: int | str) -> None:
    spec = {"driver": "ocdbt", "base": f"{WS}/ocdbt/base", "version": version}
    assert store(ocdbt_kvstore_spec=spec) == SupervoxelStore((StoreLayer(f"{WS}/ocdbt/base/"),), version)


@pytest.mark.parametrize("graph", [{"ocdbt_seg": True}, {"ocdbt_path": "ocdbt/base"}], ids=str)
def test_older_servers_name_a_folder_below_the_volume(graph: dict[str, Any]) -> None:
    found = store(**graph)
    assert found is not None
    assert found.layers == (StoreLayer("ocdbt/base/"),)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            {"ocdbt_seg": True, "ocdbt_kvstore_spec": None},
            r"graph\.ocdbt_kvstore_spec .* is None, but it must say where",
        ),
        ({"ocdbt_path": 7}, r"graph\.ocdbt_path .* is 7"),
        ({"ocdbt_path": "/"}, r"graph\.ocdbt_path .* is '/'"),
        ({"ocdbt_kvstore_spec": {"driver": "zip", "base": WS}}, r"spec .* driver 'ocdbt'"),
        ({"ocdbt_kvstore_spec": [WS]}, r"spec .* driver 'ocdbt'"),
        ({"ocdbt_kvstore_spec": SPEC | {"path": "a/"}}, r"spec\.path .* is 'a/'"),
        ({"ocdbt_kvstore_spec": SPEC | {"token": "abc"}}, r"spec\.token .* members that are understood"),
        ({"ocdbt_kvstore_spec": SPEC | {"version": 1.5}}, r"spec\.version .* is 1\.5"),
        ({"ocdbt_kvstore_spec": SPEC | {"base": {"driver": "gcs", "bucket": "b"}}}, r"spec\.base .* 'kvstack'"),
        ({"ocdbt_kvstore_spec": SPEC | {"base": {"driver": "kvstack", "layers": []}}}, r"base\.layers .* is \[\]"),
    ],
    ids=str,
)
def test_other_forms_are_refused_with_their_field(graph: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInfoError, match=message):
        store(**graph)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"base": {"driver": "s3", "bucket": "b", "endpoint": "https://other"}}, r"layers\[1\]\.base"),
        ({"base": WS, "exact": "a", "prefix": "b"}, r"layers\[1\] .* both exact and prefix"),
        ({"base": WS, "strip_prefix": 1}, r"layers\[1\]\.strip_prefix"),
        ({"prefix": "b"}, r"layers\[1\]\.base .* is None"),
        ("gs://b", r"layers\[1\] .* is 'gs://b'"),
    ],
    ids=str,
)
def test_other_layers_are_refused_with_their_field(layer: Any, message: str) -> None:
    spec = SPEC | {"base": {"driver": "kvstack", "layers": [LAYERS[0], layer]}}
    with pytest.raises(InvalidInfoError, match=message):
        store(ocdbt_kvstore_spec=spec)
