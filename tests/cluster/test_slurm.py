"""An export on a real SLURM, through the cluster file that the project ships."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from cluster.certificates import certificates
from cluster.conftest import SLURM_FILE
from cluster.slurm import Slurm
from integration.stores import files_of
from support.http_server import FileServer
from support.settings import Configure
from support.streams import without_dashboard
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cli import main
from imagery_dask.cluster import WorkerCount, connect, connection, load_cluster_file
from imagery_dask.run import RunReport

pytestmark = pytest.mark.long

SHAPE = (96, 64, 48)
OFFSET = (-32, 64, 16)


def test_the_shipped_file_can_be_loaded() -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    file = load_cluster_file(SLURM_FILE)
    assert file.cluster.__name__ == "SLURMCluster"
    assert file.workers is not None
    assert {"queue", "cores", "memory", "walltime"} <= set(file.arguments)


def test_workers_run_in_jobs(cluster_file: Path, batch_system: Slurm) -> None:
    with connect(str(cluster_file), workers=1, wait_s=60) as client:
        assert len(batch_system.jobs()) == 1
        variables = client.run(lambda: dict(os.environ))
        assert [env["SLURM_JOB_ID"] for env in variables.values()] == batch_system.jobs()
        assert {env["SLURM_JOB_PARTITION"] for env in variables.values()} == {batch_system.partition}
    assert_gone(batch_system)


def test_an_export_on_slurm_equals_a_local_one(
    tmp_path: Path, cluster_file: Path, batch_system: Slurm, configure: Configure
) -> None:
    configure("export.block_bytes", 2**17)
    image = coordinate_volume(SHAPE, OFFSET, np.uint8)
    ids = random_labels(SHAPE, n=40)
    client = ImageryClient(
        image_source=write_volume(tmp_path / "em", image, voxel_offset=OFFSET),
        segmentation_source=write_volume(
            tmp_path / "ids", ids, voxel_offset=OFFSET, layer_type="segmentation", encoding="compressed_segmentation"
        ),
    )
    data = client.dataset([OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]])
    options: dict[str, Any] = {"chunks": (32, 32, 16), "progress": False}
    local_report = to_zarr(data, tmp_path / "local.zarr", **options)
    remote_report = to_zarr(data, tmp_path / "remote.zarr", cluster=str(cluster_file), **options)
    assert remote_report.ok
    assert local_report.blocks == remote_report.blocks > 2
    assert (local_report.counts.chunks, local_report.counts.missing) == (
        remote_report.counts.chunks,
        remote_report.counts.missing,
    )
    for name, expected in (("0", image), ("labels/segmentation/0", ids)):
        np.testing.assert_array_equal(zarr.open_array(tmp_path / "remote.zarr", path=name, mode="r")[...].T, expected)
    assert files_of(tmp_path / "local.zarr") == files_of(tmp_path / "remote.zarr")
    assert list((tmp_path / "logs").iterdir()), "no job wrote a log"


def test_the_error_without_workers_shows_the_queue_and_the_job(cluster_file: Path, batch_system: Slurm) -> None:
    batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=DOWN")
    try:
        with pytest.raises(TimeoutError, match="No worker came within 1 s") as caught, connect(cluster_file, wait_s=1):
            pass
        assert "PENDING (PartitionDown)" in str(caught.value)
        assert "#SBATCH -p tests" in str(caught.value)
        assert "distributed.cli.dask_worker tcp://127.0.0.1:" in str(caught.value)
    finally:
        batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=UP")


def every_job(batch_system: Slurm) -> set[str]:
    """Return the ids of all jobs, including those that ended in the last minutes."""
    return set(batch_system.run("squeue", "--noheader", "--states=all", "--format=%i").split())


def test_a_pending_job_is_not_submitted_again(cluster_file: Path, batch_system: Slurm) -> None:
    batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=DOWN")
    before = every_job(batch_system)
    try:
        with pytest.raises(TimeoutError, match="No worker came within 8 s"), connect(cluster_file, wait_s=8):
            pass
        assert len(every_job(batch_system) - before) == 2
    finally:
        batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=UP")
    assert_gone(batch_system)


def changed(cluster_file: Path, **arguments: Any) -> Path:
    """Change arguments in a cluster file."""
    content = yaml.safe_load(cluster_file.read_text())
    content["arguments"] |= arguments
    cluster_file.write_text(yaml.safe_dump(content))
    return cluster_file


def test_a_job_that_is_refused_is_an_error_at_once(cluster_file: Path) -> None:
    started = time.monotonic()
    with (
        pytest.raises(OSError, match="The batch system accepted no job") as caught,
        connect(changed(cluster_file, queue="absent"), wait_s=60),
    ):
        pass
    assert time.monotonic() - started < 30
    assert "invalid partition specified: absent" in str(caught.value)
    assert "#SBATCH -p absent" in str(caught.value)


def test_jobs_use_the_certificates_of_the_cluster_file(cluster_file: Path, tmp_path: Path) -> None:
    signed = certificates(tmp_path / "certificates", "ours")
    cluster_file.write_text(cluster_file.read_text() + signed.yaml)
    with connect(cluster_file, workers=1, wait_s=60) as client:
        assert client.scheduler.address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3


def test_jobs_are_added_to_those_that_run(cluster_file: Path, batch_system: Slurm) -> None:
    with connection(str(cluster_file), WorkerCount("auto", 2), wait_s=60) as opened:
        (first,) = batch_system.jobs()
        assert opened.grower is not None
        assert (opened.grower.asked, opened.grower.most) == (1, 2)
        submitted = opened.grower.scale(2)
        assert submitted is not None
        submitted.result(60)
        jobs = batch_system.jobs()
        assert (len(jobs), first in jobs) == (2, True)
        opened.client.wait_for_workers(2, timeout=60)
    assert_gone(batch_system)


def test_a_cancelled_job_of_an_adaptive_cluster_is_replaced(cluster_file: Path, batch_system: Slurm) -> None:
    content = yaml.safe_load(cluster_file.read_text())
    del content["workers"]
    cluster_file.write_text(yaml.safe_dump(content | {"adapt": {"minimum": 1, "maximum": 2}}))
    with connect(cluster_file, wait_s=60) as client:
        (job,) = batch_system.jobs()
        batch_system.run("scancel", job)
        deadline = time.monotonic() + 60
        while job in batch_system.jobs() or not client.nthreads():
            assert time.monotonic() < deadline, batch_system.jobs()
            time.sleep(0.2)
        assert client.submit(sum, [1, 2]).result() == 3


def slow_export(tmp_path: Path, server: FileServer) -> tuple[Any, dict[str, Any]]:
    """Return imagery of 72 blocks that is slow to read, and the options of its export."""
    image = coordinate_volume(SHAPE, OFFSET, np.uint8)
    write_volume(tmp_path / "em", image, voxel_offset=OFFSET, chunk_size=(16, 16, 16), compress=False)
    client = ImageryClient(image_source=f"precomputed://{server.url}/em")
    data = client.image_cutout([OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]])
    options: dict[str, Any] = {"chunks": (16, 16, 16), "shards": None, "block_mib": 2**-8}
    to_zarr(data, tmp_path / "local.zarr", progress=False, **options)
    server.latency_s = 0.3
    return data, options


def test_cancelled_jobs_are_replaced_twice(
    tmp_path: Path, cluster_file: Path, batch_system: Slurm, file_server: FileServer
) -> None:
    data, options = slow_export(tmp_path, file_server)
    cancelled: list[list[str]] = []

    def cancel(report: RunReport) -> None:
        # Cancel all jobs; then, of the jobs that replaced them, all but one.
        if len(cancelled) < 2 and report.done >= (10, 30)[len(cancelled)] and len(jobs := batch_system.jobs()) == 2:
            cancelled.append(jobs[len(cancelled) :])
            batch_system.run("scancel", *cancelled[-1])

    report = to_zarr(data, tmp_path / "remote.zarr", cluster=cluster_file, progress=cancel, **options)
    assert list(map(len, cancelled)) == [2, 1]
    assert not set(cancelled[0]) & set(cancelled[1])
    assert report.ok
    assert (report.blocks, report.failures, report.repeats) == (72, 0, 0)
    assert files_of(tmp_path / "local.zarr") == files_of(tmp_path / "remote.zarr")
    assert_gone(batch_system)


def test_a_job_of_several_workers_is_replaced(cluster_file: Path, batch_system: Slurm) -> None:
    file = changed(cluster_file, cores=2, processes=2)
    with connect(file, workers=2, wait_s=60) as client:
        client.wait_for_workers(2, timeout=60)
        (job,) = batch_system.jobs()
        batch_system.run("scancel", job)
        deadline = time.monotonic() + 60
        while job in batch_system.jobs() or len(client.nthreads()) < 2:
            assert time.monotonic() < deadline, batch_system.jobs()
            time.sleep(0.2)
        assert len(batch_system.jobs()) == 1
    assert_gone(batch_system)


def test_workers_that_retire_hand_their_blocks_over(
    tmp_path: Path,
    cluster_file: Path,
    batch_system: Slurm,
    file_server: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    slow_export(tmp_path, file_server)
    file_server.latency_s = 0.7  # the export takes longer than two workers live
    bounds = [*OFFSET, *(a + n for a, n in zip(OFFSET, SHAPE, strict=True))]
    arguments = ["export", "zarr", tmp_path / "remote.zarr", "--image-source", f"precomputed://{file_server.url}/em",
                 "--bounds", *bounds, "--chunks", "16,16,16", "--shards", "none", "--block-mib", 2**-8, "--cluster",
                 changed(cluster_file, walltime="00:01:00"), "--retire-before", "40s"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["imagery-dask", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capfd.readouterr()
    assert not stopped.value.code, captured.err
    assert [line for line in without_dashboard(captured.err).splitlines() if " of 72 blocks " not in line] == []
    assert "72 of 72 blocks" in captured.out
    assert "blocks retried" not in captured.out
    assert files_of(tmp_path / "local.zarr") == files_of(tmp_path / "remote.zarr")
    # The workers of the first two jobs retired, so these jobs ended without being cancelled.
    logs = sorted((tmp_path / "logs").glob("*.err"), key=lambda log: int(log.stem.rpartition("-")[2]))
    assert len(logs) > 2, "no job was replaced"
    assert "CANCELLED" not in "".join(log.read_text() for log in logs[:2])
    assert_gone(batch_system)


def assert_gone(batch_system: Slurm) -> None:
    deadline = time.monotonic() + 30
    while batch_system.jobs():
        assert time.monotonic() < deadline, "jobs outlive the connection"
        time.sleep(0.2)


def test_the_log_of_a_job_that_died_is_shown(
    tmp_path: Path, cluster_file: Path, batch_system: Slurm, logged_warnings: list[str]
) -> None:
    before = every_job(batch_system)
    lines = ["echo there is no such python >&2", "exit 3"]
    started = time.monotonic()
    with (
        pytest.raises(TimeoutError, match="all of them ended before they connected") as caught,
        connect(changed(cluster_file, job_script_prologue=lines), workers=2, wait_s=300),
    ):
        pass
    assert time.monotonic() - started < 45
    assert len(every_job(batch_system) - before) == 3 * 2, "expected two further attempts of two jobs each"
    (warning,) = [message for message in logged_warnings if not message.startswith("No worker yet")]
    assert re.match("Workers were started 3 times in a row, and none of them connected and stayed: .*/logs", warning)
    assert "there is no such python" in str(caught.value)
    assert "JobState=FAILED Reason=NonZeroExitCode" in str(caught.value)
