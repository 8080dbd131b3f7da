"""Exports whose driver, or each of whose parts, is a job of a real SLURM."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from cluster.slurm import Slurm
from integration.stores import files_of
from support.streams import without_dashboard
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cli.main import main
from imagery_dask.cluster import driver_script, load_cluster_file

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SHAPE = (96, 64, 48)
TIMEOUT_S = 120.0
PARTS = 2


@pytest.fixture
def command(batch_system: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``imagery-dask`` in a folder with the environment of this SLURM, which jobs inherit."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))

    def run(*arguments: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "imagery_dask", *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return without_dashboard(done.stdout + done.stderr)

    return run


def region(folder: Path) -> list[object]:
    """Write a volume into a folder; return the options of its export in a dozen blocks."""
    source = write_volume(folder / "em", coordinate_volume(SHAPE, (0, 0, 0), np.uint8))
    blocks = ["--chunks", "32,32,16", "--shards", "none", "--block-mib", 0.02]
    return ["--image-source", source, "--bounds", 0, 0, 0, *SHAPE, *blocks]


def local_files(folder: Path) -> dict[str, bytes]:
    """Return the files of the same export in this process."""
    data = ImageryClient(image_source=f"precomputed://file://{folder}/em").image_cutout([[0, 0, 0], SHAPE])
    to_zarr(data, folder / "local.zarr", chunks=(32, 32, 16), shards=None, block_mib=0.02, progress=False)
    return files_of(folder / "local.zarr")


def state(command: Callable[..., Any], out: str) -> str:
    exports = json.loads(command("status", out, "--json"))["exports"]
    return str(exports[0]["state"]) if exports else "not begun"


def wait_until(condition: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.5)


def logs(folder: Path) -> str:
    return "\n".join(f"{file}:\n{file.read_text()[-2000:]}" for file in folder.glob("**/*.out"))


def test_a_submitted_driver_exports_and_shows_its_job_in_status(
    tmp_path: Path, cluster_file: Path, batch_system: Slurm, command: Callable[..., Any]
) -> None:
    options = region(tmp_path)
    output = command("submit", "--cluster", cluster_file.name, "zarr", "remote.zarr", *options)
    (job,) = [driver.job for driver in _submitted(tmp_path / "remote.zarr.receipts")]
    assert output.startswith(f"Submitted job {job} (slurm).\n")
    assert job in batch_system.jobs()
    assert f"progress: imagery-dask status {tmp_path}/remote.zarr" in output
    text = command("status", "remote.zarr")
    assert f"driver: job {job} (slurm), submitted " in text
    assert f"{job} {batch_system.partition} " in text  # a line of squeue
    wait_until(lambda: not batch_system.jobs(), lambda: logs(tmp_path))  # the jobs of its workers have ended, too
    assert state(command, "remote.zarr") == "complete", logs(tmp_path)
    assert files_of(tmp_path / "remote.zarr") == local_files(tmp_path)
    assert "driver: " not in command("status", "remote.zarr")
    (log,) = (tmp_path / "logs").glob("imagery-dask-*.out")
    assert "remote.zarr: " in log.read_text()


def _submitted(records: Path) -> Sequence[Any]:
    """Return the recorded driver, if there is one."""
    from imagery_dask.records.drivers import driver_of
    from imagery_dask.storage.atomic_files import Files

    driver = driver_of(Files.at(records))
    return [] if driver is None else [driver]


def test_a_second_driver_is_refused_until_the_first_is_cancelled(
    tmp_path: Path, cluster_file: Path, batch_system: Slurm, command: Callable[..., Any]
) -> None:
    options = region(tmp_path)
    batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=DOWN")
    try:
        command("submit", "zarr", "remote.zarr", *options, "--cluster", cluster_file.name)
        text = command("status", "remote.zarr")
        assert text.startswith("remote.zarr: not started\n")
        assert "PENDING (PartitionDown)" in text
        (job,) = batch_system.jobs()
        output = command("submit", "zarr", "remote.zarr", *options, "--cluster", cluster_file.name, code=2)
        assert re.search(rf"Error: Job {job} \(slurm\) is already the driver of .*remote\.zarr", output)
        batch_system.run("scancel", job)
        command("submit", "zarr", "remote.zarr", *options, "--cluster", cluster_file.name)
        (job,) = batch_system.jobs()
        batch_system.run("scancel", job)
    finally:
        batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=UP")
    assert not (tmp_path / "remote.zarr").exists()


@pytest.mark.usefixtures("command")  # for its environment
def test_ctrl_c_cancels_pending_jobs(tmp_path: Path, cluster_file: Path, batch_system: Slurm) -> None:
    """dask_jobqueue's own handler would end an interrupted process with exit code 0."""
    options = ["zarr", "remote.zarr", *map(str, region(tmp_path)), "--cluster", cluster_file.name]
    batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=DOWN")
    try:
        words = [sys.executable, "-m", "imagery_dask", "export", *options]
        with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + TIMEOUT_S
            while not batch_system.jobs():
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, output = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130
        assert without_dashboard(output).startswith("Interrupted. Run the same command again to resume remote.zarr")
        assert batch_system.jobs() == []
    finally:
        batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=UP")


