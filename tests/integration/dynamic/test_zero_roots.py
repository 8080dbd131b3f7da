"""Supervoxels that have no root at the moment become 0 and are counted."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from integration.stores import written
from support.dynamic import WHOLE, bounds, client_of, distinct, served

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.sources import collect_counts
from imagery_dask.testing.cave import CaveServer, World, make_world
from imagery_dask.testing.cave.graph import ChunkedGraph


@pytest.fixture
def holes(tmp_path: Path) -> Iterator[tuple[CaveServer, World, np.ndarray]]:
    """A world whose graph does not know every third supervoxel."""
    world = make_world(tmp_path / "world", (128, 128, 32), edited=False)
    graph = world.graph
    known = np.arange(len(graph.supervoxels)) % 3 > 0
    objects = graph.roots(graph.supervoxels, world.times["created"])
    world.graph = ChunkedGraph(graph.layout, graph.supervoxels[known], objects[known], world.times["created"])
    with served(world) as server:
        yield server, world, graph.supervoxels[~known]


def test_unknown_supervoxels_become_zero_and_are_counted(
    holes: tuple[CaveServer, World, np.ndarray], tmp_path: Path, small_lazy_blocks: None, threads: Client
) -> None:
    server, world, unknown = holes
    volume = client_of(server).segmentation_volume()
    expected_voxels = np.where(np.isin(world.supervoxels, unknown), 0, world.roots_volume())
    assert expected_voxels.any()
    for _ in range(2):  # looked up, then cached
        with collect_counts() as counts:
            np.testing.assert_array_equal(volume.compute(scheduler="sync"), expected_voxels)
        assert counts.zero_roots == len(unknown)
        assert set(counts.zero_root_ids) <= set(unknown.tolist())
        assert len(counts.zero_root_ids) == min(20, len(unknown))
    report = to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=threads, progress=False)
    assert report.counts.zero_roots == len(unknown)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), expected_voxels)
    some = int(np.unique(expected_voxels)[1])
    listed = client_of(server).segmentation_volume(root_ids=[some])
    np.testing.assert_array_equal(listed, np.where(expected_voxels == some, expected_voxels, 0))


@pytest.mark.parametrize("layer", [None, 2])
def test_before_the_graph_existed_there_are_no_objects(
    server: CaveServer, client: ImageryClient, world: World, tmp_path: Path, threads: Client, layer: Any
) -> None:
    """The server answers with the supervoxel ids themselves, which are not roots."""
    volume = client.segmentation_volume(timestamp=world.times["created"] - 1, stop_layer=layer)
    with collect_counts() as counts:
        assert not volume.compute(scheduler="sync").any()
    assert counts.zero_roots == distinct(world)
    report = to_zarr(volume, tmp_path / "out.zarr", cluster=threads, progress=False)
    assert (report.counts.zero_roots, report.ok) == (distinct(world), True)
    assert len(client.split_segmentation_cutout(bounds(world, WHOLE), timestamp=world.times["created"] - 1)) == 0


CALLS: dict[str, Callable[[ImageryClient, Any, Any], Any]] = {
    "cutout": lambda client, box, when: client.segmentation_cutout(box, timestamp=when).compute(),
    "processes": lambda client, box, when: pickle.loads(
        pickle.dumps(client.segmentation_cutout(box, timestamp=when))
    ).compute(),
    "slices": lambda client, box, when: [client.segmentation_cutout(box, timestamp=when)[:, 5].compute()],
    "dataset": lambda client, box, when: client.dataset(box, timestamp=when).compute(),
    "roots": lambda client, box, when: client.unique_roots(box, timestamp=when),
    "masks": lambda client, box, when: list(client.split_segmentation_cutout(box, timestamp=when)),
    "mask": lambda client, box, when: client.split_segmentation_cutout(box, timestamp=when)[2**56 * 4 + 1].compute(),
    "point": lambda client, box, when: client.root_at(box[0] + 9, timestamp=when),
    "remap": lambda client, box, when: client.remap(
        client.segmentation_cutout(box, root_ids=None).compute(), timestamp=when
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_supervoxels_without_a_root_are_logged_once_for_each_array(
    client: ImageryClient, world: World, small_lazy_blocks: None, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    box = bounds(world, WHOLE)
    with caplog.at_level(logging.WARNING, "imagery_dask"):
        CALLS[call](client, box, world.times["split_1"])
        assert not caplog.messages
        before = world.times["created"] - 1
        for repeat in (1, 2):
            CALLS[call](client, box, before)
            assert len(caplog.messages) == (1 if call in ("mask", "processes") else repeat)
    for message in caplog.messages:
        assert re.match(
            r"\d+ of \d+ supervoxels have no root at \d{4}-.*Z, the first is \d+: their voxels are 0", message
        )
