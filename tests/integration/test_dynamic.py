"""Dynamic segmentations against the local CAVE server: the voxels, the moment, and what is asked of the server."""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
from cloudvolume import Bbox, CloudVolume
from distributed import Client
from integration.stores import labels, written
from support.dynamic import (
    TOKEN,
    Box,
    at,
    bounds,
    changed,
    crop,
    distinct,
    expected,
    forget_roots,
    resolution,
    roots_at,
    served,
)  # fmt: skip
from support.settings import Configure

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.sources import collect_counts
from imagery_dask.sources.root_cache import RootCache
from imagery_dask.testing.cave import CaveServer, World, make_world, world_from_arrays
from imagery_dask.testing.cave.graph import ChunkedGraph

WHOLE: Box = ((0, 0, 0), (128, 128, 32))
BOXES: list[Box] = [
    WHOLE,
    ((5, 9, 3), (77, 70, 29)),  # across graph chunks
    ((31, 31, 15), (33, 33, 17)),  # around a corner of eight
    ((40, 40, 4), (64, 64, 12)),  # within one
    ((-20, 100, -3), (40, 150, 20)),  # partly outside
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One world for all tests here that do not edit."""
    return make_world(tmp_path_factory.mktemp("dynamic"))


@pytest.fixture
def server(world: World) -> Iterator[CaveServer]:
    with served(world) as server:
        yield server


@pytest.fixture
def client(server: CaveServer) -> ImageryClient:
    return client_of(server)


@pytest.fixture
def small_lazy_blocks(configure: Configure) -> None:
    """Blocks of one graph chunk, of which the whole volume has 32."""
    configure("lazy.block_bytes", 32 * 32 * 16 * 8)


def client_of(server: CaveServer, **options: Any) -> ImageryClient:
    return ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN, **options)


def at_mip(box: Box, mip: int) -> Box:
    """Box in voxels of a mip, of the same place."""
    return tuple(np.floor_divide(corner, (2**mip, 2**mip, 1)).tolist() for corner in box)  # type: ignore[return-value]


def cut(client: ImageryClient, world: World, box: Box, mip: int = 0, **options: Any) -> Any:
    return client.segmentation_cutout(
        bounds(world, box, mip), mip=mip, resolution=resolution(world, mip), **{"convert_to_int64": False, **options}
    )


def squeezed(voxels: Any) -> np.ndarray:
    """Drop axes of length 1, as cutouts do."""
    return np.asarray(voxels).squeeze()


def moments(world: World) -> list[float]:
    """Each edit's own time, and a second before."""
    return [moment for edit in world.times.values() for moment in (edit - 1, edit)]


@contextmanager
def secrets_file(server: CaveServer) -> Iterator[Path]:
    """Put the token where processes look for it."""
    folder = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{server.url.removeprefix('http://')}-cave-secret.json"
    file.write_text(json.dumps({"token": TOKEN}))
    try:
        yield file
    finally:
        file.unlink()


# ----------------------------------------------------------------------------------------------------- the voxels


@pytest.mark.parametrize("mip", [0, 1, 2])
def test_voxels_equal_cloudvolume_at_every_moment(server: CaveServer, world: World, mip: int) -> None:
    client = client_of(server)
    for moment in moments(world):
        if moment < world.times["created"]:
            continue  # CloudVolume gives supervoxels as if they were roots: see the zero roots below
        cv = CloudVolume(
            server.segmentation_source, mip=mip, agglomerate=True, timestamp=moment, secrets=TOKEN, progress=False,
            bounded=False, fill_missing=True,
        )  # fmt: skip
        for box in BOXES:
            box = at_mip(box, mip)
            got = cut(client, world, box, mip, timestamp=moment).compute()
            np.testing.assert_array_equal(got, squeezed(cv.download(Bbox(*bounds(world, box, mip)))))
            np.testing.assert_array_equal(got, squeezed(expected(world, np.ceil(moment), box, mip=mip)))
            assert got.dtype == np.uint64


@pytest.mark.parametrize("mip", [0, 1, 2])
def test_supervoxels_as_stored(server: CaveServer, world: World, mip: int) -> None:
    client = client_of(server)
    cv = CloudVolume(server.segmentation_source, mip=mip, secrets=TOKEN, progress=False, bounded=False)
    server.reset()
    for box in BOXES:
        box = at_mip(box, mip)
        got = cut(client, world, box, mip, root_ids=None).compute()
        np.testing.assert_array_equal(got, squeezed(cv.download(Bbox(*bounds(world, box, mip)))))
    assert server.count() == 0


@pytest.mark.parametrize("mip", [0, 2])
@pytest.mark.parametrize("edit", ["created", "merge_1", "split_2"])
def test_listed_roots(server: CaveServer, world: World, mip: int, edit: str) -> None:
    client, moment = client_of(server), int(np.ceil(world.times[edit]))
    listed = [*changed(world, edit)[1][:2], *roots_at(world, moment)[::5]]
    cv = CloudVolume(server.segmentation_source, mip=mip, secrets=TOKEN, progress=False, bounded=False)
    for box in BOXES:
        box = at_mip(box, mip)
        got = cut(client, world, box, mip, root_ids=listed, timestamp=moment).compute()
        right = cv.download(Bbox(*bounds(world, box, mip)), segids=listed, timestamp=moment)
        np.testing.assert_array_equal(got, squeezed(right))
        np.testing.assert_array_equal(got, squeezed(expected(world, moment, box, mip=mip, keep=listed)))


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_ids_of_other_layers(server: CaveServer, world: World, layer: int) -> None:
    client, moment = client_of(server), int(world.times["split_2"]) + 1
    cv = CloudVolume(
        server.segmentation_source, agglomerate=True, timestamp=moment, secrets=TOKEN, progress=False, bounded=False
    )
    for box in BOXES:
        got = cut(client, world, box, timestamp=moment, stop_layer=layer).compute()
        np.testing.assert_array_equal(got, cv.download(Bbox(*bounds(world, box)), stop_layer=layer)[..., 0])
        np.testing.assert_array_equal(got, crop(world.roots_volume(moment, stop_layer=layer), box))
    listed = roots_at(world, moment)[::3]
    some = cut(client, world, WHOLE, timestamp=moment, stop_layer=layer, root_ids=listed)
    np.testing.assert_array_equal(some, expected(world, moment, WHOLE, keep=listed, stop_layer=layer))


@pytest.mark.parametrize("root_ids", ["all", None, "listed", []])
def test_boxes_outside_the_volume_are_empty(
    client: ImageryClient, server: CaveServer, world: World, root_ids: Any
) -> None:
    listed = roots_at(world, world.times["merge_1"])[:2]
    server.reset()
    for box in (((-50, 0, 0), (-10, 20, 5)), ((128, 0, 0), (140, 5, 5)), ((500, 500, 500), (600, 600, 510))):
        for layer in (None, 2):
            got = cut(
                client, world, box, root_ids=listed if root_ids == "listed" else root_ids, stop_layer=layer,
                timestamp=world.times["merge_1"],
            )  # fmt: skip
            assert got.shape == tuple(np.subtract(*box[::-1]))
            assert not got.compute().any()
    assert server.count("roots_binary") == 0


def test_int64_and_the_stored_dtype(client: ImageryClient, world: World) -> None:
    right = expected(world, world.times["split_1"], WHOLE)
    for convert, dtype in ((True, np.int64), (False, np.uint64)):
        got = cut(client, world, WHOLE, timestamp=world.times["split_1"], convert_to_int64=convert)
        assert got.dtype == got.compute().dtype == dtype
        np.testing.assert_array_equal(got.compute().astype(np.uint64), right)


def test_imagery_and_objects_stay_aligned(server: CaveServer, world: World) -> None:
    """Objects have half of the image's voxels along x and y, and are looked up before they are enlarged."""
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
def test_every_local_scheduler(client: ImageryClient, world: World, small_lazy_blocks: None, scheduler: str) -> None:
    moment = world.times["split_1"]
    array = cut(client, world, WHOLE, timestamp=moment)
    assert array.npartitions == 32
    np.testing.assert_array_equal(array.compute(scheduler=scheduler), expected(world, moment, WHOLE))
    np.testing.assert_array_equal((array + 0).compute(scheduler=scheduler), expected(world, moment, WHOLE))
    plane = client.segmentation_volume(timestamp=moment)[:, :, 20]
    np.testing.assert_array_equal(plane.compute(scheduler=scheduler), expected(world, moment, WHOLE)[:, :, 20])


def test_on_threads_of_a_cluster(client: ImageryClient, world: World, threads: Client, small_lazy_blocks: None) -> None:
    array = cut(client, world, WHOLE, timestamp=world.times["merge_1"])
    got = threads.compute(array + 0).result()
    np.testing.assert_array_equal(got, expected(world, np.ceil(world.times["merge_1"]), WHOLE))


@pytest.mark.parametrize("listed", [False, True])
def test_on_processes_that_find_the_token_in_a_file(
    client: ImageryClient, server: CaveServer, world: World, processes: Client, small_lazy_blocks: None, listed: bool
) -> None:
    moment = int(np.ceil(world.times["merge_1"]))
    keep: Any = changed(world, "merge_1")[1] if listed else "all"
    array = cut(client, world, WHOLE, timestamp=moment, root_ids=keep)
    server.reset()
    with secrets_file(server):
        got = processes.compute(array + 0).result()
    np.testing.assert_array_equal(got, expected(world, moment, WHOLE, keep=keep))
    assert server.count("info") <= 2  # once in each process
    assert {request.status for request in server.requests} == {200}


def test_on_processes_that_find_the_token_in_their_environment(
    client: ImageryClient, server: CaveServer, world: World, processes: Client, small_lazy_blocks: None
) -> None:
    array = cut(client, world, WHOLE, timestamp=world.times["split_2"])
    processes.run(set_token, TOKEN)
    try:
        got = processes.compute(array + 0).result()
    finally:
        processes.run(set_token, None)
    np.testing.assert_array_equal(got, expected(world, np.ceil(world.times["split_2"]), WHOLE))


def set_token(token: str | None) -> None:
    """Set this process's token for all CAVE servers."""
    os.environ.pop("CAVE_TOKEN", None)
    if token is not None:
        os.environ["CAVE_TOKEN"] = token


@pytest.mark.parametrize("cluster", [None, "local"])
def test_exports(server: CaveServer, world: World, tmp_path: Path, small_blocks: int, cluster: str | None) -> None:
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
    assert server.count("info") <= 2


def test_exports_where_graph_chunks_do_not_fit_into_memory(
    tmp_path: Path, processes: Client, configure: Configure
) -> None:
    """A block is worked off in pieces, by one process, whose cache serves the next piece."""
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
def test_exports_of_datasets(
    server: CaveServer, world: World, tmp_path: Path, processes: Client, small_blocks: int, scaled: bool
) -> None:
    client = ImageryClient(client=server.client(), timestamp=world.times["split_1"])
    data = client.dataset(bounds(world, WHOLE) * (2, 2, 1), scale_to_bounds=scaled)
    server.reset()
    with secrets_file(server):
        report = to_zarr(data, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=processes, progress=False)
    right = expected(world, world.times["split_1"], WHOLE).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(labels(tmp_path / "out.zarr"), right)
    assert server.ids_sent <= 1.02 * distinct(world)
    assert report.counts.ids_sent == server.ids_sent


def test_the_moment_of_an_export_is_written_down(client: ImageryClient, world: World, tmp_path: Path) -> None:
    volume = client.segmentation_volume(timestamp=world.times["split_1"])
    to_zarr(volume, tmp_path / "out.zarr", progress=False)
    text = " ".join(file.read_text() for file in tmp_path.rglob("zarr.json"))
    assert "2024-01-03T00:00:00Z" in text or str(int(world.times["split_1"])) in text


@pytest.mark.parametrize("what", ["all", "listed", "none", "level 2", "mask", "computed"])
def test_exports_of_every_kind(
    client: ImageryClient, world: World, tmp_path: Path, threads: Client, small_blocks: int, what: str
) -> None:
    moment = int(world.times["split_2"]) + 1
    listed = roots_at(world, moment)[:3]
    options: dict[str, Any] = {"listed": {"root_ids": listed}, "none": {"root_ids": None}}.get(what, {})
    layer = 2 if what == "level 2" else None
    box = BOXES[4]
    right = expected(world, moment, box, keep=options.get("root_ids", "all"), stop_layer=layer)
    array = cut(client, world, box, timestamp=moment, stop_layer=layer, **options)
    if what == "mask":
        root = int(np.unique(right)[-1])
        array = client.split_segmentation_cutout(
            bounds(world, box), mip=0, resolution=resolution(world), timestamp=moment
        )[root]
        right = right == root
    if what == "computed":
        array, right = array % 1009, right % 1009
    to_zarr(array, tmp_path / "out.zarr", chunks=(16, 16, 16), cluster=threads, progress=False)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), right)


