"""Volumes in object stores: a real S3 server and an emulator of Google Cloud Storage."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr
from botocore.exceptions import ClientError
from integration.stores import written
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import WorkerResources
from imagery_dask.errors import AccessRefusedError, SourceError, SourceNotFoundError, TargetBusyError
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.reports.status import status_of
from imagery_dask.export.verify import verify_export
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.records.lease import Lease
from imagery_dask.records.parts import Part
from imagery_dask.sources import collect_counts
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.zarr_stores import open_store

if TYPE_CHECKING:
    from distributed import Client
    from support.buckets import GcsServer, S3Server

SHAPE = (96, 64, 32)
OFFSET = (64, -32, 16)
STOP = tuple(a + n for a, n in zip(OFFSET, SHAPE, strict=True))
GONE = (96, -32, 32)
GONE_KEY = "8_8_40/96-128_-32-0_32-48"


@pytest.fixture
def data() -> Any:
    return coordinate_volume(SHAPE, OFFSET, np.uint16)


def read(client: ImageryClient, bounds: Any = (OFFSET, STOP)) -> Any:
    return client.image_cutout(bounds).compute(scheduler="threads")


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
@pytest.mark.parametrize("compress", ["gzip", "br", False], ids=["gzip", "br", "plain"])
def test_a_volume_in_s3_is_read(tmp_path: Path, s3_server: S3Server, data: Any, compress: Any, sharded: bool) -> None:
    path = write_volume(tmp_path / "em", data, voxel_offset=OFFSET, compress=compress, sharding=sharded)
    (gone,) = delete_chunks(path, 0, lambda start: start == GONE)
    url = s3_server.upload(tmp_path / "em", f"read-{compress}-{sharded}".lower(), "some/em")
    data[gone] = 0
    with s3_server.environment():
        client = ImageryClient(image_source=f"precomputed://{url}")
        with collect_counts() as counts:
            voxels = client.image_cutout((OFFSET, STOP)).compute(scheduler="synchronous")
        np.testing.assert_array_equal(voxels, data)
        assert (counts.chunks, counts.missing, counts.missing_keys) == (12, 1, [GONE_KEY])
        np.testing.assert_array_equal(read(client), data)


def test_a_volume_in_s3_is_exported(tmp_path: Path, s3_server: S3Server) -> None:
    ids = random_labels(SHAPE, n=40)
    write_volume(tmp_path / "ids", ids, layer_type="segmentation", encoding="compressed_segmentation")
    url = s3_server.upload(tmp_path / "ids", "export", "ids")
    with s3_server.environment():
        volume = ImageryClient(segmentation_source=url).segmentation_volume()
        report = to_zarr(volume, tmp_path / "out.zarr", chunks=(64, 64, 32), progress=False)
    assert (report.ok, report.counts.chunks, report.counts.missing) == (True, 12, 0)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), ids)


def test_a_store_is_written_to_s3_and_protected(s3_server: S3Server, data: Any) -> None:
    pytest.importorskip("obstore", reason="needs obstore, which S3 is written with")
    s3_server.create_bucket("written")
    url, options = "s3://written/out.zarr", {"chunks": (32, 32, 16), "progress": False}
    with s3_server.environment():
        to_zarr(data, url, **options)
        np.testing.assert_array_equal(zarr.open_array(open_store(url), path="0", mode="r")[...].T, data)
        with pytest.raises(FileExistsError, match="s3://written/out.zarr exists"):
            to_zarr(data, url, codec="gzip", **options)
        again = to_zarr(data, url, **options)
        assert again.before == again.blocks


def test_shards_of_many_megabytes_are_written_to_s3(s3_server: S3Server) -> None:
    pytest.importorskip("obstore", reason="needs obstore, which S3 is written with")
    s3_server.create_bucket("shards")
    ids = np.random.default_rng(0).integers(2**53, 2**63, (128, 128, 192), dtype=np.uint64)
    with s3_server.environment():
        report = to_zarr(ids, "s3://shards/out.zarr", chunks=(64, 64, 64), shards=(128, 128, 128), progress=False)
        assert report.ok
        np.testing.assert_array_equal(
            zarr.open_array(open_store("s3://shards/out.zarr"), path="0", mode="r")[...].T, ids
        )
        assert verify_export("s3://shards/out.zarr", sample=None, progress=False).ok


@pytest.mark.parametrize(
    "wrong", [{"AWS_ACCESS_KEY_ID": "nobody"}, {"AWS_SECRET_ACCESS_KEY": "guess"}], ids=["key", "secret"]
)
def test_wrong_keys_are_refused(tmp_path: Path, s3_server: S3Server, data: Any, wrong: dict[str, str]) -> None:
    write_volume(tmp_path / "em", data)
    url = s3_server.upload(tmp_path / "em", "refused", "em")
    started = time.perf_counter()
    with s3_server.environment(**wrong), pytest.raises(AccessRefusedError, match="Access was refused") as caught:
        ImageryClient(image_source=f"precomputed://{url}")
    assert time.perf_counter() - started < 10  # with repeated attempts it would take 15 s
    assert f"precomputed://{url}/info" in str(caught.value)


@pytest.mark.long
def test_refused_credentials_of_workers_end_an_export(tmp_path: Path, s3_server: S3Server, data: Any) -> None:
    """Credentials are not sent to workers: each reads with its own."""
    write_volume(tmp_path / "em", data)
    url = s3_server.upload(tmp_path / "em", "worker", "em")
    with s3_server.environment():
        volume = ImageryClient(image_source=f"precomputed://{url}").image_volume()
    out = tmp_path / "out.zarr"
    with (
        s3_server.environment(AWS_SECRET_ACCESS_KEY="guess"),
        pytest.raises(AccessRefusedError, match=f"Access was refused to precomputed://{url}"),
    ):
        to_zarr(volume, out, chunks=(32, 32, 16), cluster="local", workers=1, progress=False)
    assert not list(out.glob("0/c/**/*")), "a refused chunk was written"


def test_refused_files_are_not_tried_again(s3_server: S3Server) -> None:
    """cloud-files would send each of these requests seven times."""
    s3_server.create_bucket("files")
    started = time.perf_counter()
    with s3_server.environment(AWS_SECRET_ACCESS_KEY="guess"):
        files = Files("s3://files/of-nobody")
        for ask in (lambda: list(files.names()), lambda: files.get("one"), lambda: files.put("one", b"1")):
            with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
                ask()
    with s3_server.environment(**s3_server.reader):
        files = Files("s3://files/of-readers")
        assert (list(files.names()), files.get("one")) == ([], None)
        with pytest.raises(ClientError, match="AccessDenied"):
            files.put("one", b"1")
    assert time.perf_counter() - started < 20  # seven attempts each would take more than a minute


def test_a_missing_volume_or_bucket_is_an_error(s3_server: S3Server) -> None:
    s3_server.create_bucket("empty")
    with s3_server.environment(), pytest.raises(SourceNotFoundError, match="s3://empty/nothing"):
        ImageryClient(image_source="s3://empty/nothing")
    with s3_server.environment(), pytest.raises(SourceError, match="s3://never-made/nothing.*does not exist"):
        ImageryClient(image_source="s3://never-made/nothing")


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
def test_a_volume_in_google_cloud_storage_is_read(
    tmp_path: Path, gcs_server: GcsServer, data: Any, sharded: bool
) -> None:
    path = write_volume(tmp_path / "em", data, voxel_offset=OFFSET, compress=False, sharding=sharded)
    (gone,) = delete_chunks(path, 0, lambda start: start == GONE)
    url = gcs_server.upload(tmp_path / "em", f"read-{sharded}".lower(), "some/em")
    data[gone] = 0
    with gcs_server.environment():
        client = ImageryClient(image_source=f"precomputed://{url}")
        with collect_counts() as counts:
            voxels = client.image_cutout((OFFSET, STOP)).compute(scheduler="synchronous")
        np.testing.assert_array_equal(voxels, data)
        assert (counts.chunks, counts.missing, counts.missing_keys) == (12, 1, [GONE_KEY])
        with pytest.raises(SourceNotFoundError, match="nothing"):
            ImageryClient(image_source=f"precomputed://{url}/nothing")


def test_one_of_many_threads_gets_a_lease_in_a_bucket(s3_server: S3Server) -> None:
    """The bucket decides which request came first."""
    with s3_server.environment():
        s3_server.create_bucket("lease")
        files = Files.at("s3://lease/records")
        barrier, release, acquired = threading.Barrier(12), threading.Event(), []

        def take_lease() -> None:
            barrier.wait()
            try:
                with Lease(files, "the store"):
                    acquired.append(True)
                    release.wait(10)
            except TargetBusyError:
                acquired.append(False)
            if len(acquired) == 12:
                release.set()

        threads = [threading.Thread(target=take_lease) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(acquired) == [False] * 11 + [True]
        assert files.create("lease.json", b"{}") is True  # the lease was released
        assert files.create("lease.json", b"{}") is False


def test_parts_of_an_export_to_a_bucket_make_one_store(s3_server: S3Server, threads: Client, data: Any) -> None:
    s3_server.create_bucket("parts")
    with s3_server.environment():
        chunked = da.from_array(data, chunks=(32, 32, 16))
        export = ZarrExport(chunked, "s3://parts/out.zarr", ZarrOptions(chunks=(32, 32, 16), shards=None))
        plan = export.plan(WorkerResources(2, 2**30), 2**15)
        assert plan.blocks == 12

        def run(part: int) -> str:
            run_options = RunOptions(cluster=threads, progress=False, plan=plan, part=Part(part, 3))
            return execute(export, run_options).notes[-1]

        with ThreadPoolExecutor(3) as parts:
            notes = list(parts.map(run, (1, 2, 3)))
        assert any("and so are all others" in note for note in notes)
        (status,) = status_of("s3://parts/out.zarr")
        assert (status.state, status.done) == ("complete", 12)
        np.testing.assert_array_equal(
            zarr.open_array(open_store("s3://parts/out.zarr"), path="0", mode="r")[...].T, data
        )
