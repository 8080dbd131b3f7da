from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagery_dask.model.chunkedgraph import ChunkedGraph, RootQuery
from imagery_dask.sources.graph import root_tables
from imagery_dask.sources.graph.near_roots import NearRoots, near_roots
from imagery_dask.sources.volumes.chunk_cache import ChunkCache

GRAPH = ChunkedGraph("https://nowhere.invalid", "t", (64, 64, 64), (0, 0, 0), (8.0, 8.0, 40.0), 5)
CHUNKS = (np.uint64(1) << np.uint64(56)) + (np.arange(3, dtype=np.uint64) << np.uint64(40))
# Every third number of three graph chunks.
IDS = np.concatenate([chunk + np.arange(1, 3000, 3, dtype=np.uint64) for chunk in CHUNKS])
ROOTS = np.uint64(2**58 + 1) + np.arange(len(IDS), dtype=np.uint64) % np.uint64(700)
ROOTS[500] = 0  # without a root
OF = dict(zip(IDS.tolist(), ROOTS.tolist(), strict=True)) | {0: 0}


class LookUp:
    """Looks up ids one by one, and remembers how many it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, ids: Any) -> Any:
        self.asked += ids.tolist()
        return np.array([OF[value] for value in ids.tolist()], np.uint64)


@pytest.fixture
def url(tmp_path: Path) -> str:
    root_tables.forget_tables()
    table = pa.table({"supervoxel": IDS, "root": ROOTS})
    facts = {b"imagery_dask": json.dumps({"version": 3}).encode()}
    pq.write_table(table.replace_schema_metadata(facts), tmp_path / "3.parquet", row_group_size=333)
    return f"file://{tmp_path}/3.parquet"


def replaced(roots: NearRoots, ids: Any, cache: ChunkCache | None = None) -> None:
    before = ids.copy()
    found = roots.replaced(ids, "a chunk", cache)
    assert found.shape == ids.shape
    np.testing.assert_array_equal(found, np.vectorize(OF.__getitem__, otypes=[np.uint64])(before))
    np.testing.assert_array_equal(ids, before)  # which the cache keeps


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("background", [False, True])
def test_voxels_of_a_chunk_take_their_roots_without_a_search_for_ids(url: str, background: bool, order: Any) -> None:
    look_up, cache, random = LookUp(), ChunkCache(2**24), np.random.default_rng(0)
    roots = NearRoots(url, None, look_up)
    for low, high in ((10, 20), (15, 499), (0, 30), (501, 1000)):  # further ids of the same chunk, on both sides
        ids = np.array(IDS[random.integers(low, high, (9, 8, 7, 1))], order=order)
        ids[:2] = 0 if background else ids[:2]
        replaced(roots, ids, cache)
        replaced(roots, ids[1:, :, ::2], cache)
        replaced(roots, ids)
    assert look_up.asked == []
    assert 0 < cache.bytes < 2**17


def test_what_a_part_does_not_tell_is_looked_up(url: str) -> None:
    look_up, cache = LookUp(), ChunkCache(2**24)
    roots = NearRoots(url, None, look_up)
    several_chunks = IDS[[1, 1500, 2500]].reshape(3, 1, 1, 1)
    without_a_root = IDS[[499, 500, 501]].reshape(3, 1, 1, 1)
    for ids, asked in ((several_chunks, IDS[[1, 1500, 2500]]), (without_a_root, IDS[[500]])):
        look_up.asked.clear()
        replaced(roots, ids, cache)
        assert look_up.asked == asked.tolist()


class KeptParts(ChunkCache):
    """Counts the parts that are kept."""

    puts = 0

    def put(self, key: Any, voxels: Any) -> None:
        self.puts += 1
        super().put(key, voxels)


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("rows", [True, False], ids=["no root", "no row"])
def test_a_part_is_kept_although_it_does_not_tell_all(url: str, rows: bool, order: Any) -> None:
    """It is made again where ids lie outside of it, and nowhere else; only untold ids are looked up."""
    look_up, cache, random = LookUp(), KeptParts(2**24), np.random.default_rng(0)
    roots, untold = NearRoots(url, None, look_up), int(IDS[500]) if rows else int(IDS[500]) + 1
    near = np.array(IDS[random.integers(490, 511, (9, 8, 7, 1))], order=order)
    near[3, 4, 2], near[5, 1] = untold, 0
    near[near == IDS[500]] = untold
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OF, untold, 0 if rows else 2**58 + 9)
        for plane in (*(near[3:6, :, z : z + 1] for z in range(7)), near[3:4]):
            look_up.asked.clear()
            replaced(roots, plane, cache)
            assert look_up.asked == ([untold] if (plane == untold).any() else [])
        assert cache.puts == 1
        replaced(roots, np.append(near, IDS[900]).reshape(-1, 1, 1, 1), cache)
    assert cache.puts == 2


@pytest.mark.parametrize("distance", [2**19, 2**50, 2**63 + 2**50])
def test_ids_on_any_side_of_a_part_are_outside_of_it(url: str, distance: int) -> None:
    look_up, cache = LookUp(), ChunkCache(2**24)
    roots = NearRoots(url, None, look_up)
    replaced(roots, IDS[1010:1020].reshape(10, 1, 1, 1), cache)
    for sign in (-1, 1):
        far = (int(IDS[1015]) + sign * distance) % 2**64
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(OF, far, 5)
            replaced(roots, np.array([far, IDS[1015], 0], np.uint64).reshape(3, 1, 1, 1), cache)


@pytest.mark.parametrize("number", [2, 2997, 2**20])
def test_ids_without_a_row_are_looked_up_and_never_background(url: str, number: int) -> None:
    cache, unknown = ChunkCache(2**24), CHUNKS[1] + np.uint64(number)
    roots = NearRoots(url, None, LookUp())
    replaced(roots, IDS[1010:1020].reshape(10, 1, 1, 1), cache)
    for before in (IDS[1015], np.uint64(0)):
        with pytest.raises(KeyError, match=str(unknown)):
            roots.replaced(np.array([before, unknown]).reshape(2, 1, 1, 1), "a chunk", cache)


def test_a_table_that_does_not_open_is_left_to_the_lookup(url: str) -> None:
    look_up = LookUp()
    query = RootQuery(GRAPH, 1, None, 1, 3, stored=url)
    assert isinstance(near_roots(query, look_up), NearRoots)
    for other in ({"stored": None}, {"stored": url + ".not"}):
        assert near_roots(RootQuery(GRAPH, 1, None, 1, 3, **other), look_up) is look_up


def test_a_table_that_is_gone_since_it_was_opened_is_left_to_the_lookup(url: str) -> None:
    look_up, ids = LookUp(), IDS[10:20].reshape(10, 1, 1, 1)
    roots = NearRoots(url, None, look_up)
    Path(url.removeprefix("file://")).unlink()
    for cache in (ChunkCache(2**24), None):
        look_up.asked.clear()
        replaced(roots, ids, cache)
        assert look_up.asked == ids.ravel().tolist()
