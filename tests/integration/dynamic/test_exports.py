"""Exports of dynamic segmentations: the voxels of the moment, one lookup per id, and failures of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from integration.stores import labels, written
from support.dynamic import (
    BOXES,
    TOKEN,
    WHOLE,
    assert_clean,
    bounds,
    client_of,
    cut,
    distinct,
    expected,
    forget_roots,
    resolution,
    roots_at,
    secrets_file,
    served,
)
from support.settings import Configure

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import (
    AccessRefusedError,
    BlockFailedError,
)  # fmt: skip
from imagery_dask.testing.cave import CaveServer, Fault, World, make_world


@pytest.mark.parametrize("cluster", [None, pytest.param("local", marks=pytest.mark.long)])
def test_an_export_looks_up_each_id_once(
    server: CaveServer, world: World, tmp_path: Path, small_blocks: int, cluster: str | None
) -> None:
    client = ImageryClient(client=server.client(), imagery=False, timestamp=world.times["split_1"])
    volume = client.segmentation_volume()
    server.reset()
    report = to_zarr(
        volume, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=cluster, workers=2 if cluster else None,
        progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), expected(world, world.times["split_1"], WHOLE))
    assert report.blocks > 4
    assert server.ids_sent == report.counts.ids_sent == distinct(world)
    assert server.count("roots_binary") == report.counts.root_requests
    assert report.counts.zero_roots == 0
    # The driver reads it as it begins and ends; each worker when it opens the volume.
    assert server.count("info") <= 2 + (2 if cluster else 0)


@pytest.mark.long
def test_an_export_of_large_graph_chunks_looks_up_each_id_once(
    tmp_path: Path, processes: Client, configure: Configure
) -> None:
    """Graph chunks do not fit into a block: one process does a chunk in pieces, and its cache serves later pieces."""
    configure("export.block_bytes", 8**3 * 8)
    world = make_world(tmp_path / "world", (128, 128, 32), storage_chunk=(8, 8, 8))
    with served(world) as server, secrets_file(server):
        volume = client_of(server).segmentation_volume(timestamp=world.times["split_1"])
        server.reset()
        report = to_zarr(volume, tmp_path / "out.zarr", chunks=(8, 8, 8), cluster=processes, progress=False)
        np.testing.assert_array_equal(written(tmp_path / "out.zarr"), world.roots_volume(world.times["split_1"]))
        assert report.blocks == 8
        assert report.counts.ids_sent == server.ids_sent == distinct(world)
        assert server.count("roots_binary") > 16


@pytest.mark.parametrize("scaled", [True, False])
def test_an_exported_dataset_holds_the_roots_of_the_moment(
    server: CaveServer, world: World, tmp_path: Path, processes: Client, small_blocks: int, scaled: bool
) -> None:
    client = ImageryClient(client=server.client(), timestamp=world.times["split_1"])
    data = client.dataset(bounds(world, WHOLE) * (2, 2, 1), scale_to_bounds=scaled)
    server.reset()
    with secrets_file(server):
        report = to_zarr(data, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=processes, progress=False)
    expected_voxels = expected(world, world.times["split_1"], WHOLE).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(labels(tmp_path / "out.zarr"), expected_voxels)
    assert server.ids_sent <= 1.02 * distinct(world)
    assert report.counts.ids_sent == server.ids_sent


def test_the_store_records_the_moment_of_an_export(client: ImageryClient, world: World, tmp_path: Path) -> None:
    volume = client.segmentation_volume(timestamp=world.times["split_1"])
    to_zarr(volume, tmp_path / "out.zarr", progress=False)
    text = " ".join(file.read_text() for file in tmp_path.rglob("zarr.json"))
    assert "2024-01-03T00:00:00Z" in text or str(int(world.times["split_1"])) in text


@pytest.mark.parametrize("kind", ["all", "listed", "none", "level 2", "mask", "computed"])
def test_arrays_of_every_kind_are_exported(
    client: ImageryClient, world: World, tmp_path: Path, threads: Client, small_blocks: int, kind: str
) -> None:
    moment = int(world.times["split_2"]) + 1
    listed = roots_at(world, moment)[:3]
    options: dict[str, Any] = {"listed": {"root_ids": listed}, "none": {"root_ids": None}}.get(kind, {})
    layer = 2 if kind == "level 2" else None
    box = BOXES[4]
    expected_voxels = expected(world, moment, box, keep=options.get("root_ids", "all"), stop_layer=layer)
    array = cut(client, world, box, timestamp=moment, stop_layer=layer, **options)
    if kind == "mask":
        root = int(np.unique(expected_voxels)[-1])
        array = client.split_segmentation_cutout(
            bounds(world, box), mip=0, resolution=resolution(world), timestamp=moment
        )[root]
        expected_voxels = expected_voxels == root
    if kind == "computed":
        array, expected_voxels = array % 1009, expected_voxels % 1009
    to_zarr(array, tmp_path / "out.zarr", chunks=(16, 16, 16), cluster=threads, progress=False)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), expected_voxels)


def test_results_are_of_one_moment_while_the_graph_is_edited(
    tmp_path: Path, threads: Client, small_lazy_blocks: None
) -> None:
    """Every voxel of a result is of the moment of its array, although a thread edits the graph all the time."""
    world = make_world(tmp_path / "world", (128, 128, 32), edited=False)
    graph, stop = world.graph, threading.Event()

    def edit_until_stopped() -> None:
        first, second, *_ = roots_at(world, time.time())
        while not stop.is_set():
            merged = graph.merge(first, second)
            first, second = graph.split(merged, graph.leaves(merged)[::2])
            time.sleep(0.002)

    expected_of: Callable[[Any], np.ndarray] = lambda volume: expected(  # noqa: E731
        world, volume.attrs["timestamp_unix_s"], ((0, 0, 0), (64, 64, 32))
    )
    with served(world, latency_s=0.003) as server:
        client = client_of(server)
        editor = threading.Thread(target=edit_until_stopped)
        editor.start()
        try:
            for number in range(3):
                volume = client.segmentation_volume()
                forget_roots()
                np.testing.assert_array_equal(volume, expected_of(volume))
                forget_roots()
                out = tmp_path / f"{number}.zarr"
                to_zarr(volume, out, chunks=(32, 32, 16), cluster=threads, progress=False)
                np.testing.assert_array_equal(written(out), expected_of(volume))
        finally:
            stop.set()
            editor.join()


def test_a_failing_server_fails_blocks_with_its_reason(
    server: CaveServer, client: ImageryClient, world: World, tmp_path: Path, threads: Client, small_blocks: int,
    no_pauses: None,
) -> None:  # fmt: skip
    volume = client.segmentation_volume()
    server.faults = lambda name, n: Fault(status=500, body=b"oh") if name == "roots_binary" and n > 1 else None
    server.reset()
    with pytest.raises(BlockFailedError, match=r"blocks failed") as failed:
        to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=threads, progress=False)
    report = failed.value.report
    assert (report.done, report.failures) == (1, report.blocks - 1)
    for block in report.failed:
        assert "ServerError" in block.reason
        assert "/segmentation/api/v1/table/demo_v1/roots_binary" in block.reason
        assert "HTTP 500" in block.reason
        assert TOKEN not in block.reason
    assert TOKEN not in repr(report)
    assert_clean(failed.value)
    expected_voxels, voxels = expected(world, world.times["split_1"], WHOLE), written(tmp_path / "out.zarr")
    assert voxels.any()
    np.testing.assert_array_equal(voxels[voxels != 0], expected_voxels[voxels != 0])


def test_an_expired_token_ends_an_export_at_once(
    server: CaveServer, client: ImageryClient, world: World, tmp_path: Path, threads: Client,
    configure: Configure,
) -> None:  # fmt: skip
    configure("export.block_bytes", 2**15)
    volume = client.segmentation_volume()
    server.latency_s = 0.02
    server.faults = lambda name, n: Fault(status=401) if name == "roots_binary" and n > 3 else None
    server.reset()
    started = time.monotonic()
    with pytest.raises(AccessRefusedError, match=r"HTTP 401.*CAVE_TOKEN.*cave-secret\.json") as refused:
        to_zarr(volume, tmp_path / "out.zarr", chunks=(16, 16, 16), cluster=threads, progress=False)
    assert time.monotonic() - started < 20
    assert server.count("roots_binary") < 32
    assert_clean(refused.value)