# ----------------------------------------------------------------------------------------------------- the moment


def forms(second: int) -> dict[str, Any]:
    aware = datetime.fromtimestamp(second, UTC)
    return {
        "number": second,
        "float": float(second),
        "aware": aware,
        "naive": aware.replace(tzinfo=None),
        "text": aware.isoformat(),
        "text of another zone": pd.Timestamp(aware).tz_convert("Asia/Tokyo").isoformat(),
        "numpy": np.datetime64(second, "s"),
        "pandas": pd.Timestamp(aware),
        "fraction": second - 0.75,
        "fraction of a datetime": datetime.fromtimestamp(second - 0.75, UTC),
    }


def test_forms_of_one_moment_are_one_array(client: ImageryClient, world: World) -> None:
    second = int(world.times["split_1"])
    arrays = {name: cut(client, world, BOXES[1], timestamp=form) for name, form in forms(second).items()}
    assert len({array.name for array in arrays.values()}) == 1
    clients = [client_of_moment(client, form) for form in forms(second).values()]
    assert {cut(each, world, BOXES[1]).name for each in clients} == {arrays["number"].name}
    np.testing.assert_array_equal(arrays["fraction"], expected(world, second, BOXES[1]))


def client_of_moment(client: ImageryClient, moment: Any) -> ImageryClient:
    return ImageryClient(segmentation_source=client.segmentation_source, timestamp=moment)


