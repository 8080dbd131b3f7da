"""Refused exports write nothing; failed blocks are reported, and the other blocks are written."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import dask.array as da
import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from integration.stores import placement, written
from numpy.typing import NDArray
from support.settings import Configure
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import BlockFailedError, ClusterLostError
from imagery_dask.export.core.inputs import as_volumes
from imagery_dask.run import RunReport

SHAPE = (64, 64, 32)
BLOCK = (16, 16, 16)
BLOCKS = 4 * 4 * 2


@pytest.fixture(autouse=True)
def _small_blocks(configure: Configure) -> None:
    configure("export.block_bytes", 16**3)


@pytest.fixture(scope="module")
def data() -> NDArray[np.uint8]:
    return coordinate_volume(SHAPE, dtype=np.uint8)


def contents(folder: Path) -> dict[str, str]:
    """List every file below a folder with a digest of its content."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
        for file in sorted(folder.rglob("*"))
    }


# ------------------------------------------------------------------------------------------------------ refusals


def test_an_existing_store_is_not_touched(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    to_zarr(data, out, cluster=threads, progress=False)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"out\.zarr exists already.*overwrite"):
        to_zarr(data + 1, out, cluster=threads, progress=False)
    assert contents(tmp_path) == before
    np.testing.assert_array_equal(written(out), data)


