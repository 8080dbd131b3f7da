"""Requests to the graph server: each supervoxel is sent once, answers are cached, and few requests are in flight."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import imageio.v3 as imageio
import numpy as np
import pytest
from distributed import Client
from support.dynamic import (
    BOXES,
    WHOLE,
    bounds,
    changed,
    client_of,
    cut,
    distinct,
    expected,
    resolution,
    roots_at,
    secrets_file,
)
from support.settings import Configure

from imagery_dask import ImageryClient
from imagery_dask.sources import collect_counts
from imagery_dask.testing.cave import CaveServer, World


@pytest.mark.parametrize("mip", [0, 1, 2])
def test_each_supervoxel_is_sent_once(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_cache: None, mip: int
) -> None:
    """Blocks are whole graph chunks at every mip, so this holds without a cache."""
    volume = client.segmentation_volume(mip=mip, timestamp=world.times["merge_1"])
    server.reset()
    with collect_counts() as counts:
        np.testing.assert_array_equal(
            volume.compute(scheduler="sync"), world.roots_volume(world.times["merge_1"] + 1, mip)
        )
    stored_ids = np.unique(world.mips[mip])
    assert server.ids_sent == counts.ids_sent == np.count_nonzero(stored_ids)
    assert server.count() == server.count("roots_binary") == counts.root_requests == volume.data.npartitions
    assert mip or volume.data.npartitions == 32


def test_each_supervoxel_is_sent_once_in_boxes_that_cut_graph_chunks(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_cache: None
) -> None:
    for box in BOXES:
        server.reset()
        cut(client, world, box, timestamp=world.times["merge_1"]).compute()
        assert server.ids_sent == distinct(world, box)


@pytest.mark.parametrize("scale", [0.5, 2, 1.5])
def test_each_supervoxel_is_sent_once_in_scaled_cutouts(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_cache: None, scale: float
) -> None:
    nm = np.array(resolution(world)) * (scale, scale, 1)
    box = np.floor(bounds(world, BOXES[1]) / (scale, scale, 1)).astype(int)
    array = client.segmentation_cutout(box, resolution=nm, timestamp=world.times["merge_1"], scale_to_bounds=True)
    assert array.npartitions > 4
    server.reset()
    array.compute()
    assert server.ids_sent <= 1.02 * distinct(world, BOXES[1])


def sent_ids(server: CaveServer) -> list[int]:
    return [request.n_ids for request in server.requests if request.endpoint == "roots_binary"]


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
@pytest.mark.parametrize("layer", [None, 2])
def test_a_second_pass_sends_no_requests(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, scheduler: str, layer: Any
) -> None:
    moment = int(world.times["split_1"])
    server.latency_s = 0.01  # so that the first blocks send their requests at the same time
    array = cut(client, world, WHOLE, timestamp=moment, stop_layer=layer)
    server.reset()
    array.compute(scheduler=scheduler)
    assert server.ids_sent == distinct(world)
    server.reset()
    array.compute(scheduler=scheduler)
    cut(client, world, BOXES[1], timestamp=moment, stop_layer=layer).compute(scheduler=scheduler)
    assert server.count() == 0
    cut(client, world, BOXES[1], timestamp=moment - 1, stop_layer=layer).compute(scheduler=scheduler)
    assert server.count("roots_binary") > 0  # another moment needs another lookup


def test_blocks_smaller_than_graph_chunks_share_lookups(
    server: CaveServer, client: ImageryClient, world: World, configure: Configure
) -> None:
    configure("lazy.block_bytes", 2048)
    nm = np.array(resolution(world)) / 4
    box = bounds(world, ((10, 10, 3), (40, 40, 9))) * 4
    array = client.segmentation_cutout(box, resolution=nm, timestamp=world.times["merge_1"], scale_to_bounds=True)
    assert array.npartitions > 8
    server.reset()
    voxels = array.compute(scheduler="sync")
    assert server.ids_sent == distinct(world, ((10, 10, 3), (40, 40, 9)))
    expected_voxels = expected(world, world.times["merge_1"] + 1, ((10, 10, 3), (40, 40, 9)))
    np.testing.assert_array_equal(voxels, expected_voxels.repeat(4, 0).repeat(4, 1).repeat(4, 2))


def test_requests_hold_at_most_one_batch(
    server: CaveServer, client: ImageryClient, world: World, configure: Configure
) -> None:
    configure("graph.batch_ids", 50)
    server.reset()
    voxels = cut(client, world, WHOLE, timestamp=world.times["split_1"])
    np.testing.assert_array_equal(voxels, expected(world, world.times["split_1"], WHOLE))
    assert max(sent_ids(server)) == 50
    assert server.ids_sent == distinct(world)


def test_a_mapping_of_masks_sends_requests_only_when_needed(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_cache: None
) -> None:
    moment = int(world.times["split_1"])
    expected_voxels = expected(world, moment, BOXES[1])
    server.reset()
    masks = client.split_segmentation_cutout(
        bounds(world, BOXES[1]), mip=0, resolution=resolution(world), timestamp=moment
    )
    root = changed(world, "split_1")[1][0]
    mask = masks[root]
    assert (mask.dtype, mask.shape, masks.shape) == (bool, expected_voxels.shape, expected_voxels.shape)
    assert server.count() == 0
    np.testing.assert_array_equal(mask, expected_voxels == root)
    server.reset()
    assert list(masks) == [int(value) for value in np.unique(expected_voxels) if value]
    assert server.ids_sent == distinct(world, BOXES[1])  # one pass
    assert len(masks) == len(list(masks.items()))
    assert root in masks
    assert server.ids_sent == distinct(world, BOXES[1])
    with pytest.raises(KeyError):
        masks[changed(world, "split_1")[0][0]]


@pytest.mark.parametrize("listed", [False, True])
def test_saving_all_masks_looks_up_each_block_once(
    server: CaveServer, client: ImageryClient, world: World, tmp_path: Path, small_lazy_blocks: None, no_cache: None,
    listed: bool,
) -> None:  # fmt: skip
    moment = int(world.times["split_1"])
    expected_voxels = expected(world, moment, BOXES[1])
    roots = [int(value) for value in np.unique(expected_voxels) if value]
    keep: Any = roots[::2] if listed else "all"
    server.reset()
    client.save_segmentation_masks(
        str(tmp_path / "mask"), bounds(world, BOXES[1]), mip=0, resolution=resolution(world), timestamp=moment,
        root_ids=keep,
    )  # fmt: skip
    assert server.ids_sent == distinct(world, BOXES[1])
    wanted = roots[::2] if listed else roots
    depth = expected_voxels.shape[2]
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == len(wanted) * depth
    for root in wanted[:: max(1, len(wanted) // 4)]:
        for index in (0, depth - 1):
            picture = imageio.imread(tmp_path / f"mask_slice_{index}_root_id_{root}.png")
            np.testing.assert_array_equal(picture[..., 3].T == 255, expected_voxels[:, :, index] == root)


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("way", ["blocks", "leaves"])
def test_requests_in_flight_are_bounded_in_a_process(
    server: CaveServer, world: World, small_lazy_blocks: None, configure: Configure, limit: int, way: str
) -> None:
    configure("graph.processes", 1 if way == "leaves" else 100)
    client = client_of(server, max_requests=limit)
    moment = int(world.times["split_1"])
    array = cut(client, world, WHOLE, timestamp=moment, root_ids=roots_at(world, moment)[:12])
    server.latency_s = 0.02
    server.reset()
    with dask.config.set(pool=ThreadPoolExecutor(8)):
        array.compute(scheduler="threads")
    assert server.count("leaves" if way == "leaves" else "roots_binary") > 8
    assert server.max_in_flight <= limit


@pytest.mark.parametrize("way", ["blocks", "leaves"])
def test_requests_in_flight_are_bounded_over_a_cluster(
    server: CaveServer, world: World, small_lazy_blocks: None, processes: Client, configure: Configure,
    way: str,
) -> None:  # fmt: skip
    configure("graph.processes", 1 if way == "leaves" else 100)
    moment = int(world.times["split_1"])
    client = client_of(server, max_requests=1)
    array = cut(client, world, WHOLE, timestamp=moment, root_ids=roots_at(world, moment)[:6])
    with secrets_file(server):
        processes.run(open_in_worker, server.segmentation_source)
        server.latency_s = 0.03
        server.reset()
        processes.compute(array + 0).result()
    assert server.count() > 5
    assert server.max_in_flight == 1


def open_in_worker(path: str) -> None:
    """Open a volume in a worker, which reads its info file."""
    from imagery_dask.sources import open_volume

    open_volume(path)


def test_cutouts_do_not_read_the_info_again(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None
) -> None:
    server.reset()
    for box in BOXES:
        cut(client, world, box, timestamp=world.times["split_1"]).compute()
    assert server.count("info") == 0


def test_creating_an_array_sends_no_requests_and_pickles_small(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None
) -> None:
    server.reset()
    volume = client.segmentation_volume(timestamp=world.times["split_1"])
    assert server.count() == 0
    assert len(pickle.dumps(volume.data)) < 8000