def test_the_moment_is_shown(server: CaveServer, world: World) -> None:
    second = int(np.ceil(world.times["merge_2"]))
    client = client_of(server, timestamp=world.times["merge_2"])
    text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert f"timestamp='{text}'" in repr(client)
    assert "timestamp" not in repr(client_of(server))
    volume = client.segmentation_volume()
    assert (volume.attrs["timestamp"], volume.attrs["timestamp_unix_s"]) == (text, second)
    assert (volume.attrs["source"], volume.attrs["mip"]) == (server.segmentation_source, 0)
    json.dumps(volume.attrs)
    data = client.dataset(bounds(world, BOXES[1]), timestamp=world.times["created"])
    assert data.segmentation.attrs["timestamp_unix_s"] == world.times["created"]
    assert "timestamp" not in client.segmentation_volume(root_ids=None).attrs  # supervoxels have no moment


@pytest.mark.parametrize("now", [None, "now"])
def test_now_is_when_the_array_is_made(server: CaveServer, now: Any) -> None:
    before = int(time.time())
    volume = client_of(server).segmentation_volume(timestamp=now)
    assert before <= volume.attrs["timestamp_unix_s"] <= time.time()
    pinned = client_of(server, timestamp="now")
    first = pinned.segmentation_volume().attrs["timestamp_unix_s"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagery_dask.model.moments.time.time", lambda: before + 3600.0)
        assert pinned.segmentation_volume().attrs["timestamp_unix_s"] == first
        assert pinned.segmentation_volume(timestamp="now").attrs["timestamp_unix_s"] == before + 3600
        assert client_of(server).segmentation_volume().attrs["timestamp_unix_s"] == before + 3600


def test_an_array_keeps_its_moment_although_the_graph_goes_on(tmp_path: Path, small_lazy_blocks: None) -> None:
    world = make_world(tmp_path / "world", (128, 128, 32), edited=False)
    graph, whole = world.graph, ((0, 0, 0), (64, 64, 32))
    with served(world) as server:
        client = client_of(server)
        volume = client.segmentation_volume()
        masks = client.split_segmentation_cutout(bounds(world, whole), mip=0)
        first, second, *_ = roots_at(world, time.time())
        listed = cut(client, world, whole, root_ids=[first, second])
        merged = graph.merge(first, second)
        graph.split(merged, graph.leaves(merged)[::2])
        moment = volume.attrs["timestamp_unix_s"]
        right = expected(world, moment, whole)
        assert {first, second} <= set(np.unique(right).tolist())
        assert not np.array_equal(right, world.roots_volume(time.time() + 1))
        for _ in range(2):
            np.testing.assert_array_equal(volume, right)
            np.testing.assert_array_equal(listed, np.where(np.isin(right, [first, second]), right, 0))
            forget_roots()
        assert {first, second} <= set(masks)
        np.testing.assert_array_equal(masks[first], right == first)
        to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), progress=False)
        np.testing.assert_array_equal(written(tmp_path / "out.zarr"), right)