def test_a_store_can_be_replaced_by_an_array_read_from_it(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    to_zarr(data, out, cluster=threads, progress=False)
    report = to_zarr(da.from_zarr(str(out / "0")).T + 1, out, overwrite=True, cluster=threads, progress=False)
    assert report.ok
    np.testing.assert_array_equal(written(out), data + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "out.zarr.receipts"]


def test_the_old_store_stays_when_its_replacement_is_interrupted(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    to_zarr(data, out, cluster=threads, progress=False)
    before = contents(out)

    def stop(report: RunReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_zarr(data + 1, out, chunks=BLOCK, overwrite=True, cluster=threads, progress=stop)
    assert contents(out) == before
    # The same call without overwrite resumes the replacement.
    report = to_zarr(data + 1, out, chunks=BLOCK, cluster=threads, progress=False)
    assert 0 < report.before < report.blocks
    assert report.ok
    np.testing.assert_array_equal(written(out), data + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "out.zarr.receipts"]


def test_a_store_with_a_file_of_the_user_is_not_replaced(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    to_zarr(
        xr.Dataset({"image": (tuple("xyz"), data), "segmentation": (tuple("xyz"), data.astype(np.uint64))}),
        out,
        cluster=threads,
    )
    to_zarr(data, out, overwrite=True, cluster=threads, progress=False)
    (out / "notes.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        to_zarr(data, out, overwrite=True, cluster=threads, progress=False)
    assert (out / "notes.txt").read_text() == "years of work"


def test_coordinates_that_the_caller_changed_are_written(tmp_path: Path, threads: Client, data: Any) -> None:
    path = write_volume(tmp_path / "em", data, voxel_offset=(5, 6, 7))
    volume = ImageryClient(image_source=path).image_volume()
    moved = volume.assign_coords(x=volume.x + 1000)
    evenly = {axis: 5.0 * np.arange(n) for axis, n in zip("xyz", SHAPE, strict=True)}
    own = xr.DataArray(volume.data, dims=tuple("xyz"), coords=evenly)
    placed = [((8, 8, 40), (44, 52, 300)), ((8, 8, 40), (1044, 52, 300)), ((5, 5, 5), (0, 0, 0))]
    for number, array in enumerate((volume, moved, own)):
        out = tmp_path / f"out{number}.zarr"
        to_zarr(array, out, cluster=threads, progress=False)
        resolution, translation = placement(out)
        assert (tuple(resolution), tuple(translation)) == placed[number]


@pytest.mark.parametrize(
    "labels", [np.ones((4, 4, 4, 2), np.uint64), np.ones((4, 4, 4), np.float64)], ids=["channels", "floats"]
)
def test_labels_that_are_not_integer_ids_are_refused(tmp_path: Path, labels: Any) -> None:
    dims = ("x", "y", "z", "channel")[: labels.ndim]
    with pytest.raises(ValueError, match="'segmentation' holds integer ids"):
        to_zarr(xr.Dataset({"segmentation": (dims, labels)}), tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_and_folders_that_are_no_store_are_never_removed(
    tmp_path: Path, threads: Client, data: Any, overwrite: bool
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "notes.zarr").write_text("a file")
    (tmp_path / "folder of stores").mkdir()
    to_zarr(data, tmp_path / "folder of stores" / "a.zarr", cluster=threads, progress=False)
    before = contents(tmp_path)
    for name in ("thesis", "notes.zarr", "folder of stores"):
        with pytest.raises(FileExistsError, match=f"{name} exists"):
            to_zarr(data, tmp_path / name, overwrite=overwrite, cluster=threads, progress=False)
    assert contents(tmp_path) == before


def test_overwriting_removes_all_of_the_old_store(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    with_labels = zarr.create_group(out)
    with_labels.create_group("labels/old")
    with_labels.create_array("0", shape=(500,), dtype="int8")[:] = 3
    to_zarr(data, out, chunks=BLOCK, overwrite=True, cluster=threads, progress=False)
    assert sorted(zarr.open_group(out, mode="r").keys()) == ["0"]
    np.testing.assert_array_equal(written(out), data, strict=True)


@pytest.mark.parametrize("cluster", ["threads", "processes"])
def test_a_store_can_be_overwritten_with_another_array(
    tmp_path: Path, request: pytest.FixtureRequest, data: Any, cluster: str
) -> None:
    """The same workers write both arrays, so they must not cache chunks, dtype and shape of the first."""
    client, out = request.getfixturevalue(cluster), tmp_path / "out.zarr"
    to_zarr(data, out, chunks=BLOCK, cluster=client, progress=False)
    other = random_labels((40, 90, 20))
    to_zarr(other, out, chunks=(10, 30, 20), overwrite=True, cluster=client, progress=False)
    np.testing.assert_array_equal(written(out), other, strict=True)
    assert len(list(out.glob("0/c/*/*/*"))) == np.prod(zarr.open_array(out, path="0").cdata_shape)


def test_an_empty_folder_may_become_a_store(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "deep" / "below" / "out.zarr"
    out.mkdir(parents=True)
    to_zarr(data, out, cluster=threads, progress=False)
    np.testing.assert_array_equal(written(out), data)


def test_a_url_is_written_and_protected(data: Any) -> None:
    """fsspec opens the URL; threads of this process share its memory."""
    url = "memory://exports/out.zarr"
    options: dict[str, Any] = {"chunks": (32, 32, 16), "progress": False}
    to_zarr(data, url, **options)
    np.testing.assert_array_equal(zarr.open_array(url, path="0", mode="r")[...].T, data)
    with pytest.raises(FileExistsError, match="memory://exports/out.zarr exists"):
        to_zarr(data + 1, url, **options)
    np.testing.assert_array_equal(zarr.open_array(url, path="0", mode="r")[...].T, data)
    to_zarr(data + 1, url, overwrite=True, **options)
    np.testing.assert_array_equal(zarr.open_array(url, path="0", mode="r")[...].T, data + 1)


@pytest.mark.parametrize("overwrite", [False, True])
def test_objects_below_a_url_are_never_removed(data: Any, overwrite: bool) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/thesis/chapter.tex", b"years of work")
    with pytest.raises(FileExistsError, match="memory://thesis"):
        to_zarr(data, "memory://thesis", overwrite=overwrite, progress=False)
    assert memory.cat("/thesis/chapter.tex") == b"years of work"
    assert memory.find("/thesis") == ["/thesis/chapter.tex"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunks": (16, 0, 16)}, ValueError, "chunks .*from 1.*16, 0, 16"),
        ({"chunks": (16, -16, 16)}, ValueError, "chunks .*from 1"),
        ({"chunks": (16, 16)}, ValueError, "chunks .*three"),
        ({"chunks": (16, 16, 8.5)}, ValueError, "chunks .*whole"),
        ({"chunks": "auto"}, ValueError, "chunks .*'auto'"),
        ({"resolution_nm": (8, 0, 40)}, ValueError, "resolution_nm must be positive"),
        ({"resolution_nm": (8, 40)}, ValueError, "resolution_nm must be three"),
        ({"translation_nm": (8, float("nan"), 40)}, ValueError, "translation_nm must be finite"),
        ({"workers": 0}, ValueError, "workers must be a whole number from 1"),
        ({"cluster": "locla"}, ValueError, "'locla'"),
        ({"chnks": (16, 16, 16)}, TypeError, "chnks"),
    ],
    ids=str,
)
def test_bad_arguments_write_nothing(
    tmp_path: Path, data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        to_zarr(data, tmp_path / "out.zarr", progress=False, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((4, 0, 4)), ValueError, "empty"),
        (np.zeros((2, 2, 2, 2, 2)), ValueError, "axes x, y, z"),
        (np.array([["a"]]), TypeError, "numbers"),
        (np.zeros((4, 4, 4), complex), TypeError, "numbers.*complex"),
        ([[1, 2], [3, 4]], TypeError, "list"),
        (da.ones((8, 8, 8), chunks=4)[da.ones(8, chunks=4) > 0], ValueError, "compute_chunk_sizes"),
    ],
    ids=["empty", "five axes", "text", "complex", "list", "unknown shape"],
)
def test_arrays_that_cannot_be_written_are_refused(
    tmp_path: Path, bad: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        to_zarr(bad, tmp_path / "out.zarr", progress=False)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- failed blocks


def failed_export(data: Any, out: Path, client: Client) -> RunReport:
    with pytest.raises(BlockFailedError, match=r"blocks failed; \d+ were written") as caught:
        to_zarr(data, out, chunks=BLOCK, cluster=client, progress=False)
    report: RunReport = caught.value.report
    assert not report.ok
    assert report.done + report.failures == report.blocks == BLOCKS
    assert pickle.loads(pickle.dumps(caught.value)).report.failures == report.failures
    return report


@pytest.mark.parametrize("cluster", ["threads", "processes"])
def test_a_block_that_raises_is_reported(
    tmp_path: Path, request: pytest.FixtureRequest, data: Any, cluster: str
) -> None:
    client, poison = request.getfixturevalue(cluster), int(data[20, 40, 3])

    def fail(block: Any, block_info: Any = None) -> Any:
        if block_info and block_info[0]["chunk-location"] == (1, 2, 0):
            raise ZeroDivisionError(f"poisoned by {block[4, 8, 3]}")
        return block

    array = da.from_array(data, chunks=BLOCK).map_blocks(fail, dtype=data.dtype)
    report = failed_export(array, tmp_path / "out.zarr", client)
    assert report.failures == 1
    assert report.failed[0].name.endswith("z0 y2 x1")
    assert report.failed[0].reason == f"ZeroDivisionError: poisoned by {poison}"
    expected = data.copy()
    expected[16:32, 32:48, :16] = 0
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), expected)


def test_an_id_that_int64_cannot_hold_fails_its_block(tmp_path: Path, threads: Client) -> None:
    ids = random_labels(SHAPE, n=20)
    large = 2**63 + 5
    ids[50, 5, 20] = large
    path = write_volume(tmp_path / "ids", ids, layer_type="segmentation", chunk_size=BLOCK)
    client = ImageryClient(segmentation_source=path)
    report = failed_export(client.segmentation_cutout([[0, 0, 0], SHAPE]), tmp_path / "out.zarr", threads)
    (failed,) = report.failed
    assert failed.name.endswith("z1 y0 x3")
    assert failed.reason.startswith("OverflowError: ")
    assert str(large) in failed.reason
    assert "convert_to_int64=False" in failed.reason
    ids[48:, :16, 16:] = 0
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), ids.astype(np.int64))


def test_a_missing_chunk_fails_its_block_on_request(tmp_path: Path, threads: Client, data: Any) -> None:
    path = write_volume(tmp_path / "em", data, chunk_size=(32, 32, 16))
    delete_chunks(path, 0, lambda start: start == (32, 0, 16))
    volume = ImageryClient(image_source=path, missing="error").image_volume()
    with pytest.raises(BlockFailedError) as caught:
        to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=threads, progress=False)
    (failed,) = caught.value.report.failed
    assert "MissingChunkError: Storage chunk 8_8_40/32-64_0-32_16-32" in failed.reason
    expected = data.copy()
    expected[32:, :32, 16:] = 0
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), expected)


