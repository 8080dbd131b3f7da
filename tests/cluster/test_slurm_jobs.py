"""Exports whose driver, or each part of them, is a job of a real SLURM: as a user submits them."""

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
PARTS = 3


@pytest.fixture
def command(batch_system: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``imagery-dask`` as a user of this SLURM does, in a folder; jobs inherit its environment."""
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
    """Options of an export in a dozen blocks, of a volume that is written into a folder."""
    source = write_volume(folder / "em", coordinate_volume(SHAPE, (0, 0, 0), np.uint8))
    blocks = ["--chunks", "32,32,16", "--shards", "none", "--block-mib", 0.02]
    return ["--image-source", source, "--bounds", 0, 0, 0, *SHAPE, *blocks]


def here(folder: Path) -> dict[str, bytes]:
    """Files of the same export, by this process."""
    data = ImageryClient(image_source=f"precomputed://file://{folder}/em").image_cutout([[0, 0, 0], SHAPE])
    to_zarr(data, folder / "here.zarr", chunks=(32, 32, 16), shards=None, block_mib=0.02, progress=False)
    return files_of(folder / "here.zarr")


def state(command: Callable[..., Any], out: str) -> str:
    found = json.loads(command("status", out, "--json"))["exports"]
    return str(found[0]["state"]) if found else "not begun"


def wait_until(what: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < deadline, log()
        time.sleep(0.5)


def logs(folder: Path) -> str:
    return "\n".join(f"{file}:\n{file.read_text()[-2000:]}" for file in folder.glob("**/*.out"))


def test_a_driver_that_is_a_job(
    tmp_path: Path, cluster_file: Path, batch_system: Slurm, command: Callable[..., Any]
) -> None:
    options = region(tmp_path)
    said = command("submit", "--cluster", cluster_file.name, "zarr", "there.zarr", *options)
    (job,) = [each.job for each in _submitted(tmp_path / "there.zarr.receipts")]
    assert said.startswith(f"Submitted job {job} (slurm).\n")
    assert job in batch_system.jobs()
    assert f"how far it is: imagery-dask status {tmp_path}/there.zarr" in said
    text = command("status", "there.zarr")
    assert f"driver: job {job} (slurm), submitted " in text
    assert f"{job} {batch_system.partition} " in text  # in squeue's words
    wait_until(lambda: state(command, "there.zarr") == "complete", lambda: logs(tmp_path))
    wait_until(lambda: not batch_system.jobs(), lambda: logs(tmp_path))  # its workers were jobs, and have ended
    assert files_of(tmp_path / "there.zarr") == here(tmp_path)
    assert "driver: " not in command("status", "there.zarr")
    (log,) = (tmp_path / "logs").glob("imagery-dask-*.out")
    assert "there.zarr: " in log.read_text()


def _submitted(records: Path) -> Sequence[Any]:
    from imagery_dask.records.drivers import driver_of
    from imagery_dask.storage.files import Files

    found = driver_of(Files.at(records))
    return [] if found is None else [found]


def test_a_driver_that_waits_and_one_that_is_cancelled(
    tmp_path: Path, cluster_file: Path, batch_system: Slurm, command: Callable[..., Any]
) -> None:
    options = region(tmp_path)
    batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=DOWN")
    try:
        command("submit", "zarr", "there.zarr", *options, "--cluster", cluster_file.name)
        text = command("status", "there.zarr")
        assert text.startswith("there.zarr: not begun\n")
        assert "PENDING (PartitionDown)" in text
        (job,) = batch_system.jobs()
        said = command("submit", "zarr", "there.zarr", *options, "--cluster", cluster_file.name, code=2)
        assert re.search(rf"Error: Job {job} \(slurm\) is the driver of .*there\.zarr already", said)
        batch_system.run("scancel", job)
        command("submit", "zarr", "there.zarr", *options, "--cluster", cluster_file.name)
        (job,) = batch_system.jobs()
        batch_system.run("scancel", job)
    finally:
        batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=UP")
    assert not (tmp_path / "there.zarr").exists()


@pytest.mark.usefixtures("command")  # for its environment
def test_ctrl_c_while_jobs_wait(tmp_path: Path, cluster_file: Path, batch_system: Slurm) -> None:
    """dask_jobqueue, where it is imported, lets an interrupt end the process as if all had been done."""
    options = ["zarr", "there.zarr", *map(str, region(tmp_path)), "--cluster", cluster_file.name]
    batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=DOWN")
    try:
        words = [sys.executable, "-m", "imagery_dask", "export", *options]
        with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + TIMEOUT_S
            while not batch_system.jobs():
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130
        assert without_dashboard(said).startswith("Interrupted; the same command goes on with there.zarr")
        assert batch_system.jobs() == []
    finally:
        batch_system.run("scontrol", "update", f"PartitionName={batch_system.partition}", "State=UP")


def test_a_driver_that_is_refused(tmp_path: Path, cluster_file: Path, command: Callable[..., Any]) -> None:
    content = yaml.safe_load(cluster_file.read_text())
    cluster_file.write_text(yaml.safe_dump(content | {"driver": {"queue": "absent"}}))
    said = command("submit", "--cluster", cluster_file, "zarr", "there.zarr", *region(tmp_path), code=2)
    assert "Error: The batch system did not take the driver's job: " in said
    assert "invalid partition specified: absent" in said
    assert not (tmp_path / "there.zarr.receipts").exists()
    cluster_file.write_text(yaml.safe_dump(content | {"driver": {"queues": "absent"}}))
    said = command("submit", "--cluster", cluster_file, "zarr", "there.zarr", *region(tmp_path), code=2)
    assert "unknown argument 'queues' (did you mean 'queue'?)" in said


def test_what_is_wrong_is_said_before_anything_is_submitted(
    tmp_path: Path,
    cluster_file: Path,
    batch_system: Slurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(*arguments: object, code: int = 2) -> str:
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
    for arguments, words in (
        (["zarr", "there.zarr", *options], "Say which batch system: --cluster FILE"),
        (["--cluster", cluster_file], "Say what to export"),
        (["--cluster", cluster_file, "zar", "there.zarr", *options], "What to export begins with one of zarr, "),
        (["--cluster", cluster_file, "zarr", "there.zarr", *options[:-1], "many"], "Invalid value for '--block-mib'"),
        (["--cluster", local, "zarr", "there.zarr", *options], "LocalCluster is none; run the export itself"),
        (["--cluster", cluster_file, "zarr", "there.zarr", "--image-source", "precomputed://https://me:word@host/em",
          "--bounds", 0, 0, 0, 1, 1, 1], "leave the password out of the URL"),
        (["--cluster", cluster_file, "zarr", "there.zarr", *options, "--retire-before", "100h"], "ask for a longer"),
        (["--cluster", cluster_file, "--plan", plan, "--part", "1/4"], "Parts need none"),
        (["--cluster", cluster_file, "--plan", "nope.json"], "There is no plan nope.json"),
        (["--cluster", "nope.yaml", "zarr", "there.zarr", *options], "There is no cluster file nope.yaml"),
        (["--cluster", "local", "zarr", "there.zarr", *options], "Say which batch system: --cluster FILE"),
    ):  # fmt: skip
        assert words in said(*arguments)
    assert batch_system.jobs() == []
    script = said("--dry-run", "--cluster", cluster_file, "zarr", "there.zarr", *options, code=0)
    assert batch_system.jobs() == []
    assert script.strip() == _script(cluster_file, options).strip()


def _script(cluster_file: Path, options: Sequence[object]) -> str:
    arguments = ["export", "zarr", "--cluster", str(cluster_file), "there.zarr", *map(str, options)]
    return driver_script(load_cluster_file(cluster_file), arguments)


@pytest.mark.usefixtures("cluster_file")  # which says where SLURM is: an array needs no cluster
def test_an_array_of_parts(tmp_path: Path, batch_system: Slurm, command: Callable[..., Any]) -> None:
    command("plan", "zarr", "there.zarr", *region(tmp_path), "--samples", 1, "--save", "plan.json")
    script = tmp_path / "array.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --array=1-{PARTS}\n#SBATCH --output={tmp_path}/part-%a.out\n"
        f"{sys.executable} -m imagery_dask export --plan plan.json --part $SLURM_ARRAY_TASK_ID/{PARTS} --workers 1\n"
    )
    assert shutil.which("sbatch")
    batch_system.run("sbatch", f"--chdir={tmp_path}", "--partition", batch_system.partition, str(script))
    wait_until(lambda: not batch_system.jobs(), lambda: logs(tmp_path))
    assert state(command, "there.zarr") == "complete", logs(tmp_path)
    assert "all as written" in command("verify", "there.zarr")
    found = zarr.open_array(tmp_path / "there.zarr", path="0", mode="r")[...].T
    np.testing.assert_array_equal(found, coordinate_volume(SHAPE, (0, 0, 0), np.uint8))
    assert files_of(tmp_path / "there.zarr") == here(tmp_path)
