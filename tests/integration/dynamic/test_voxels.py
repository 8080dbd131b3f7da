"""Cutouts of dynamic segmentations equal those of CloudVolume, at every moment and mip and on every scheduler."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from cloudvolume import Bbox, CloudVolume
from distributed import Client
from support.dynamic import (
    BOXES,
    TOKEN,
    WHOLE,
    at_mip,
    bounds,
    changed,
    client_of,
    crop,
    cut,
    distinct,
    expected,
    moments,
    roots_at,
    secrets_file,
    squeezed,
)

from imagery_dask import ImageryClient
from imagery_dask.testing.cave import CaveServer, World


@pytest.mark.parametrize("mip", [0, 1, 2])
def test_voxels_equal_cloudvolume_at_every_moment(server: CaveServer, world: World, mip: int) -> None:
    client = client_of(server)
    for moment in moments(world):
        if moment < world.times["created"]:
            continue  # CloudVolume returns supervoxels as if they were roots; see test_zero_roots.py
        cv = CloudVolume(
            server.segmentation_source, mip=mip, agglomerate=True, timestamp=moment, secrets=TOKEN, progress=False,
            bounded=False, fill_missing=True,
        )  # fmt: skip
        for box in BOXES:
            box = at_mip(box, mip)
            voxels = cut(client, world, box, mip, timestamp=moment).compute()
            np.testing.assert_array_equal(voxels, squeezed(cv.download(Bbox(*bounds(world, box, mip)))))
            np.testing.assert_array_equal(voxels, squeezed(expected(world, np.ceil(moment), box, mip=mip)))
            assert voxels.dtype == np.uint64


@pytest.mark.parametrize("mip", [0, 1, 2])
def test_without_root_ids_supervoxels_are_read_as_stored(server: CaveServer, world: World, mip: int) -> None:
    client = client_of(server)
    cv = CloudVolume(server.segmentation_source, mip=mip, secrets=TOKEN, progress=False, bounded=False)
    server.reset()
    for box in BOXES:
        box = at_mip(box, mip)
        voxels = cut(client, world, box, mip, root_ids=None).compute()
        np.testing.assert_array_equal(voxels, squeezed(cv.download(Bbox(*bounds(world, box, mip)))))
    assert server.count() == 0


@pytest.mark.parametrize("mip", [0, 2])
@pytest.mark.parametrize("edit", ["created", "merge_1", "split_2"])
def test_listed_roots_equal_cloudvolume(server: CaveServer, world: World, mip: int, edit: str) -> None:
    client, moment = client_of(server), int(np.ceil(world.times[edit]))
    listed = [*changed(world, edit)[1][:2], *roots_at(world, moment)[::5]]
    cv = CloudVolume(server.segmentation_source, mip=mip, secrets=TOKEN, progress=False, bounded=False)
    for box in BOXES:
        box = at_mip(box, mip)
        voxels = cut(client, world, box, mip, root_ids=listed, timestamp=moment).compute()
        expected_voxels = cv.download(Bbox(*bounds(world, box, mip)), segids=listed, timestamp=moment)
        np.testing.assert_array_equal(voxels, squeezed(expected_voxels))
        np.testing.assert_array_equal(voxels, squeezed(expected(world, moment, box, mip=mip, keep=listed)))


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_ids_of_other_layers_equal_cloudvolume(server: CaveServer, world: World, layer: int) -> None:
    client, moment = client_of(server), int(world.times["split_2"]) + 1
    cv = CloudVolume(
        server.segmentation_source, agglomerate=True, timestamp=moment, secrets=TOKEN, progress=False, bounded=False
    )
    for box in BOXES:
        voxels = cut(client, world, box, timestamp=moment, stop_layer=layer).compute()
        np.testing.assert_array_equal(voxels, cv.download(Bbox(*bounds(world, box)), stop_layer=layer)[..., 0])
        np.testing.assert_array_equal(voxels, crop(world.roots_volume(moment, stop_layer=layer), box))
    listed = roots_at(world, moment)[::3]
    some = cut(client, world, WHOLE, timestamp=moment, stop_layer=layer, root_ids=listed)
    np.testing.assert_array_equal(some, expected(world, moment, WHOLE, keep=listed, stop_layer=layer))


@pytest.mark.parametrize("layer", [0, 5, -1, 2.0, "2", True])
def test_layers_that_the_graph_lacks_are_refused(client: ImageryClient, world: World, layer: Any) -> None:
    with pytest.raises(ValueError, match=r"stop_layer must be a layer of the graph, from 1 \(supervoxels\) to 4"):
        cut(client, world, stop_layer=layer)


@pytest.mark.parametrize("root_ids", ["all", None, "listed", []])
def test_boxes_outside_the_volume_are_empty(
    client: ImageryClient, server: CaveServer, world: World, root_ids: Any
) -> None:
    listed = roots_at(world, world.times["merge_1"])[:2]
    server.reset()
    for box in (((-50, 0, 0), (-10, 20, 5)), ((128, 0, 0), (140, 5, 5)), ((500, 500, 500), (600, 600, 510))):
        for layer in (None, 2):
            voxels = cut(
                client, world, box, root_ids=listed if root_ids == "listed" else root_ids, stop_layer=layer,
                timestamp=world.times["merge_1"],
            )  # fmt: skip
            assert voxels.shape == tuple(np.subtract(*box[::-1]))
            assert not voxels.compute().any()
    assert server.count("roots_binary") == 0


def test_convert_to_int64_chooses_the_dtype(client: ImageryClient, world: World) -> None:
    expected_voxels = expected(world, world.times["split_1"], WHOLE)
    for convert, dtype in ((True, np.int64), (False, np.uint64)):
        voxels = cut(client, world, WHOLE, timestamp=world.times["split_1"], convert_to_int64=convert)
        assert voxels.dtype == voxels.compute().dtype == dtype
        np.testing.assert_array_equal(voxels.compute().astype(np.uint64), expected_voxels)


def test_imagery_and_objects_are_aligned(server: CaveServer, world: World) -> None:
    """The segmentation is half as fine as the imagery along x and y; ids are looked up before it is enlarged."""
    client = ImageryClient(client=server.client(), timestamp=world.times["merge_2"])
    box = np.array([(21, 30, 3), (160, 151, 29)])
    cave = client.image_and_segmentation_cutout(box + np.array(world.voxel_offset) * (2, 2, 1))
    data = client.dataset(box + np.array(world.voxel_offset) * (2, 2, 1), scale_to_bounds=True)
    roots = expected(world, np.ceil(world.times["merge_2"]), WHOLE).repeat(2, 0).repeat(2, 1)
    image = CloudVolume(world.image_source, progress=False)[:][..., 0]
    part = tuple(map(slice, *box))
    for pictures, ids in (cave, (data.image.data, data.segmentation.data)):
        np.testing.assert_array_equal(pictures, image[part])
        np.testing.assert_array_equal(ids, roots[part])
    assert data.segmentation.attrs["timestamp_unix_s"] == np.ceil(world.times["merge_2"])
    assert server.ids_sent <= 1.02 * distinct(world)


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_every_local_scheduler_gives_the_same_voxels(
    client: ImageryClient, world: World, small_lazy_blocks: None, scheduler: str
) -> None:
    moment = world.times["split_1"]
    array = cut(client, world, WHOLE, timestamp=moment)
    assert array.npartitions == 32
    np.testing.assert_array_equal(array.compute(scheduler=scheduler), expected(world, moment, WHOLE))
    np.testing.assert_array_equal((array + 0).compute(scheduler=scheduler), expected(world, moment, WHOLE))
    plane = client.segmentation_volume(timestamp=moment)[:, :, 20]
    np.testing.assert_array_equal(plane.compute(scheduler=scheduler), expected(world, moment, WHOLE)[:, :, 20])


def test_threads_of_a_cluster_give_the_same_voxels(
    client: ImageryClient, world: World, threads: Client, small_lazy_blocks: None
) -> None:
    array = cut(client, world, WHOLE, timestamp=world.times["merge_1"])
    voxels = threads.compute(array + 0).result()
    np.testing.assert_array_equal(voxels, expected(world, np.ceil(world.times["merge_1"]), WHOLE))


@pytest.mark.parametrize("listed", [False, True])
def test_worker_processes_find_the_token_in_a_file(
    client: ImageryClient, server: CaveServer, world: World, processes: Client, small_lazy_blocks: None, listed: bool
) -> None:
    moment = int(np.ceil(world.times["merge_1"]))
    keep: Any = changed(world, "merge_1")[1] if listed else "all"
    array = cut(client, world, WHOLE, timestamp=moment, root_ids=keep)
    server.reset()
    with secrets_file(server):
        voxels = processes.compute(array + 0).result()
    np.testing.assert_array_equal(voxels, expected(world, moment, WHOLE, keep=keep))
    assert server.count("info") <= 2  # once in each process
    assert {request.status for request in server.requests} == {200}


def test_worker_processes_find_the_token_in_their_environment(
    client: ImageryClient, server: CaveServer, world: World, processes: Client, small_lazy_blocks: None
) -> None:
    array = cut(client, world, WHOLE, timestamp=world.times["split_2"])
    processes.run(set_token, TOKEN)
    try:
        voxels = processes.compute(array + 0).result()
    finally:
        processes.run(set_token, None)
    np.testing.assert_array_equal(voxels, expected(world, np.ceil(world.times["split_2"]), WHOLE))


def set_token(token: str | None) -> None:
    """Set or remove this process's token for all CAVE servers."""
    os.environ.pop("CAVE_TOKEN", None)
    if token is not None:
        os.environ["CAVE_TOKEN"] = token