def test_a_task_contains_its_own_voxels_only() -> None:
    """With an array in memory, a task that contained the whole array would send it once per block."""
    array = np.zeros((256, 256, 64), np.uint8)
    (volume,) = as_volumes(array)
    tasks = [pickle.dumps(volume.reader(region)) for _, region in volume.plan((32, 32, 32), 2**16)]
    assert len(tasks) > 8
    assert sum(map(len, tasks)) < 2 * array.nbytes


# ------------------------------------------------------------------------------------------------------- the window


def test_progress_is_called_after_every_block(tmp_path: Path, threads: Client, data: Any) -> None:
    reports: list[tuple[int, int, int]] = []

    def progress(report: RunReport) -> None:
        reports.append((report.done, report.blocks, report.written_bytes))

    to_zarr(data, tmp_path / "out.zarr", chunks=BLOCK, cluster=threads, progress=progress)
    assert reports == [(n, BLOCKS, n * 16**3) for n in range(1, BLOCKS + 1)]


def test_the_scheduler_holds_a_window_of_blocks(tmp_path: Path, threads: Client) -> None:
    """At most three of the 96 blocks per thread are submitted at a time, on two threads."""
    known: list[tuple[int, int]] = []
    earlier = set(threads.futures)  # the errors of other tests may hold some

    def progress(report: RunReport) -> None:
        # Others are done, and wait for the message that they are not needed any more.
        waiting = [state for state in tasks_of(threads).values() if state in ("waiting", "queued", "processing")]
        known.append((len(waiting), len(threads.futures.keys() - earlier)))

    array = da.zeros((64, 96, 64), chunks=BLOCK, dtype=np.uint8) + 1
    report = to_zarr(array, tmp_path / "out.zarr", chunks=BLOCK, cluster=threads, progress=progress)
    assert report.done == len(known) == 96
    in_scheduler, futures = np.array(known).max(axis=0)
    assert 1 <= in_scheduler <= 6
    assert 2 <= futures <= 6