def test_a_driver_that_slurm_refuses_leaves_no_records(
    tmp_path: Path, cluster_file: Path, command: Callable[..., Any]
) -> None:
    content = yaml.safe_load(cluster_file.read_text())
    cluster_file.write_text(yaml.safe_dump(content | {"driver": {"queue": "absent"}}))
    output = command("submit", "--cluster", cluster_file, "zarr", "remote.zarr", *region(tmp_path), code=2)
    assert "Error: The batch system did not take the driver's job: " in output
    assert "invalid partition specified: absent" in output
    assert not (tmp_path / "remote.zarr.receipts").exists()
    cluster_file.write_text(yaml.safe_dump(content | {"driver": {"queues": "absent"}}))
    output = command("submit", "--cluster", cluster_file, "zarr", "remote.zarr", *region(tmp_path), code=2)
    assert "unknown argument 'queues' (did you mean 'queue'?)" in output


def test_invalid_commands_are_refused_before_a_job_is_submitted(
    tmp_path: Path,
    cluster_file: Path,
    batch_system: Slurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def submit(*arguments: object, code: int = 2) -> str:
        monkeypatch.setattr("sys.argv", ["imagery-dask", "submit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert ended.value.code == code, captured.err
        return captured.out + captured.err

    options = region(tmp_path)
    plan = tmp_path / "plan.json"
    data = ImageryClient(image_source=f"precomputed://file://{tmp_path}/em").image_cutout([[0, 0, 0], SHAPE])
    to_zarr(data, tmp_path / "other.zarr", chunks=(32, 32, 16), progress=False)
    shutil.copy(next((tmp_path / "other.zarr.receipts").glob("*/plan.json")), plan)
    local = tmp_path / "local.yaml"
    local.write_text("cluster: distributed.LocalCluster\n")
    for arguments, message in (
        (["zarr", "remote.zarr", *options], "submit needs a batch system: --cluster FILE"),
        (["--cluster", cluster_file], "Give an export"),
        (["--cluster", cluster_file, "zar", "remote.zarr", *options], "An export begins with one of zarr, "),
        (["--cluster", cluster_file, "zarr", "remote.zarr", *options[:-1], "many"], "Invalid value for '--block-mib'"),
        (["--cluster", local, "zarr", "remote.zarr", *options], "is none; run imagery-dask export instead"),
        (["--cluster", cluster_file, "zarr", "remote.zarr", "--image-source", "precomputed://https://me:word@host/em",
          "--bounds", 0, 0, 0, 1, 1, 1], "Leave it out of the URL"),
        (["--cluster", cluster_file, "zarr", "remote.zarr", *options, "--retire-before", "100h"], "ask for a longer"),
        (["--cluster", cluster_file, "--plan", plan, "--part", "1/4"], "parts run without a driver"),
        (["--cluster", cluster_file, "--plan", "nope.json"], "There is no plan nope.json"),
        (["--cluster", "nope.yaml", "zarr", "remote.zarr", *options], "There is no cluster file nope.yaml"),
        (["--cluster", "local", "zarr", "remote.zarr", *options], "submit needs a batch system: --cluster FILE"),
    ):  # fmt: skip
        assert message in submit(*arguments)
    assert batch_system.jobs() == []
    script = submit("--dry-run", "--cluster", cluster_file, "zarr", "remote.zarr", *options, code=0)
    assert batch_system.jobs() == []
    assert script.strip() == _script(cluster_file, options).strip()


def _script(cluster_file: Path, options: Sequence[object]) -> str:
    arguments = ["export", "zarr", "--cluster", str(cluster_file), "remote.zarr", *map(str, options)]
    return driver_script(load_cluster_file(cluster_file), arguments)


@pytest.mark.usefixtures("cluster_file")  # sets the environment of SLURM; an array needs no cluster
def test_parts_in_a_job_array_make_one_export(tmp_path: Path, batch_system: Slurm, command: Callable[..., Any]) -> None:
    command("plan", "zarr", "remote.zarr", *region(tmp_path), "--samples", 1, "--save", "plan.json")
    script = tmp_path / "array.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --array=1-{PARTS}\n#SBATCH --output={tmp_path}/part-%a.out\n"
        f"{sys.executable} -m imagery_dask export --plan plan.json --part $SLURM_ARRAY_TASK_ID/{PARTS} --workers 1\n"
    )
    assert shutil.which("sbatch")
    batch_system.run("sbatch", f"--chdir={tmp_path}", "--partition", batch_system.partition, str(script))
    wait_until(lambda: not batch_system.jobs(), lambda: logs(tmp_path))
    assert state(command, "remote.zarr") == "complete", logs(tmp_path)
    assert "all as written" in command("verify", "remote.zarr")
    voxels = zarr.open_array(tmp_path / "remote.zarr", path="0", mode="r")[...].T
    np.testing.assert_array_equal(voxels, coordinate_volume(SHAPE, (0, 0, 0), np.uint8))
    assert files_of(tmp_path / "remote.zarr") == local_files(tmp_path)