# ------------------------------------------------------------------------------------------------- a CAVEclient


def test_a_caveclient_gives_everything(server: CaveServer, world: World) -> None:
    client = ImageryClient(client=server.client())
    assert client.image_source == world.image_source
    assert client.segmentation_source == server.segmentation_source
    assert client.resolution.tolist() == [8, 8, 40]
    assert "timestamp" not in repr(client)
    got = client.segmentation_cutout(
        bounds(world, BOXES[1]) * (2, 2, 1), scale_to_bounds=False, timestamp=world.times["created"]
    )
    np.testing.assert_array_equal(got, expected(world, world.times["created"], BOXES[1]))


def test_explicit_arguments_win(server: CaveServer, world: World) -> None:
    cave = server.client(version=2)
    assert ImageryClient(client=cave, resolution=(16, 16, 40)).resolution.tolist() == [16, 16, 40]
    assert ImageryClient(client=cave, resolution="segmentation").resolution.tolist() == [16, 16, 40]
    other = ImageryClient(client=cave, image_source=world.watershed_source.replace("watershed", "image"))
    assert other.image_source == world.image_source
    flat = ImageryClient(client=cave, segmentation_source=world.watershed_source, imagery=False)
    server.reset()
    np.testing.assert_array_equal(cut(flat, world, WHOLE), world.supervoxels)
    assert server.count() == 0
    moment = int(world.times["created"])
    pinned = ImageryClient(client=cave, timestamp=moment, imagery=False)
    assert pinned.segmentation_volume().attrs["timestamp_unix_s"] == moment
    assert pinned.segmentation_volume(timestamp=moment + 5).attrs["timestamp_unix_s"] == moment + 5
    np.testing.assert_array_equal(cut(pinned, world, WHOLE), expected(world, moment, WHOLE))
    assert ImageryClient(client=server.client(), auth_token=TOKEN, imagery=False).segmentation_source


def test_a_client_without_a_layer_does_not_ask_for_it(server: CaveServer) -> None:
    cave = server.client()
    server.reset()
    client = ImageryClient(client=cave, segmentation=False)
    assert (client.segmentation_source, server.count("info")) == (None, 0)
    with pytest.raises(ValueError, match="made without segmentation"):
        client.segmentation_volume()
    assert ImageryClient(client=cave, imagery=False).image_source is None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_versions_pin(server: CaveServer, world: World, number: int) -> None:
    moment = int(np.ceil(world.versions[number].timestamp))
    by_client = ImageryClient(client=server.client(version=number), imagery=False)
    by_keyword = ImageryClient(client=server.client(), imagery=False, version=number)
    by_volume = ImageryClient(client=server.client(), imagery=False).segmentation_volume(version=number)
    over = ImageryClient(client=server.client(version=4 - number), imagery=False, version=number)
    right = expected(world, moment, WHOLE)
    for volume in (by_client.segmentation_volume(), by_keyword.segmentation_volume(), by_volume):
        assert volume.attrs["timestamp_unix_s"] == moment
        assert volume.attrs["materialization_version"] == number
        np.testing.assert_array_equal(volume, right)
    assert over.segmentation_volume().attrs["timestamp_unix_s"] == moment
    assert by_client.segmentation_volume(version=2).attrs["timestamp_unix_s"] == np.ceil(world.versions[2].timestamp)
    assert "materialization_version" not in by_client.segmentation_volume(timestamp=moment).attrs
    for client in (by_client, by_keyword):
        np.testing.assert_array_equal(cut(client, world, BOXES[1]), crop(right, BOXES[1]))
        masks = client.split_segmentation_cutout(bounds(world, BOXES[1]), mip=0, resolution=resolution(world))
        assert set(masks) == set(np.unique(crop(right, BOXES[1])).tolist()) - {0}


