"""`ChunkedGraph` from the path and the info of a segmentation."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from imagery_dask.errors import SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.chunkedgraph import ChunkedGraph, RootQuery, graphene_address
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.labels import LabelRule, label_rule
from imagery_dask.model.layer import Mip

PATH = "graphene://https://cave.example.org/segmentation/table/minnie3_v1"


@pytest.mark.parametrize(
    ("path", "server", "table"),
    [
        (PATH, "https://cave.example.org", "minnie3_v1"),
        (PATH + "/", "https://cave.example.org", "minnie3_v1"),
        ("graphene://middleauth+https://h/segmentation/table/a.b-c_1", "https://h", "a.b-c_1"),
        ("graphene://https://h/segmentation/api/v1/table/t", "https://h", "t"),
        ("graphene://https://h/segmentation/1.0/t", "https://h", "t"),
        ("graphene://http://127.0.0.1:8080/segmentation/table/t", "http://127.0.0.1:8080", "t"),
    ],
)
def test_a_path_gives_server_and_table(path: str, server: str, table: str) -> None:
    assert graphene_address(path) == (server, table)


@pytest.mark.parametrize(
    "path",
    [
        "https://h/segmentation/table/t",
        "precomputed://https://h/segmentation/table/t",
        "graphene://h/segmentation/table/t",
        "graphene://https://",
        "graphene://https://h",
        "graphene://https://h/",
        "graphene:///segmentation/table/t",
        "graphene://gs://bucket/segmentation/table/t",
        "graphene://https://h/segmentation/table/t/info",
        "graphene://https://h/segmentation/table/",
    ],
)
def test_other_paths_are_refused_with_the_correct_form(path: str) -> None:
    with pytest.raises(SourceError, match=r"graphene://https://HOST/segmentation/table/TABLE") as refused:
        graphene_address(path)
    assert path in str(refused.value)


def info(**graph: Any) -> dict[str, Any]:
    """Return an info as the service sends it."""
    return {
        "app": {"supported_api_versions": [0, 1]},
        "chunks_start_at_voxel_offset": True,
        "data_dir": "gs://bucket/ws",
        "graph": {"chunk_size": [256, 256, 512], "cv_mip": 0, "n_bits_for_layer_id": 8, "n_layers": 12, **graph},
        "scales": [
            {"resolution": [8, 8, 40], "voxel_offset": [26385, 30308, 14850], "size": [100, 100, 100]},
            {"resolution": [16, 16, 40], "voxel_offset": [13192, 15154, 14850], "size": [50, 50, 100]},
        ],
    }


def test_a_graph_is_made_from_its_info() -> None:
    graph = ChunkedGraph.from_info(PATH, info())
    assert graph == ChunkedGraph(
        "https://cave.example.org", "minnie3_v1", (256, 256, 512), (26385, 30308, 14850), (8.0, 8.0, 40.0), 12, 8
    )
    assert graph.host == "cave.example.org"
    assert pickle.loads(pickle.dumps(graph)) == graph
    assert {graph: 1}[ChunkedGraph.from_info(PATH, info())] == 1


def test_optional_fields_of_an_info_have_defaults() -> None:
    sparse = info()
    del sparse["chunks_start_at_voxel_offset"], sparse["graph"]["cv_mip"], sparse["graph"]["n_bits_for_layer_id"]
    graph = ChunkedGraph.from_info(PATH, sparse)
    assert (graph.origin, graph.layer_bits, graph.resolution_nm) == ((0, 0, 0), 8, (8.0, 8.0, 40.0))
    assert ChunkedGraph.from_info(PATH, info(cv_mip=1)).resolution_nm == (16.0, 16.0, 40.0)
    assert ChunkedGraph.from_info(PATH, info(cv_mip=1)).origin == (13192, 15154, 14850)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {**info(), "graph": None},
        {**info(), "graph": {}},
        {**info(), "scales": []},
        {**info(), "app": {}},
        info(chunk_size=[256, 256]),
        info(chunk_size="large"),
        info(n_layers=None),
        info(n_layers=0),
        info(n_layers=300),
        info(n_layers=float("inf")),
        info(n_bits_for_layer_id=0),
        info(n_bits_for_layer_id=10**12),
        info(chunk_size=[256, 0, 512]),
        {**info(), "app": {"supported_api_versions": 1}},
        info(cv_mip=7),
    ],
)
def test_an_incomplete_info_is_an_error_that_names_the_path(broken: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=r"minnie3_v1' does not describe a chunked graph"):
        ChunkedGraph.from_info(PATH, broken)


def test_an_unknown_api_version_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"API versions \[2, 3\]; only version 1"):
        ChunkedGraph.from_info(PATH, {**info(), "app": {"supported_api_versions": [2, 3]}})


@pytest.mark.parametrize("bits", [8, 4, 10])
def test_the_layer_of_an_id_is_in_its_highest_bits(bits: int) -> None:
    graph = ChunkedGraph("https://h", "t", (1, 1, 1), (0, 0, 0), (1, 1, 1), 12, bits)
    layers = [0, 1, 2, 11, 12, 2**bits - 1]
    ids = np.array([(layer << (64 - bits)) + 5 for layer in layers], dtype=np.uint64)
    assert graph.layer_of(ids).tolist() == layers
    assert graph.layer_of(ids.reshape(2, 3)).shape == (2, 3)
    assert [graph.is_root(int(value)) for value in ids] == [layer == 12 for layer in layers]
    assert graph.layer_of(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0, 2**bits - 1]


GRAPH = ChunkedGraph("https://h", "t", (32, 32, 16), (6144, 4096, 1024), (16.0, 16.0, 40.0), 4)


@pytest.mark.parametrize(
    ("level_nm", "shape", "origin"),
    [
        ((16, 16, 40), (32, 32, 16), (6144, 4096, 1024)),
        ((32, 32, 40), (16, 16, 16), (3072, 2048, 1024)),
        ((64, 64, 80), (8, 8, 8), (1536, 1024, 512)),
        ((8, 8, 20), (64, 64, 32), (12288, 8192, 2048)),
        ((1024, 16, 40), (0.5, 32, 16), None),
        ((24, 16, 40), None, None),
    ],
)
def test_graph_chunks_are_converted_to_voxels_of_a_level(level_nm: Any, shape: Any, origin: Any) -> None:
    chunks = GRAPH.chunks_at(VoxelGrid((0, 0, 0), (10, 10, 10), level_nm))
    assert chunks == (None if origin is None else (shape, origin))


def cutout(start: tuple[int, int, int], chunk: tuple[int, int, int], labels: LabelRule) -> Cutout:
    grid = VoxelGrid(start, (128, 128, 32), (16.0, 16.0, 40.0))
    return Cutout(PATH, Mip(0, "16_16_40", grid, chunk, "raw"), "uint64", 1, grid, labels=labels)


QUERY = RootQuery(GRAPH, 1_700_000_000)


@pytest.mark.parametrize(
    ("start", "chunk", "unit"),
    [
        ((6144, 4096, 1024), (32, 32, 16), (32, 32, 16)),
        ((6144, 4096, 1024), (16, 8, 4), (32, 32, 16)),
        ((6144, 4096, 1024), (64, 24, 10), (64, 96, 80)),
        ((6144 + 64, 4096, 1024), (16, 8, 4), (32, 32, 16)),
        # Without a common edge, blocks are storage chunks; roots of neighbouring blocks are in the cache.
        ((6144 + 8, 4096, 1024), (16, 8, 4), (16, 8, 4)),
    ],
)
def test_blocks_are_multiples_of_graph_chunks_and_storage_chunks(start: Any, chunk: Any, unit: Any) -> None:
    assert cutout(start, chunk, LabelRule(query=QUERY)).unit == unit
    assert cutout(start, chunk, LabelRule()).unit == chunk


def test_a_query_is_a_small_picklable_value() -> None:
    assert QUERY.layer == 4
    assert RootQuery(GRAPH, 1, 2).layer == 2
    assert len(pickle.dumps(QUERY)) < 1000
    assert pickle.loads(pickle.dumps(QUERY)) == QUERY
    assert label_rule("all", as_int64=True, query=QUERY) == LabelRule(as_int64=True, query=QUERY)
    assert label_rule(None, as_int64=False, query=QUERY) == LabelRule()
    assert label_rule([5, 3, 5], as_int64=False, query=QUERY) == LabelRule(keep=(3, 5), query=QUERY)
    assert label_rule([], as_int64=False, query=QUERY) == LabelRule(keep=(), query=QUERY)
