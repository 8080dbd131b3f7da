"""Planes, masks and moved views read each chunk once, and their voxels are those of the volume."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.http_server import FileServer
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import MissingChunkError
from imagery_dask.sources.volumes import chunk_cache

SHAPE, CHUNKS = (64, 64, 32), (16, 16, 8)
IN_A_PLANE = 16


def chunks_read(server: FileServer) -> int:
    return server.count(lambda request: request.path.rpartition("/")[2] != "info")


@pytest.fixture
def ids() -> Any:
    return random_labels(SHAPE, n=12)


@pytest.fixture
def server(tmp_path: Path, ids: Any, http_server_factory: Callable[..., FileServer]) -> FileServer:
    write_volume(tmp_path / "em", coordinate_volume(SHAPE, dtype=np.uint8), chunk_size=CHUNKS)
    write_volume(tmp_path / "seg", ids, layer_type="segmentation", chunk_size=CHUNKS)
    return http_server_factory(tmp_path)


def client_of(server: FileServer, **options: Any) -> ImageryClient:
    client = ImageryClient(image_source=f"{server.url}/em", segmentation_source=f"{server.url}/seg", **options)
    server.reset()
    return client


def test_neighbouring_planes_read_each_chunk_once(server: FileServer) -> None:
    volume = client_of(server).image_volume()
    planes = [volume.isel(z=z).values for z in range(12)]
    assert chunks_read(server) == 2 * IN_A_PLANE
    np.testing.assert_array_equal(np.stack(planes, -1), coordinate_volume(SHAPE, dtype=np.uint8)[..., :12])


def test_a_moved_view_reads_only_new_chunks(server: FileServer) -> None:
    volume = client_of(server).segmentation_volume()
    volume.isel(x=slice(0, 48), z=0).compute()
    before = chunks_read(server)
    volume.isel(x=slice(8, 56), z=0).compute()
    assert (before, chunks_read(server)) == (3 * 4, 4 * 4)


def test_masks_in_turn_read_each_chunk_once(server: FileServer, ids: Any) -> None:
    client = client_of(server)
    masks = client.split_segmentation_cutout([(0, 0, 0), SHAPE], list(map(int, np.unique(ids)[1:11])))
    assert len(masks) == 10
    for root_id, mask in masks.items():
        np.testing.assert_array_equal(np.asarray(mask), ids == root_id)
    assert chunks_read(server) == IN_A_PLANE * 4


def test_threads_that_need_the_same_chunks_read_them_once(server: FileServer) -> None:
    volume = client_of(server).image_volume()
    server.latency_s = 0.02
    with ThreadPoolExecutor(8) as threads:
        planes = list(threads.map(lambda z: volume.isel(z=z).values, range(8)))
    assert chunks_read(server) == IN_A_PLANE
    np.testing.assert_array_equal(np.stack(planes, -1), coordinate_volume(SHAPE, dtype=np.uint8)[..., :8])


def test_threads_do_not_wait_for_a_reader_that_failed(server: FileServer, tmp_path: Path) -> None:
    for chunk in (tmp_path / "em" / "8_8_40").glob("16-32_*"):
        chunk.unlink()
    volume = client_of(server, missing="error").image_volume()
    server.latency_s = 0.02

    def plane(z: int) -> str:
        try:
            return str(volume.isel(z=z).values.shape)
        except MissingChunkError as error:
            return type(error).__name__

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(plane, range(8))) == {"MissingChunkError"}
    assert volume.isel(x=slice(0, 16), z=3).values.shape == (16, 64)


def test_ids_at_points_read_chunks_once(server: FileServer, ids: Any) -> None:
    client = client_of(server)
    for point in [(3, 3, 3), (5, 6, 7), (15, 0, 1)]:
        assert client.root_at([point])[0] == ids[point]
    assert chunks_read(server) == 1


boxes = st.tuples(*(st.tuples(st.integers(-5, size + 5), st.integers(1, 40)) for size in SHAPE))


@pytest.mark.parametrize("kept", [0, 5000, 20_000, 2**30])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(boxes, min_size=2, max_size=5))
def test_voxels_are_those_of_the_volume(server: FileServer, ids: Any, kept: int, cuts: Any) -> None:
    client = client_of(server, cache_bytes=kept, outside="fill")
    for cut in cuts:
        start, stop = [first for first, _ in cut], [first + size for first, size in cut]
        found = np.array(client.segmentation_cutout([start, stop]))
        expected = np.zeros([size for _, size in cut], np.uint64)
        inside = [(max(0, a), max(0, min(b, size))) for a, b, size in zip(start, stop, SHAPE, strict=True)]
        if all(a < b for a, b in inside):
            at = tuple(slice(a - first, b - first) for (a, b), first in zip(inside, start, strict=True))
            expected[at] = ids[tuple(slice(a, b) for a, b in inside)]
        np.testing.assert_array_equal(found, expected.squeeze())
        found[...] = 7  # results are the caller's own
    cache = chunk_cache.chunk_cache()
    assert (0 if cache is None else cache.bytes) <= kept


def test_missing_chunks_are_looked_for_again(tmp_path: Path, server: FileServer) -> None:
    chunk = next((tmp_path / "em").rglob("0-16_0-16_0-8*"))
    away = chunk.rename(tmp_path / "away")
    volume = client_of(server).image_volume().isel(z=0)
    assert not volume.values[:16, :16].any()
    away.rename(chunk)
    np.testing.assert_array_equal(volume.values, coordinate_volume(SHAPE, dtype=np.uint8)[..., 0])


def test_a_new_client_reads_anew(tmp_path: Path, server: FileServer) -> None:
    client_of(server).image_volume().compute()
    for file in (tmp_path / "em").rglob("*_*-*"):
        file.unlink()
    write_volume(tmp_path / "em", np.full(SHAPE, 9, np.uint8), chunk_size=CHUNKS)
    assert (client_of(server).image_volume().values == 9).all()


@pytest.mark.parametrize("seconds", [0, 100], ids=["new files", "old files"])
@pytest.mark.parametrize("compress", [False, "gzip"])
@pytest.mark.parametrize("sharding", [None, True])
def test_changed_local_files_are_read_again(
    tmp_path: Path, seconds: float, compress: str | bool, sharding: bool | None
) -> None:
    options: Any = {"chunk_size": CHUNKS, "compress": compress, "sharding": sharding}

    def write(value: int) -> str:
        path = write_volume(tmp_path / "em", np.full(SHAPE, value, np.uint8), **options)
        for file in (tmp_path / "em").rglob("*-*"):
            if file.is_file():
                os.utime(file, ns=(0, file.stat().st_mtime_ns - int(seconds * 1e9) + value))
        return path

    volume = ImageryClient(image_source=write(1)).image_volume().isel(z=0)
    for value in (1, 2, 3):
        write(value)
        assert (volume.values == value).all()
        assert (volume.values == value).all()


def test_local_files_are_decoded_once(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "em", coordinate_volume(SHAPE, dtype=np.uint8), chunk_size=CHUNKS)
    for file in (tmp_path / "em").rglob("*"):
        os.utime(file, ns=(0, 0))
    volume = ImageryClient(image_source=path).image_volume().isel(z=0)
    volume.compute()
    kept = chunk_cache.chunk_cache()
    assert kept is not None
    assert kept.bytes == SHAPE[0] * SHAPE[1] * CHUNKS[2]
    assert volume.values.any()
    assert kept.bytes == SHAPE[0] * SHAPE[1] * CHUNKS[2]


def test_exports_neither_use_nor_fill_the_cache(tmp_path: Path, server: FileServer, threads: Client) -> None:
    volume = client_of(server).image_volume()
    for data in (volume, volume + np.uint8(1)):
        volume.compute()
        kept = chunk_cache.chunk_cache()
        assert kept is not None
        kept.clear()
        server.reset()
        to_zarr(data, tmp_path / "out.zarr", cluster=threads, progress=False, overwrite=True)
        assert chunks_read(server) >= IN_A_PLANE * 4
        assert kept.bytes == 0