def test_a_caveclient_is_not_asked_again(server: CaveServer, world: World) -> None:
    """It is for the driver, and only while a client is made."""
    client = ImageryClient(client=server.client(version=3), imagery=False)
    server.reset()
    np.testing.assert_array_equal(client.segmentation_volume(), expected(world, world.versions[3].timestamp, WHOLE))
    assert {request.endpoint for request in server.requests} == {"roots_binary"}


# ---------------------------------------------------------------------------------------------- what is asked for


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget at once, as if each block were in a process of its own."""
    monkeypatch.setattr("imagery_dask.sources.roots._cache_of", lambda query: RootCache())


@pytest.mark.parametrize("mip", [0, 1, 2])
def test_each_supervoxel_is_sent_once(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_cache: None, mip: int
) -> None:
    """Blocks are whole graph chunks at every mip, so that this holds without any cache."""
    volume = client.segmentation_volume(mip=mip, timestamp=world.times["merge_1"])
    server.reset()
    with collect_counts() as counts:
        np.testing.assert_array_equal(
            volume.compute(scheduler="sync"), world.roots_volume(world.times["merge_1"] + 1, mip)
        )
    there = np.unique(world.mips[mip])
    assert server.ids_sent == counts.ids_sent == np.count_nonzero(there)
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
def test_a_second_pass_asks_nothing(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, scheduler: str, layer: Any
) -> None:
    moment = int(world.times["split_1"])
    server.latency_s = 0.01  # so that the first blocks ask at the same time
    array = cut(client, world, WHOLE, timestamp=moment, stop_layer=layer)
    server.reset()
    array.compute(scheduler=scheduler)
    assert server.ids_sent == distinct(world)
    server.reset()
    array.compute(scheduler=scheduler)
    cut(client, world, BOXES[1], timestamp=moment, stop_layer=layer).compute(scheduler=scheduler)
    assert server.count() == 0
    cut(client, world, BOXES[1], timestamp=moment - 1, stop_layer=layer).compute(scheduler=scheduler)
    assert server.count("roots_binary") > 0  # another moment is another question


def test_blocks_smaller_than_graph_chunks_share_what_they_found(
    server: CaveServer, client: ImageryClient, world: World, configure: Configure
) -> None:
    configure("lazy.block_bytes", 2048)
    nm = np.array(resolution(world)) / 4
    box = bounds(world, ((10, 10, 3), (40, 40, 9))) * 4
    array = client.segmentation_cutout(box, resolution=nm, timestamp=world.times["merge_1"], scale_to_bounds=True)
    assert array.npartitions > 8
    server.reset()
    got = array.compute(scheduler="sync")
    assert server.ids_sent == distinct(world, ((10, 10, 3), (40, 40, 9)))
    right = expected(world, world.times["merge_1"] + 1, ((10, 10, 3), (40, 40, 9)))
    np.testing.assert_array_equal(got, right.repeat(4, 0).repeat(4, 1).repeat(4, 2))


def test_requests_are_small_where_a_batch_is(
    server: CaveServer, client: ImageryClient, world: World, configure: Configure
) -> None:
    configure("graph.batch_ids", 50)
    server.reset()
    got = cut(client, world, WHOLE, timestamp=world.times["split_1"])
    np.testing.assert_array_equal(got, expected(world, world.times["split_1"], WHOLE))
    assert max(sent_ids(server)) == 50
    assert server.ids_sent == distinct(world)


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_listed_roots_are_checked_by_one_request(
    server: CaveServer, client: ImageryClient, world: World, count: int
) -> None:
    listed = (roots_at(world, world.times["split_1"]) * count)[:count]
    server.reset()
    array = cut(client, world, WHOLE, timestamp=world.times["split_1"], root_ids=listed)
    assert [request.endpoint for request in server.requests] == ["is_latest_roots"]
    assert server.requests[0].path.endswith(f"is_latest_roots?timestamp={int(world.times['split_1'])}")
    assert server.requests[0].n_ids == len(set(listed))
    array.compute()
    assert server.count("is_latest_roots") == 1
    assert server.count("leaves") == 0 < server.count("roots_binary")


@pytest.mark.parametrize("mip", [0, 1, 2])
@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("edit", ["created", "merge_1", "split_2"])
def test_few_roots_in_many_blocks_are_found_by_their_leaves(
    server: CaveServer, world: World, small_lazy_blocks: None, configure: Configure,
    mip: int, layer: Any, edit: str,
) -> None:  # fmt: skip
    """As many requests as there are roots, instead of one for each block; the voxels are the same."""
    configure("graph.processes", 1)
    configure("lazy.block_bytes", 2**14)
    moment, client = int(np.ceil(world.times[edit])), client_of(server)
    listed = [*changed(world, edit)[1][:2], roots_at(world, moment)[4]]
    for box in BOXES:
        box = at_mip(box, mip)
        array = cut(client, world, box, mip, timestamp=moment, root_ids=listed, stop_layer=layer)
        server.reset()
        np.testing.assert_array_equal(
            array.compute(), squeezed(expected(world, moment, box, mip=mip, keep=listed, stop_layer=layer))
        )
        if len(listed) > array.npartitions:
            assert server.count("leaves") == 0
            continue
        assert server.count("leaves") == len(listed)
        assert layer or server.count() == len(listed)
        server.reset()
        array.compute()
        assert server.count() == 0


@pytest.mark.parametrize("scale", [0.5, 1.5, 3])
def test_leaves_of_scaled_cutouts(server: CaveServer, world: World, configure: Configure, scale: float) -> None:
    """The box within which leaves are fetched covers every voxel that is read."""
    configure("lazy.block_bytes", 2**14)
    nm = np.array(resolution(world)) * (scale, scale, 1)
    moment = int(world.times["split_1"])
    listed = changed(world, "split_1")[1]
    results = []
    for processes in (1, 10**6):
        configure("graph.processes", processes)
        client = client_of(server)
        server.reset()
        for box in BOXES:
            low, high = np.floor(bounds(world, box) / (scale, scale, 1)).astype(int)
            array = client.segmentation_cutout(
                [low, np.maximum(high, low + 2)], resolution=nm, timestamp=moment, root_ids=listed,
                scale_to_bounds=True,
            )  # fmt: skip
            results.append(array.compute())
        assert (server.count("leaves") > 0) == (processes == 1)
    for left, right in zip(results[: len(BOXES)], results[len(BOXES) :], strict=True):
        np.testing.assert_array_equal(left, right)
    assert any(result.any() for result in results)


def test_few_roots_of_a_volume_at_negative_coordinates(tmp_path: Path, configure: Configure) -> None:
    """The service's bounds have no sign: such a box cannot be asked for, and the voxels must be right all the same."""
    configure("graph.processes", 1)
    configure("lazy.block_bytes", 2**12)
    objects = np.arange(1, 31).reshape(2, 3, 5).repeat(20, 0).repeat(15, 1).repeat(7, 2)
    world = world_from_arrays(
        tmp_path, objects, chunk_size=(16, 16, 8), storage_chunk=(8, 16, 4), voxel_offset=(16, -32, 8), n_mips=1,
        edited=False,
    )  # fmt: skip
    moment, box = int(world.times["created"]), ((0, 0, 0), objects.shape)
    listed = roots_at(world, moment)[:3]
    with served(world) as server:
        array = cut(client_of(server), world, box, root_ids=listed, timestamp=moment)
        np.testing.assert_array_equal(array, expected(world, moment, box, keep=listed))


