"""Root ids are those of a pinned moment during edits, and the cache of roots returns no wrong root."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.dynamic import TOKEN, crop, expected, forget_roots, roots_at, served

from imagery_dask import ImageryClient
from imagery_dask.config import config
from imagery_dask.sources.graph.root_cache import RootCache
from imagery_dask.testing.cave import CaveServer, Fault, World, make_world
from imagery_dask.testing.cave.graph import ChunkedGraph
from imagery_dask.testing.cave.world import CREATED

HOUR = 3600
SHAPE = (64, 64, 32)
TABLES = (f"table_{number}" for number in count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaveServer]:
    world = make_world(tmp_path_factory.mktemp("roots"), (128, 128, 32), edited=False)
    with served(world) as server:
        yield server


def fresh(server: CaveServer) -> World:
    """Give the world a graph without a history, with a name that is in no cache."""
    world, graph = server.world, server.world.graph
    objects = graph.roots(graph.supervoxels, CREATED)
    world.graph = ChunkedGraph(graph.layout, graph.supervoxels, objects, CREATED)
    world.table = next(TABLES)
    server.faults = None
    server.reset()
    return world


def edit(graph: ChunkedGraph, number: int, timestamp: float | None) -> None:
    """Merge two objects or split one; ``number`` selects the edit."""
    if timestamp is None:  # a millisecond after the last edit, which may be ahead of the clock
        timestamp = max(time.time(), graph._eras[-1] / 1000 + 0.001_01)
    latest = [int(root) for root in np.unique(graph.roots(graph.supervoxels, timestamp))]
    first, second = latest[number % len(latest)], latest[(number * 7 + 1) % len(latest)]
    leaves = graph.leaves(first)
    if number % 3 and len(leaves) > 1:
        graph.split(first, leaves[:: 2 + number % 3] if number % 2 else leaves[: len(leaves) // 2], timestamp)
    elif first != second:
        graph.merge(first, second, timestamp)


def client_of(server: CaveServer, **options: Any) -> ImageryClient:
    return ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN, outside="fill", **options)


def bounds(world: World, low: Any, high: Any) -> np.ndarray:
    return np.array([low, high]) + world.voxel_offset


numbers = st.lists(st.integers(0, 10**6), max_size=6)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Draw a box inside the volume, across its border or outside it."""
    low = [draw(st.integers(-20, n + 5)) for n in SHAPE]
    return low, [a + draw(st.integers(2, 70)) for a in low]


# ------------------------------------------------------------------------------------------ the moment is pinned


@settings(max_examples=25)
@given(before=numbers, after=numbers.filter(bool), scheduler=st.sampled_from(["threads", "sync"]), data=st.data())
def test_edits_during_a_computation_change_no_block(
    server: CaveServer, before: list[int], after: list[int], scheduler: str, data: st.DataObject
) -> None:
    """Every request is followed by an edit; every block has the roots at the array's moment."""
    world = fresh(server)
    for hour, number in enumerate(before, start=1):
        edit(world.graph, number, CREATED + hour * HOUR)
    moment = int(CREATED) + data.draw(st.integers(0, len(before))) * HOUR
    now = CREATED + (len(before) + 1) * HOUR
    roots = roots_at(world, moment)
    keep = data.draw(st.sampled_from(["all", "some"]))
    listed: Any = "all" if keep == "all" else data.draw(st.lists(st.sampled_from(roots), min_size=1, max_size=4))
    box = ([0, 0, 0], list(SHAPE))
    expected_ids = expected(world, moment, box, keep=listed)
    todo = iter(enumerate(after, start=1))

    def edits(endpoint: str, n: int) -> Fault | None:
        with world.graph._lock:
            for second, number in todo:
                edit(world.graph, number, now + second)
                break
        return None

    # Without a cache, as if every block were read by another process.
    no_cache = mock.patch("imagery_dask.sources.graph.roots._cache_of", side_effect=lambda query: RootCache())
    with config.set({"lazy.block_bytes": 32 * 32 * 16 * 8}), no_cache:
        array = client_of(server).segmentation_cutout(bounds(world, *box), root_ids=listed, timestamp=moment)
        assert array.npartitions == 8
        server.faults = edits
        for _ in range(2):
            np.testing.assert_array_equal(array.compute(scheduler=scheduler), expected_ids)


@settings(max_examples=15)
@given(after=numbers.filter(bool))
def test_the_default_moment_is_that_of_making_the_array(server: CaveServer, after: list[int]) -> None:
    world = fresh(server)
    array = client_of(server).segmentation_volume()
    for number in after:
        edit(world.graph, number, None)
    moment = array.attrs["timestamp_unix_s"]
    assert isinstance(moment, int)
    np.testing.assert_array_equal(array.values, world.roots_volume(moment))
    np.testing.assert_array_equal(array.values, world.roots_volume(CREATED))


# ------------------------------------------------------------------------------------------------- blocks == whole