def tasks_of(client: Client) -> dict[str, str]:
    """Return the state of each task that the scheduler holds."""
    states: dict[str, str] = client.run_on_scheduler(
        lambda dask_scheduler: {str(key): task.state for key, task in dask_scheduler.tasks.items()}
    )
    return states


def test_two_concurrent_exports_of_one_array_are_exact(tmp_path: Path, threads: Client, data: Any) -> None:
    array = da.from_array(data, chunks=BLOCK)
    outs = [tmp_path / f"{n}.zarr" for n in range(2)]
    options: dict[str, Any] = {"chunks": BLOCK, "cluster": threads, "progress": False}
    exports = [threading.Thread(target=to_zarr, args=(array, out), kwargs=options) for out in outs]
    for export in exports:
        export.start()
    for export in exports:
        export.join(60)
    for out in outs:
        np.testing.assert_array_equal(written(out), data)


def test_an_interrupted_export_stops(tmp_path: Path, threads: Client, data: Any, configure: Configure) -> None:
    configure("run.batch_blocks", 1)

    def stop(report: RunReport) -> None:
        if report.done == 3:
            raise KeyboardInterrupt

    out = tmp_path / "out.zarr"
    with pytest.raises(KeyboardInterrupt):
        to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=stop)
    deadline = time.monotonic() + 5
    while not {*tasks_of(threads).values()} <= {"memory", "erred"}:
        assert time.monotonic() < deadline, tasks_of(threads)
        time.sleep(0.02)
    assert 3 <= len(list(out.glob("0/c/*/*/*"))) <= 3 + 6


def test_a_cluster_without_workers_is_an_error_after_a_while(tmp_path: Path, data: Any, configure: Configure) -> None:
    configure("run.ask_s", 0.2)
    configure("run.no_worker_s", 0.5)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.raises(ClusterLostError, match="no worker"),
    ):
        to_zarr(data, tmp_path / "out.zarr", chunks=BLOCK, cluster=client, progress=False)