def test_a_mapping_of_masks_makes_no_request_until_it_must(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_cache: None
) -> None:
    moment = int(world.times["split_1"])
    right = expected(world, moment, BOXES[1])
    server.reset()
    masks = client.split_segmentation_cutout(
        bounds(world, BOXES[1]), mip=0, resolution=resolution(world), timestamp=moment
    )
    root = changed(world, "split_1")[1][0]
    mask = masks[root]
    assert (mask.dtype, mask.shape, masks.shape) == (bool, right.shape, right.shape)
    assert server.count() == 0
    np.testing.assert_array_equal(mask, right == root)
    server.reset()
    assert list(masks) == [int(value) for value in np.unique(right) if value]
    assert server.ids_sent == distinct(world, BOXES[1])  # one pass
    assert len(masks) == len(list(masks.items()))
    assert root in masks
    assert server.ids_sent == distinct(world, BOXES[1])
    with pytest.raises(KeyError):
        masks[changed(world, "split_1")[0][0]]


@pytest.mark.parametrize("listed", [False, True])
def test_all_masks_together_look_each_block_up_once(
    server: CaveServer, client: ImageryClient, world: World, tmp_path: Path, small_lazy_blocks: None, no_cache: None,
    listed: bool,
) -> None:  # fmt: skip
    moment = int(world.times["split_1"])
    right = expected(world, moment, BOXES[1])
    found = [int(value) for value in np.unique(right) if value]
    keep: Any = found[::2] if listed else "all"
    server.reset()
    client.save_segmentation_masks(
        str(tmp_path / "mask"), bounds(world, BOXES[1]), mip=0, resolution=resolution(world), timestamp=moment,
        root_ids=keep,
    )  # fmt: skip
    assert server.ids_sent == distinct(world, BOXES[1])
    wanted = found[::2] if listed else found
    depth = right.shape[2]
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == len(wanted) * depth
    for root in wanted[:: max(1, len(wanted) // 4)]:
        for index in (0, depth - 1):
            picture = imageio.imread(tmp_path / f"mask_slice_{index}_root_id_{root}.png")
            np.testing.assert_array_equal(picture[..., 3].T == 255, right[:, :, index] == root)


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
        processes.run(open_there, server.segmentation_source)
        server.latency_s = 0.03
        server.reset()
        processes.compute(array + 0).result()
    assert server.count() > 5
    assert server.max_in_flight == 1


def open_there(path: str) -> None:
    """Open a volume in a worker, so that its info is read."""
    from imagery_dask.sources import open_volume

    open_volume(path)


def test_a_process_reads_the_info_once(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None
) -> None:
    server.reset()
    for box in BOXES:
        cut(client, world, box, timestamp=world.times["split_1"]).compute()
    assert server.count("info") == 0


def test_arrays_are_small_and_open_at_once(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None
) -> None:
    server.reset()
    volume = client.segmentation_volume(timestamp=world.times["split_1"])
    assert server.count() == 0
    assert len(pickle.dumps(volume.data)) < 8000


# ------------------------------------------------------------------------------------------------- without a root


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
    right = np.where(np.isin(world.supervoxels, unknown), 0, world.roots_volume())
    assert right.any()
    for _ in range(2):  # found, and remembered
        with collect_counts() as counts:
            np.testing.assert_array_equal(volume.compute(scheduler="sync"), right)
        assert counts.zero_roots == len(unknown)
        assert set(counts.zero_root_ids) <= set(unknown.tolist())
        assert len(counts.zero_root_ids) == min(20, len(unknown))
    report = to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=threads, progress=False)
    assert report.counts.zero_roots == len(unknown)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), right)
    some = int(np.unique(right)[1])
    listed = client_of(server).segmentation_volume(root_ids=[some])
    np.testing.assert_array_equal(listed, np.where(right == some, right, 0))


