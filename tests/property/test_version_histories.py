"""Random histories of edits: every version of a store is what the server says, and copies follow byte for byte."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume import CloudVolume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dynamic import TOKEN, client_of, forget
from support.settings import Configure
from support.version_stores import contents_without_dates

from imagery_dask import add_version, create_versions, open_versions
from imagery_dask.sources import collect_counts
from imagery_dask.testing.cave import CaveServer, World, world_from_arrays

SHAPE, CHUNK = (40, 36, 20), (16, 16, 8)
CREATED, DAY = 1_704_067_200, 86_400
#: Objects of a box each, so that several share every graph chunk.
OBJECTS = np.arange(1, 5 * 4 * 4 + 1, dtype=np.uint64).reshape(5, 4, 4).repeat(8, 0).repeat(9, 1).repeat(5, 2)

# Which current root to edit, and with which one; whether to split it.
edits = st.lists(st.tuples(st.booleans(), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=6)


@pytest.fixture
def _small_blocks(configure: Configure) -> None:
    for name in ("block_bytes", "small_block_bytes", "fused_bytes"):
        configure(f"export.{name}", math.prod(CHUNK) * 8)


def make_world(folder: Path) -> World:
    background = np.where(OBJECTS % 7 == 0, 0, OBJECTS)
    return world_from_arrays(
        folder, background, chunk_size=CHUNK, storage_chunk=CHUNK, voxel_offset=(32, 64, -16), n_mips=2, pieces=3,
        created=CREATED, edited=False,
    )  # fmt: skip


def edit(world: World, history: list[tuple[bool, int, int]]) -> Iterator[int]:
    """Edit the graph once a day; yield moments, the first before any edit."""
    yield CREATED + 60
    for day, (splits, one, other) in enumerate(history, 1):
        roots = np.unique(world.graph.roots(world.graph.supervoxels))
        moment = CREATED + day * DAY
        first, second = int(roots[one % len(roots)]), int(roots[other % len(roots)])
        leaves = world.graph.leaves(first)
        if splits and len(leaves) > 1:
            world.graph.split(first, leaves[: 1 + other % (len(leaves) - 1)], moment)
        elif first != second:
            world.graph.merge(first, second, moment)
        yield moment + 60


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=edits, data=st.data())
@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.long
def test_versions_are_what_the_server_says(history: list[tuple[bool, int, int]], data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        forget()
        path = Path(folder)
        world = make_world(path / "world")
        start = np.array(world.voxel_offset)
        bounds = [start, start + SHAPE]
        moments = list(edit(world, history))
        with CaveServer(world, tokens=(TOKEN,)) as server:
            client = client_of(server, resolution=world.resolution)
            order = data.draw(st.permutations(moments))
            create_versions(client, path / "out", bounds, timestamp=order[0], progress=False)
            for moment in order[1:]:
                add_version(path / "out", timestamp=moment, progress=False)
            expected = {
                moment: CloudVolume(
                    server.segmentation_source, progress=False, secrets=TOKEN, agglomerate=True, timestamp=moment
                )[:][..., 0]
                for moment in moments
            }  # fmt: skip
            live = {
                moment: client.segmentation_cutout(bounds, timestamp=moment, convert_to_int64=False).compute()
                for moment in moments
            }
        forget()
        store = open_versions(path / "out")
        for moment in moments:
            with collect_counts() as counts:
                found = store.at(timestamp=moment)["segmentation"].to_numpy()
            assert (counts.root_requests, counts.ids_sent) == (0, 0)
            assert found.max() > 2**53
            np.testing.assert_array_equal(found, expected[moment])
            np.testing.assert_array_equal(found, live[moment])
        for moment in data.draw(st.permutations(moments)):
            name = next(
                iter(store.versions.index[store.versions["timestamp"].map(lambda at: at.timestamp()) == moment])
            )
            store.materialize(name, path / "copy.zarr", levels=2, progress=False)
            store.materialize(name, path / f"{name}.zarr", levels=2, progress=False)
            assert contents_without_dates(path / "copy.zarr") == contents_without_dates(path / f"{name}.zarr")
