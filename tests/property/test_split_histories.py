"""Random histories of merges, splits and splits of supervoxels: every moment has the voxels of the server's graph."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from cloudvolume import CloudVolume
from hypothesis import given, settings
from hypothesis import strategies as st
from support.dynamic import bounds, client_of, resolution, secrets_file, served

from imagery_dask.testing.cave import World, make_world

WHOLE = ((0, 0, 0), (64, 64, 32))
# Edits are so many seconds apart, and their voxels are committed within three minutes.
STEP_S = 3


def edit(world: World, kind: str, number: int, moment: float) -> None:
    """Make the edit that a number selects."""
    graph = world.graph
    latest = [int(root) for root in np.unique(graph.roots(graph.supervoxels))]
    first, second = latest[number % len(latest)], latest[(number * 7 + 1) % len(latest)]
    leaves = graph.leaves(first)
    if kind == "merge" and first != second:
        graph.merge(first, second, moment)
    elif kind == "split" and len(leaves) > 1:
        graph.split(first, leaves[:: 2 + number % 3], moment)
    elif kind == "supervoxel":
        supervoxel = int(graph.supervoxels[number % len(graph.supervoxels)])
        at = np.argwhere(world.supervoxels == np.uint64(supervoxel)) + world.voxel_offset
        pieces = min(2 + number % 3, len(at))
        if pieces > 1:
            seeds = at[np.linspace(0, len(at) - 1, pieces).astype(int)]
            world.split_supervoxel(supervoxel, seeds, moment)


edits = st.lists(
    st.tuples(st.sampled_from(["merge", "split", "supervoxel", "supervoxel"]), st.integers(0, 10**6)),
    min_size=1,
    max_size=8,
)


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(history=edits, data=st.data())
def test_cutouts_at_any_moment_are_the_servers(history: list[tuple[str, int]], data: Any) -> None:
    with TemporaryDirectory() as folder:
        world = make_world(
            Path(folder), (128, 128, 32), splits="spec", populated=data.draw(st.booleans()), edited=False
        )
        watershed = world.supervoxels
        begin = int(time.time()) - STEP_S * (len(history) + 2)
        moments, first_split = [begin], None
        for number, (kind, choice) in enumerate(history, 1):
            before = len(world.graph.history.operations)
            edit(world, kind, choice, begin + STEP_S * number)
            if kind == "supervoxel" and len(world.graph.history.operations) > before and first_split is None:
                first_split = begin + STEP_S * number
            moments += [begin + STEP_S * number - 1, begin + STEP_S * number]
        with served(world) as server, secrets_file(server):
            client = client_of(server)
            theirs = CloudVolume(server.segmentation_source, progress=False, fill_missing=True)
            for moment in data.draw(st.permutations(moments)):
                asked = {"mip": 0, "resolution": resolution(world), "timestamp": moment, "convert_to_int64": False}
                got = np.asarray(client.segmentation_cutout(bounds(world, WHOLE), **asked))
                np.testing.assert_array_equal(got, world.roots_volume(moment))
                if first_split is None or moment < first_split:
                    same = theirs.download(theirs.bounds, agglomerate=True, timestamp=moment)[..., 0]
                    np.testing.assert_array_equal(got, same)
            # Of supervoxels: before the first commit, and after the last.
            for moment, expected in ((begin, watershed), ("now", world.supervoxels)):
                if moment == "now":
                    time.sleep(1.01)
                asked = {"mip": 0, "resolution": resolution(world), "timestamp": moment, "convert_to_int64": False}
                got = np.asarray(client.segmentation_cutout(bounds(world, WHOLE), root_ids=None, **asked))
                np.testing.assert_array_equal(got, expected)