@pytest.mark.parametrize("layer", [None, 2])
def test_before_the_graph_existed_there_are_no_objects(
    server: CaveServer, client: ImageryClient, world: World, tmp_path: Path, threads: Client, layer: Any
) -> None:
    """The server answers supervoxels with themselves; these are no roots."""
    volume = client.segmentation_volume(timestamp=world.times["created"] - 1, stop_layer=layer)
    with collect_counts() as counts:
        assert not volume.compute(scheduler="sync").any()
    assert counts.zero_roots == distinct(world)
    report = to_zarr(volume, tmp_path / "out.zarr", cluster=threads, progress=False)
    assert (report.counts.zero_roots, report.ok) == (distinct(world), True)
    assert len(client.split_segmentation_cutout(bounds(world, WHOLE), timestamp=world.times["created"] - 1)) == 0


# ------------------------------------------------------------------------------------------ questions about objects


@pytest.mark.parametrize("mip", [0, 1])
@pytest.mark.parametrize("root_ids", ["all", None, "listed", []])
def test_unique_roots(client: ImageryClient, world: World, small_lazy_blocks: None, mip: int, root_ids: Any) -> None:
    moment = int(world.times["split_1"])
    keep = roots_at(world, moment)[:4] if root_ids == "listed" else root_ids
    for box in BOXES:
        box = at_mip(box, mip)
        ids, counts = np.unique(expected(world, moment, box, mip=mip, keep=keep), return_counts=True)
        right = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        options: dict[str, Any] = {
            "mip": mip, "resolution": resolution(world, mip), "timestamp": moment, "root_ids": keep,
        }  # fmt: skip
        assert client.unique_roots(bounds(world, box, mip), include_null_root=True, **options) == right
        right.pop(0, None)
        found = client.unique_roots(bounds(world, box, mip), **options)
        assert found == right
        assert list(found) == sorted(found)
        assert all(type(value) is int for pair in found.items() for value in pair)


def test_unique_roots_is_one_pass(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_cache: None
) -> None:
    server.reset()
    client.unique_roots(bounds(world, WHOLE), timestamp=world.times["split_1"])
    assert server.ids_sent == distinct(world)


@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("mip", [0, 1])
def test_roots_at_points(server: CaveServer, client: ImageryClient, world: World, mip: int, layer: Any) -> None:
    moment = int(world.times["split_1"])
    places = np.random.default_rng(3).integers((-4, -4, -2), (132, 132, 34), (300, 3))
    volume = world.roots_volume(moment, mip, layer)
    steps = np.array((2**mip, 2**mip, 1))
    cells = places // steps
    inside = ((cells >= 0) & (cells < volume.shape)).all(axis=1)
    right = np.where(inside, volume[tuple(np.clip(cells, 0, np.array(volume.shape) - 1).T)], np.uint64(0))
    server.reset()
    points = places + world.voxel_offset
    got = client.root_at(points, mip=mip, timestamp=moment, stop_layer=layer)
    assert got.dtype == np.uint64
    np.testing.assert_array_equal(got, right)
    assert server.count("roots_binary") == 1
    one = client.root_at(points[7], mip=mip, timestamp=moment, stop_layer=layer)
    assert (one.shape, int(one)) == ((), int(right[7]))
    assert client.root_at(np.zeros((0, 3)), timestamp=moment).shape == (0,)
    finer = client.root_at(points * (2, 2, 1) + (1, 1, 0), mip=mip, resolution=(8, 8, 40), timestamp=moment)
    assert layer or np.array_equal(finer, right)
    np.testing.assert_array_equal(client.root_at(points.tolist(), mip=mip, timestamp=moment, stop_layer=layer), right)


