"""The status of an export from its records: states, rates, and the output of the command."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray
from support.settings import Configure
from support.streams import without_dashboard
from support.volumes import coordinate_volume, delete_chunks, write_volume

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.cli import main
from imagery_dask.errors import BlockFailedError
from imagery_dask.export.reports.block_states import bursts_of, recent_rate
from imagery_dask.export.reports.status import Status, status_of
from imagery_dask.records.drivers import Driver
from imagery_dask.records.lease import Lease
from imagery_dask.records.receipts import RECEIPT, receipt
from imagery_dask.records.runs import Records, now, runs_in
from imagery_dask.run import RunReport
from imagery_dask.sources import ReadCounts
from imagery_dask.storage.atomic_files import records_folder

SHAPE = (64, 64, 32)
BLOCK = (16, 16, 16)
BLOCKS = 4 * 4 * 2


@pytest.fixture(autouse=True)
def _small_blocks(configure: Configure) -> None:
    configure("export.block_bytes", 16**3)
    configure("export.small_block_bytes", 16**3)


@pytest.fixture(scope="module")
def data() -> NDArray[np.uint8]:
    return coordinate_volume(SHAPE, dtype=np.uint8)


def stop_after(count: int) -> Callable[[RunReport], None]:
    """Return a progress callback that interrupts the export after some blocks."""

    def stop(report: RunReport) -> None:
        if report.done >= count:
            raise KeyboardInterrupt

    return stop


def only(out: Any) -> Status:
    """Return the status of the only export at a URL."""
    (status,) = status_of(out)
    return status


# --------------------------------------------------------------------------------------------------------- states


def test_a_complete_export_has_all_blocks_and_no_holder(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    report = to_zarr(data, out, chunks=BLOCK, levels=2, cluster=threads, progress=False)
    status = only(out)
    assert (status.state, status.kind, status.out) == ("complete", "zarr", str(out))
    assert status.blocks == status.done == report.blocks
    assert (status.failed, status.missing, status.zero_roots, status.repeats) == (0, 0, 0, 0)
    assert (status.written_bytes, status.voxels) == (report.written_bytes, data.size)
    assert status.first is not None
    assert status.last is not None
    assert time.time() - 60 < status.first <= status.last <= time.time()
    assert status.blocks_per_second is not None
    assert status.blocks_per_second > 0
    assert (status.seconds_left, status.holders, status.damaged, status.failures) == (None, (), (), ())
    assert sum(stage.blocks for stage in status.stages) == report.blocks
    assert all(stage.done == stage.blocks for stage in status.stages)
    assert status_of(f"{out}.receipts") == status_of(f"{out}/") == status_of(f"file://{out}") == [status]


def test_an_export_is_running_then_interrupted_then_complete(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    statuses: list[Status] = []

    def look(report: RunReport) -> None:
        if report.done == 5:
            statuses.extend(status_of(out))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=look)
    (running,) = statuses
    assert running.state == "running"
    (holder,) = running.holders
    assert (holder.pid, holder.part) == (os.getpid(), None)
    assert holder.heard_of_seconds_ago < 60
    assert running.seconds_left is not None
    assert 5 <= running.done < BLOCKS
    status = only(out)
    assert (status.state, status.holders, status.finished, status.seconds_left) == ("interrupted", (), None, None)
    assert running.done <= status.done < BLOCKS
    to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=False)
    assert only(out).state == "complete"


def test_failed_blocks_are_named_until_they_are_done(tmp_path: Path, threads: Client, data: Any) -> None:
    path = write_volume(tmp_path / "em", data, chunk_size=(32, 32, 16))
    kept = (tmp_path / "em" / "8_8_40" / "32-64_0-32_16-32.gz").read_bytes()
    delete_chunks(path, 0, lambda start: start == (32, 0, 16))
    out, volume = tmp_path / "out", ImageryClient(image_source=path, missing="error").image_volume()
    with pytest.raises(BlockFailedError):
        to_precomputed(volume, out, chunks=(32, 32, 16), cluster=threads, progress=False)
    status = only(f"precomputed://file://{out}")
    assert (status.kind, status.state, status.failed, status.done) == ("precomputed", "failed", 1, status.blocks - 1)
    (failure,) = status.failures
    assert failure.reason.startswith("MissingChunkError: ")
    assert failure.name.startswith("read+write ")
    (tmp_path / "em" / "8_8_40" / "32-64_0-32_16-32.gz").write_bytes(kept)
    to_precomputed(volume, out, chunks=(32, 32, 16), cluster=threads, progress=False)
    status = only(out)
    assert (status.state, status.failed, status.failures) == ("complete", 0, ())


def test_missing_chunks_and_damaged_blocks_are_counted(tmp_path: Path, threads: Client, data: Any) -> None:
    path = write_volume(tmp_path / "em", data, chunk_size=(32, 32, 16))
    delete_chunks(path, 0, lambda start: start == (32, 0, 16))
    out = tmp_path / "out.zarr"
    to_zarr(ImageryClient(image_source=path).image_volume(), out, chunks=BLOCK, cluster=threads, progress=False)
    status = only(out)
    assert (status.state, status.missing > 0) == ("complete", True)
    (run,) = runs_in(records_folder(str(out)))
    run.records.put("damaged.json", {"blocks": [3, 1]})
    status = only(out)
    assert (status.state, status.damaged) == ("damaged", (1, 3))


def test_an_unfinished_replacement_has_a_status_of_its_own(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=False)
    with pytest.raises(KeyboardInterrupt):
        to_zarr(data, out, chunks=BLOCK, cluster=threads, overwrite=True, progress=stop_after(3))
    assert [status.state for status in status_of(out)] == ["complete", "interrupted"]


def test_all_exports_of_slices_with_a_prefix_have_a_status(tmp_path: Path, threads: Client, data: Any) -> None:
    ids = data.astype(np.uint64)
    to_png(data, tmp_path / "em", cluster=threads, progress=False)
    to_png(ids, tmp_path / "em", what="labels", cluster=threads, progress=False)
    to_png(data, tmp_path / "em_imagery", cluster=threads, progress=False)
    assert [status.kind for status in status_of(tmp_path / "em")] == ["png", "png"]
    assert only(tmp_path / "em_imagery").out.endswith("/em_imagery")


def test_exports_in_memory_have_a_status(data: Any) -> None:
    with Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0") as client:
        to_png(data, "memory://status/slices/em", cluster=client, progress=False)
        to_precomputed(
            data,
            "memory://status/volume",
            resolution_nm=(8, 8, 8),
            translation_nm=(4, 4, 4),
            cluster=client,
            progress=False,
        )
    assert only("memory://status/slices/em").state == "complete"
    assert only("memory://status/volume").state == "complete"


def test_exports_in_a_bucket_have_a_status(data: Any, s3_server: Any, threads: Client) -> None:
    with s3_server.environment():
        s3_server.create_bucket("asked-of")
        to_zarr(data, "s3://asked-of/a/out.zarr", chunks=BLOCK, cluster=threads, progress=False)
        to_png(data, "s3://asked-of/a/em", cluster=threads, progress=False)
        assert only("s3://asked-of/a/out.zarr").done == BLOCKS
        assert only("s3://asked-of/a/em").state == "complete"


@pytest.mark.parametrize("name", ["nothing.zarr", "em", "there"])
def test_a_url_without_an_export_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{name} has no records of an export"):
        status_of(tmp_path / name)


# ---------------------------------------------------------------------------------------------------------- rates


def receipts_at(finished: Any, seconds: float = 1.0) -> NDArray[Any]:
    """Return receipts of blocks that were finished at given times."""
    rows = np.zeros(len(finished), RECEIPT)
    rows["block"], rows["finished"], rows["seconds"] = np.arange(len(finished)), finished, seconds
    rows["written_bytes"], rows["attempts"] = 1_000_000, 1
    return rows


def test_pauses_between_calls_do_not_count() -> None:
    day = 86_400.0
    rows = receipts_at(np.concatenate([np.arange(1, 101), day + np.arange(1, 11) / 2]))
    assert [(burst.start, burst.stop) for burst in bursts_of(rows)] == [(0, 100), (day - 0.5, day + 5)]
    rate = recent_rate(rows)
    assert rate is not None
    np.testing.assert_allclose(rate, (10 / 5.5, 10e6 / 5.5))
    assert recent_rate(rows, now=day + 600) is None
    assert recent_rate(rows[:0]) is None


def test_the_rate_is_measured_over_the_last_minutes() -> None:
    rows = receipts_at(np.concatenate([np.arange(0, 1000, 10), 1000 + np.arange(600)]))
    rate = recent_rate(rows)
    assert rate is not None
    np.testing.assert_allclose(rate[0], 1, rtol=0.01)
    slow = recent_rate(receipts_at(np.arange(10) * 200.0, seconds=190))
    assert slow is not None
    np.testing.assert_allclose(slow[0], 2 / 300, rtol=0.01)


@pytest.mark.long
def test_the_status_of_a_million_blocks_takes_seconds(tmp_path: Path, threads: Client, data: Any) -> None:
    out = tmp_path / "out.zarr"
    array = da.zeros((100, 100, 100), chunks=100, dtype=np.uint8)
    to_zarr(array, out, chunks=(100, 100, 100), cluster=threads, progress=False)
    (run,) = runs_in(records_folder(str(out)))
    edges = list(range(101))
    (stage,) = run.plan["stages"]
    stage[0]["blocks"]["edges"] = [edges] * 3
    run.saved()
    one = receipt(0, bytes(16), 1, 1, ReadCounts(), 1, 1.0)
    rows = np.frombuffer(one * 10**6, RECEIPT).copy()
    rows["block"] = np.random.default_rng(0).permutation(10**6)
    Records(run.records.files, run.records.run).append("receipts", with_checksums(rows))
    started = time.process_time()
    status = only(out)
    assert time.process_time() - started < 10
    assert status.done == status.blocks == 10**6


def with_checksums(rows: NDArray[Any]) -> bytes:
    """Return the bytes of receipts with correct checksums."""
    raw = rows.view(np.uint8).reshape(len(rows), -1)[:, :-4].copy()
    rows["crc"] = [zlib.crc32(row) for row in raw]
    return rows.tobytes()


# --------------------------------------------------------------------------------------------------- command line


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["imagery-dask", "status", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, error = capfd.readouterr()
        return int(stopped.value.code or 0), out, without_dashboard(error)

    return call


def test_the_command_prints_state_failures_and_holder(tmp_path: Path, threads: Client, data: Any, run: Run) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(KeyboardInterrupt):
        to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=stop_after(4))
    (recorded_run,) = runs_in(records_folder(str(out)))
    last = recorded_run.plan["stages"][0][0]["blocks"]["edges"]
    block = int(np.prod([len(edges) - 1 for edges in last])) - 1
    failed = {"block": block, "name": "read+write data z1 y0 x0", "reason": "OSError: gone", "attempts": 4, "when": 1.0}
    recorded_run.records.append("failed", json.dumps(failed).encode() + b"\n")
    code, text, error = run(out)
    assert (code, error) == (0, "")
    lines = text.splitlines()
    assert lines[0].startswith(f"{out} (zarr): failed; no process is running")
    assert "1 failed, 3 repeats" in lines[1]
    assert "    read+write data z1 y0 x0: OSError: gone" in lines
    assert "source chunks missing: 0" in text
    with Lease(records_folder(str(out)), str(out)):
        code, text, error = run(out)
    assert (code, error) == (0, "")
    assert text.splitlines()[0] == f"{out} (zarr): running"
    assert f"process {os.getpid()} on " in text


def test_the_command_prints_json(tmp_path: Path, threads: Client, data: Any, run: Run) -> None:
    out = tmp_path / "out.zarr"
    to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=False)
    (recorded_run,) = runs_in(records_folder(str(out)))
    large = receipt(0, bytes(16), 1, 2**60 + 1, ReadCounts(), 1, 0.1)
    recorded_run.records.append("receipts", large)
    code, text, error = run(out, "--json", "--watch", 1)
    assert (code, error) == (0, "")
    (status,) = json.loads(text)["exports"]
    assert (status["state"], status["blocks"], status["done"]) == ("complete", BLOCKS, BLOCKS)
    assert status["written_bytes"] == str(2**60 + 1 + 31 * 16**3)


def test_the_command_exits_with_2_without_an_export(tmp_path: Path, run: Run) -> None:
    code, text, error = run(tmp_path / "none.zarr")
    assert (code, text) == (2, "")
    assert error.startswith("Error: ")
    assert "Traceback" not in error


def test_the_holder_is_shown_for_the_run_that_is_resumed(tmp_path: Path, threads: Client, data: Any, run: Run) -> None:
    """Resuming the first export removes its unfinished replacement in the end."""
    out = tmp_path / "out.zarr"
    options: dict[str, Any] = {"chunks": BLOCK, "cluster": threads}
    for array, overwrite in ((data, False), (data[:32], True)):
        with pytest.raises(KeyboardInterrupt):
            to_zarr(array, out, overwrite=overwrite, progress=stop_after(3), **options)
    assert [status.state for status in status_of(out)] == ["interrupted", "interrupted"]
    statuses: list[list[tuple[str, int, int]]] = []

    def look(report: RunReport) -> None:
        statuses.append([(status.state, status.blocks, len(status.holders)) for status in status_of(out)])

    to_zarr(data, out, progress=look, **options)
    assert statuses[0] == [("running", BLOCKS, 1), ("interrupted", BLOCKS // 2, 0)]
    assert only(out).state == "complete"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "out.zarr.receipts"]


def test_a_truncated_record_of_a_driver_is_ignored(tmp_path: Path, threads: Client, data: Any, run: Run) -> None:
    out = tmp_path / "out.zarr"
    to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=False)
    records_folder(str(out)).put("driver.json", b'{"job": "7"')
    code, text, _ = run(out)
    assert (code, text.splitlines()[0]) == (0, f"{out} (zarr): complete")


def test_watching_ends_when_a_queued_driver_is_gone(
    tmp_path: Path, threads: Client, data: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\necho $(( $(cat {tmp_path}/asked) - 1 )) > {tmp_path}/asked\n"
                      f"[ $(cat {tmp_path}/asked) -lt 0 ] || echo 7/PENDING\n")  # fmt: skip
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "out.zarr"
    driver = Driver("7", "slurm", "script.sh", None, submitted=now())
    driver.write(records_folder(str(out)))
    # Each status runs squeue twice, since its line for the job is shown, too.
    (tmp_path / "asked").write_text("5")
    code, text, _ = run(out, "--watch", 0.1)
    assert (code, text.count(f"{out}: not started")) == (0, 3)
    # The same holds for a driver that was to resume an interrupted export.
    with pytest.raises(KeyboardInterrupt):
        to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=stop_after(4))
    (tmp_path / "asked").write_text("5")
    code, text, _ = run(out, "--watch", 0.1)
    assert (code, text.count("): interrupted")) == (0, 3)


def test_watching_ends_with_the_export(tmp_path: Path, threads: Client, data: Any, run: Run) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(KeyboardInterrupt):
        to_zarr(data, out, chunks=BLOCK, cluster=threads, progress=stop_after(4))
    lease = Lease(records_folder(str(out)), str(out))
    lease.__enter__()
    threading.Timer(0.4, lease.__exit__, (None, None, None)).start()
    code, text, _ = run(out, "--watch", 0.2)
    states = [line.partition("): ")[2] for line in text.splitlines() if line.startswith(str(out))]
    assert code == 0
    assert states[0] == "running"
    assert states[-1].startswith("interrupted")