@settings(max_examples=30)
@given(box=boxes(), block=st.sampled_from([2**10, 2**14, 2**17, 2**19]), mip=st.integers(0, 2), data=st.data())
def test_blocks_equal_the_whole(server: CaveServer, box: Any, block: int, mip: int, data: st.DataObject) -> None:
    world = server.world
    low = [box[0][0] // 2**mip, box[0][1] // 2**mip, box[0][2]]
    high = [max(a + 1, b // 2**mip) for a, b in zip(low[:2], box[1][:2], strict=True)] + [box[1][2]]
    offset = np.array(world.voxel_offset) // (2**mip, 2**mip, 1)
    listed: Any = data.draw(st.sampled_from(["all", None, "some"]))
    moment = int(CREATED) + 1
    if listed == "some":
        listed = data.draw(st.lists(st.sampled_from(roots_at(world, moment)), max_size=3))
    layer = data.draw(st.sampled_from([None, 2]))
    if listed is None:
        layer = None
    forget_roots()
    x, y, z = world.resolution
    with config.set({"lazy.block_bytes": block}), config.set({"graph.processes": 1}):
        array = client_of(server).segmentation_cutout(
            np.array([low, high]) + offset, root_ids=listed, mip=mip, timestamp=moment, stop_layer=layer,
            resolution=(x * 2**mip, y * 2**mip, z), convert_to_int64=False,
        )  # fmt: skip
        voxels = array.compute(scheduler="sync")
    expected_ids = expected(world, moment, (low, high), mip=mip, keep=listed, stop_layer=layer)
    np.testing.assert_array_equal(voxels, expected_ids.squeeze())
    known = {0, *world.graph.supervoxels.tolist()} if listed is None else {0, *all_ids(world, moment, layer)}
    assert set(np.unique(voxels).tolist()) <= known


def all_ids(world: World, moment: float, layer: int | None) -> list[int]:
    return [int(value) for value in np.unique(world.graph.roots(world.graph.supervoxels, moment, layer))]


@settings(max_examples=25)
@given(box=boxes(), pieces=st.lists(st.integers(1, 69), max_size=3), axis=st.integers(0, 2), data=st.data())
def test_pieces_of_a_scaled_cutout_equal_the_whole(
    server: CaveServer, box: Any, pieces: list[int], axis: int, data: st.DataObject
) -> None:
    """Ids are looked up before resizing, so that the voxels do not depend on the cuts."""
    world = server.world
    x, y, z = world.resolution
    own = data.draw(st.sampled_from([(x / 2, y / 2, z), (x * 1.5, y, z), (x * 3, y * 3, z * 2), (9.7, 12, 45)]))
    factor = np.array(world.resolution) / own
    low, high = (np.floor((np.array(corner) + world.voxel_offset) * factor).astype(int) for corner in box)
    high = np.maximum(high, low + 2)
    client, options = client_of(server), {"resolution": own, "scale_to_bounds": True, "timestamp": int(CREATED)}
    whole = client.segmentation_cutout([low, high], **options).compute(scheduler="sync")
    cuts = sorted({low[axis], high[axis], *(low[axis] + n for n in pieces if n < high[axis] - low[axis])})
    parts = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        first, last = low.copy(), high.copy()
        first[axis], last[axis] = start, stop
        part = client.segmentation_cutout([first, last], **options).compute(scheduler="sync")
        parts.append(part.reshape(last - first))
    np.testing.assert_array_equal(np.concatenate(parts, axis=axis), whole.reshape(high - low))
    if own == (9.7, 12, 45):
        return  # the comparison below is exact for other resolutions only
    at = [
        np.floor((np.arange(a, b) + 0.5) * nm / own_nm).astype(int) - offset
        for a, b, nm, own_nm, offset in zip(low, high, own, (x, y, z), world.voxel_offset, strict=True)
    ]
    corner, far = [int(a.min()) for a in at], [int(a.max()) + 1 for a in at]
    source = crop(world.roots_volume(CREATED), (corner, far))
    expected_ids = source[np.ix_(*(a - first for a, first in zip(at, corner, strict=True)))]
    np.testing.assert_array_equal(whole.reshape(high - low), expected_ids)


# ---------------------------------------------------------------------------------------------------- the cache


class CacheAgainstDict(RuleBasedStateMachine):
    """The cache returns only roots that were put, and always returns those that were put last."""

    keys = st.lists(
        st.one_of(st.integers(1, 40), st.integers(2**63 - 5, 2**63 + 5), st.integers(2**64 - 4, 2**64 - 1)),
        unique=True, max_size=12,
    )  # fmt: skip

    @initialize(capacity=st.integers(1, 20))
    def start(self, capacity: int) -> None:
        self.cache, self.capacity = RootCache(capacity), capacity
        self.model: dict[int, int] = {}

    @rule(keys=keys)
    def get(self, keys: list[int]) -> None:
        ids = np.array(sorted(keys), np.uint64)
        known, roots = self.cache.get(ids)
        assert (known.shape, roots.shape, roots.dtype) == (ids.shape, ids.shape, np.uint64)
        for key, has, root in zip(ids.tolist(), known.tolist(), roots.tolist(), strict=True):
            assert root == (self.model[key] if has else 0)

    @rule(keys=keys)
    def look_up(self, keys: list[int]) -> None:
        """Put the roots of ids that the cache does not have, as a block does."""
        ids = np.array(sorted(keys), np.uint64)
        known, _ = self.cache.get(ids)
        missing = ids[~known]
        roots = missing ^ np.uint64(0xFF00FF00FF00FF01)
        self.cache.put(missing, roots)
        self.model.update(zip(missing.tolist(), roots.tolist(), strict=True))
        known, cached = self.cache.get(missing)
        assert known.all()
        assert cached.tolist() == roots.tolist()

    @invariant()
    def is_bounded(self) -> None:
        if hasattr(self, "cache"):
            assert len(self.cache) <= 2 * (self.capacity + 12)


TestCacheAgainstDict = CacheAgainstDict.TestCase
TestCacheAgainstDict.settings = settings(max_examples=60, stateful_step_count=30)