def test_roots_at_points_equal_caveclient_and_cloudvolume(
    server: CaveServer, client: ImageryClient, world: World
) -> None:
    moment = int(world.times["merge_1"]) + 1
    points = np.random.default_rng(4).integers((0, 0, 0), (128, 128, 32), (20, 3)) + world.voxel_offset
    cv = CloudVolume(server.segmentation_source, agglomerate=True, timestamp=moment, secrets=TOKEN, progress=False)
    scattered = cv.scattered_points([tuple(point) for point in points.tolist()])
    got = client.root_at(points, timestamp=moment)
    assert got.tolist() == [int(scattered[tuple(point)]) for point in points.tolist()]


@pytest.mark.parametrize("points", [[1, 2], [[1, 2]], "here", [[1, 2, np.nan]], [[[1, 2, 3]]], 5, None])
def test_points_that_are_none(client: ImageryClient, points: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="points must be"):
        client.root_at(points)


def test_remap(server: CaveServer, client: ImageryClient, world: World) -> None:
    moment = int(world.times["split_1"])
    ids = np.append(world.graph.supervoxels, np.uint64(0))
    right = np.append(world.graph.roots(world.graph.supervoxels, moment), np.uint64(0))
    server.reset()
    got = client.remap(ids, timestamp=moment)
    assert got.dtype == np.uint64
    np.testing.assert_array_equal(got, right)
    assert server.ids_sent == len(world.graph.supervoxels)
    np.testing.assert_array_equal(got, [*server.client().chunkedgraph.get_roots(ids[:-1], at(moment)), 0])
    shuffled = np.random.default_rng(0).permutation(np.concatenate([ids, ids]))
    for form in (shuffled, shuffled.reshape(2, -1), shuffled.astype(np.int64), shuffled.tolist(), shuffled[::-1]):
        values = np.asarray(form, dtype=np.uint64)
        again = client.remap(form, timestamp=moment)
        assert (again.shape, again.dtype) == (values.shape, np.uint64)
        order = np.argsort(ids)
        np.testing.assert_array_equal(again, right[order][np.searchsorted(ids[order], values)])
    assert not client.remap(np.zeros(3, np.uint64)).any()
    assert client.remap([]).shape == (0,)
    assert int(client.remap(int(ids[0]), timestamp=moment)) == right[0]


def test_remap_leaves_its_input_alone_and_follows_dask(client: ImageryClient, world: World) -> None:
    moment, before = int(world.times["split_1"]), world.supervoxels.copy()
    lazy = da.from_array(world.supervoxels, chunks=(50, 60, 20))
    remapped = client.remap(lazy, timestamp=moment)
    assert isinstance(remapped, da.Array)
    assert (remapped.dtype, remapped.chunks) == (np.uint64, lazy.chunks)
    np.testing.assert_array_equal(remapped, world.roots_volume(moment))
    np.testing.assert_array_equal(client.remap(world.supervoxels, timestamp=moment), world.roots_volume(moment))
    np.testing.assert_array_equal(world.supervoxels, before)
    second = client.remap(world.supervoxels, timestamp=moment, stop_layer=2)
    np.testing.assert_array_equal(second, world.roots_volume(moment, stop_layer=2))
    read_only = world.supervoxels.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(client.remap(read_only, timestamp=moment), world.roots_volume(moment))


@pytest.mark.parametrize("ids", [[1.5], np.array([1.0]), ["a"], [-5], [2**64], np.array([True])])
def test_what_cannot_be_remapped(client: ImageryClient, ids: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError), match="supervoxels must be"):
        client.remap(ids)


def test_a_flat_segmentation_has_nothing_to_remap(world: World) -> None:
    flat = ImageryClient(segmentation_source=world.watershed_source)
    with pytest.raises(ValueError, match="needs a dynamic segmentation"):
        flat.remap([1])
    with pytest.raises(ValueError, match="needs a dynamic segmentation"):
        flat.segmentation_volume(stop_layer=2)


# --------------------------------------------------------------------------------------- edits while it is computed


def test_edits_while_threads_and_exports_run(tmp_path: Path, threads: Client, small_lazy_blocks: None) -> None:
    """Somebody edits all the time; every voxel of every result is of the moment of its array."""
    world = make_world(tmp_path / "world", (128, 128, 32), edited=False)
    graph, stop = world.graph, threading.Event()

    def edits() -> None:
        first, second, *_ = roots_at(world, time.time())
        while not stop.is_set():
            merged = graph.merge(first, second)
            first, second = graph.split(merged, graph.leaves(merged)[::2])
            time.sleep(0.002)

    right: Callable[[Any], np.ndarray] = lambda volume: expected(  # noqa: E731
        world, volume.attrs["timestamp_unix_s"], ((0, 0, 0), (64, 64, 32))
    )
    with served(world, latency_s=0.003) as server:
        client = client_of(server)
        editor = threading.Thread(target=edits)
        editor.start()
        try:
            for number in range(3):
                volume = client.segmentation_volume()
                forget_roots()
                np.testing.assert_array_equal(volume, right(volume))
                forget_roots()
                out = tmp_path / f"{number}.zarr"
                to_zarr(volume, out, chunks=(32, 32, 16), cluster=threads, progress=False)
                np.testing.assert_array_equal(written(out), right(volume))
        finally:
            stop.set()
            editor.join()
