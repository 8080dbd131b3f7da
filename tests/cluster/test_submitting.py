"""Submitting jobs to a slow batch system: a command that is interrupted leaves no job in the queue.

Short shell scripts stand for the batch system; `test_slurm_jobs.py` uses a real SLURM.
"""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster.processes import environment
from support.streams import without_dashboard
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cli import main
from imagery_dask.cluster import connect, load_cluster_file, submit_driver

TEXT = """\
cluster: dask_jobqueue.SLURMCluster
arguments:
  cores: 1
  memory: 1GiB
  walltime: 00:30:00
  scheduler_options: {dashboard_address: '127.0.0.1:0'}
"""
SHAPE = (32, 32, 16)
BOUNDS = ("--bounds", 0, 0, 0, *SHAPE)
TIMEOUT_S = 90.0


@pytest.fixture(autouse=True)
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a fake queue that logs submitted and cancelled jobs; its jobs stay pending."""
    folder = tmp_path / "queue"
    folder.mkdir()
    for name, body in {
        "sbatch": f"touch {folder}/began; sleep $(cat {folder}/seconds); echo $$ >> {folder}/submitted; "
                  "echo Submitted batch job $$",
        "scancel": f"for job; do echo $job >> {folder}/cancelled; done",
        "squeue": f"sed 's#$#/PENDING#' {folder}/submitted",
    }.items():  # fmt: skip
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "seconds").write_text("0")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_volume(tmp_path / "em", coordinate_volume(SHAPE, (0, 0, 0), np.uint8))


def cluster_file(folder: Path, workers: str = "workers: 2\n") -> Path:
    path = folder / "slurm.yaml"
    path.write_text(TEXT + workers)
    return path


def listed(queue: Path, name: str) -> list[str]:
    """Return the ids in one of the queue's lists."""
    path = queue / name
    return sorted(path.read_text().split()) if path.exists() else []


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupt_while_jobs_are_submitted_cancels_them(tmp_path: Path, queue: Path) -> None:
    (queue / "seconds").write_text("3")

    def interrupt() -> None:
        wait_until((queue / "began").exists)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), connect(cluster_file(tmp_path), wait_s=TIMEOUT_S):
        pass
    thread.join()
    assert len(listed(queue, "submitted")) == 2
    assert listed(queue, "cancelled") == listed(queue, "submitted")


@pytest.mark.long
@pytest.mark.parametrize(("name", "ending"), [("export", signal.SIGHUP), ("verify", signal.SIGTERM)])
def test_a_signal_while_waiting_for_workers_cancels_the_jobs(
    tmp_path: Path, queue: Path, source: str, name: str, ending: signal.Signals
) -> None:
    out = tmp_path / "out.zarr"
    arguments = ["export", "zarr", out, "--image-source", source, *BOUNDS]
    if name == "verify":
        data = ImageryClient(image_source=source).image_cutout([[0, 0, 0], SHAPE])
        to_zarr(data, out, progress=False)
        arguments = ["verify", out]
    command = [sys.executable, "-m", "imagery_dask", *arguments, "--cluster", cluster_file(tmp_path)]
    inherited = signal.signal(ending, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    try:
        process = subprocess.Popen(
            [str(word) for word in command], stderr=subprocess.PIPE, text=True, env=environment()
        )
    finally:
        signal.signal(ending, inherited)
    with process:
        try:
            wait_until(lambda: len(listed(queue, "submitted")) == 2 or process.poll() is not None)
            process.send_signal(ending)
            _, error = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 130, error
    assert without_dashboard(error).strip().startswith("Interrupted")
    assert listed(queue, "cancelled") == listed(queue, "submitted")
    assert not list(tmp_path.glob("*/lease.json"))


def test_an_ignored_sighup_stays_ignored_and_handlers_are_restored(tmp_path: Path) -> None:
    """nohup ignores SIGHUP; SIGTERM is an interrupt within the block only."""
    code = (
        "import os, signal\n"
        "from imagery_dask.cli.run_flags import ended_as_interrupted\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with ended_as_interrupted(): os.kill(os.getpid(), signal.SIGHUP)\n"
        "try:\n"
        "    with ended_as_interrupted(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "print(*(int(signal.getsignal(number)) for number in (signal.SIGHUP, signal.SIGTERM)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stdout) == (0, "interrupted\n1 0\n"), done.stderr


def test_the_workers_argument_replaces_n_workers_of_the_cluster_class(tmp_path: Path, queue: Path) -> None:
    file = cluster_file(tmp_path, "  n_workers: 3\n")
    with pytest.raises(TimeoutError), connect(file, workers=1, wait_s=0.1):
        pass
    assert len(listed(queue, "submitted")) == 1


def test_a_job_id_that_cannot_be_read_is_an_error(tmp_path: Path, queue: Path) -> None:
    (queue / "sbatch").write_text("#!/bin/sh\necho Your job is in the queue.\n")
    file = load_cluster_file(cluster_file(tmp_path))
    with pytest.raises(OSError, match=r"was submitted, but its id is not in .*'Your job is in the queue\.'") as caught:
        submit_driver(file, ["export", "zarr"])
    (script,) = tmp_path.glob("imagery-dask-*.sh")
    assert str(script) in str(caught.value)


def test_submit_refuses_what_the_job_would_refuse(
    tmp_path: Path, queue: Path, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def submit(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["imagery-dask", "submit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    file = cluster_file(tmp_path)
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr" / "notes.txt").write_text("mine")
    data = ImageryClient(image_source=source).image_cutout([[0, 0, 0], SHAPE])
    to_zarr(data[:16], tmp_path / "half.zarr", progress=False)
    before = sorted(tmp_path.rglob("*"))
    region = ["--image-source", source, *BOUNDS]
    without_workers = tmp_path / "none.yaml"
    without_workers.write_text(TEXT)
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        (["--cluster", file, "zarr", "new.zarr", *region, "--block-mib", -5], "Invalid value for '--block-mib'"),
        (["--cluster", file, "zarr", "half.zarr", *region], "It was written with other arguments: "),
        (["--cluster", file, "zarr", "other.zarr", *region], "is not a zarr store"),
        (["--cluster", without_workers, "zarr", "new.zarr", *region], "asks for no workers; set "),
        (["--cluster", file, "zarr", "new.zarr", *region, "--cluster", file], "--cluster is given twice"),
    ):  # fmt: skip
        code, output = submit(*arguments)
        assert (code, message in output) == (2, True), output
    assert sorted(tmp_path.rglob("*")) == before, "files were left behind"
    # A store that is overwritten may have been written with other arguments.
    assert submit("--cluster", without_workers, "zarr", "half.zarr", *region, "--overwrite", "--workers", 2)[0] == 0
    assert len(listed(queue, "submitted")) == 1
    code, output = submit("--dry-run", "--cluster", file, "zarr", *region, "--", "new.zarr")
    assert (code, f"export zarr --cluster {file} --image-source" in output, " -- new.zarr" in output) == (0, True, True)


def test_a_cluster_file_can_be_loaded_in_a_thread(tmp_path: Path) -> None:
    """Importing dask_jobqueue sets a signal handler, which only the main thread may do."""
    code = (
        "import signal, sys, threading, pathlib\n"
        "from imagery_dask.cluster import load_cluster_file\n"
        "def load(): print(load_cluster_file(pathlib.Path(sys.argv[1])).cluster.__name__)\n"
        "thread = threading.Thread(target=load); thread.start(); thread.join()\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    command = [sys.executable, "-c", code, str(cluster_file(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stdout) == (0, "SLURMCluster\n"), done.stderr
