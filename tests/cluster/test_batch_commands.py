"""Batch systems whose commands refuse, hang or answer unusually; short shell scripts stand for the commands.

`test_slurm.py` uses a real SLURM, which cannot be made to refuse a single job or to hang.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dask
import psutil
import pytest

from imagery_dask.cluster import batch_jobs, connect, connecting, driver_script, load_cluster_file, submit_driver
from imagery_dask.cluster.batch_jobs import end_of_log
from imagery_dask.cluster.starting import _secured

SLURM = "cluster: dask_jobqueue.SLURMCluster\n"
LSF = "cluster: dask_jobqueue.LSFCluster\n"
ARGUMENTS = "arguments: {cores: 1, memory: 1GiB, queue: tests, walltime: '00:30:00'"
# Arguments of clusters that run at the same time as those of other tests.
STARTED = f"{ARGUMENTS}, scheduler_options: {{dashboard_address: '127.0.0.1:0'}}"
Command = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Put shell scripts on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    return make


def cluster_file(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_submitted_jobs_are_cancelled_when_a_further_one_is_refused(tmp_path: Path, program: Command) -> None:
    program("squeue", "exit 0")
    program("scancel", f"echo $* >> {tmp_path}/cancelled")
    program(
        "sbatch",
        f"mkdir {tmp_path}/1 2>/dev/null || mkdir {tmp_path}/2 2>/dev/null || "
        "{ echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }\n"
        "echo Submitted batch job $$",
    )
    file = cluster_file(tmp_path, f"{SLURM}workers: 3\n{STARTED}}}\n")
    with (
        pytest.raises(OSError, match=r"accepted 2 of 3(.|\n)*QOSMaxSubmitJobPerUserLimit"),
        connect(file, wait_s=5),
    ):
        pass
    assert len((tmp_path / "cancelled").read_text().split()) == 2


@pytest.mark.parametrize("count", ["workers: 1", "adapt: {minimum: 1, maximum: 2}"], ids=["workers", "adapt"])
@pytest.mark.long
def test_jobs_that_end_in_the_queue_are_submitted_again(tmp_path: Path, program: Command, count: str) -> None:
    program("sbatch", f"echo $$ >> {tmp_path}/submitted; echo Submitted batch job $$")
    program("scancel", "exit 0")
    program("squeue", f"sed 's#$#/CANCELLED#' {tmp_path}/submitted")
    file = cluster_file(tmp_path, f"{SLURM}{count}\n{STARTED}}}\n")
    with pytest.raises(TimeoutError, match="all of them ended before they connected"), connect(file, wait_s=60):
        pass
    assert len((tmp_path / "submitted").read_text().split()) == 3


@pytest.mark.long
def test_a_batch_command_that_hangs_is_killed(
    tmp_path: Path, program: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_jobs, "LIST_S", 0.5)
    program("sbatch", "echo Submitted batch job 7")
    program("scancel", "exit 0")
    program("squeue", "exec sleep 600")
    file = cluster_file(tmp_path, f"{SLURM}workers: 1\n{STARTED}}}\n")
    with pytest.raises(TimeoutError, match="No worker came within 4 s"), connect(file, wait_s=4):
        pass
    sleeping = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", "600"]]
    assert not [process for process in sleeping if str(tmp_path) in " ".join(process.environ().values())]


def test_a_long_wait_for_workers_is_logged_with_the_queue(
    tmp_path: Path, program: Command, monkeypatch: pytest.MonkeyPatch, logged_warnings: list[str]
) -> None:
    monkeypatch.setattr(connecting, "WARN_S", (1.0, 60.0))
    program("sbatch", "echo Submitted batch job 7")
    program("scancel", "exit 0")
    program("squeue", "case $1 in --format*) echo JOBID STATE; echo 7 PENDING Resources;; *) echo 7/PENDING;; esac")
    file = cluster_file(tmp_path, f"{SLURM}workers: 1\n{STARTED}}}\n")
    with pytest.raises(TimeoutError, match="No worker came within 5 s"), connect(file, wait_s=5):
        pass
    (message,) = logged_warnings
    assert re.match(r"No worker yet, after \d s of 5 \(--wait\)\.\nsqueue (.|\n)*7 PENDING Resources$", message)


def test_is_listed_returns_none_when_the_queue_is_unknown(program: Command) -> None:
    program("squeue", "echo 7/PENDING; echo 8/CANCELLED")
    assert [batch_jobs.is_listed("slurm", job) for job in ("7", "8", "9")] == [True, False, False]
    program("squeue", "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    assert batch_jobs.is_listed("slurm", "7") is None
    assert batch_jobs.is_listed("another", "7") is None


def test_multi_line_text_is_split_into_a_list(tmp_path: Path) -> None:
    text = """\
arguments:
  cores: 1
  memory: 1GiB
  job_script_prologue: |
    module load python
    source activate
  job_extra_directives: --qos=high
driver:
  job_script_prologue: module load driver
environment: {A: 1}
workers: 1
"""
    file = load_cluster_file(cluster_file(tmp_path, SLURM + text))
    assert file.arguments["job_script_prologue"] == ["export A=1", "module load python", "source activate"]
    assert file.arguments["job_extra_directives"] == ["--qos=high"]
    script = driver_script(file, ["export", "zarr"]).splitlines()
    assert "#SBATCH --qos=high" in script
    assert "module load driver" in script
    assert "module load python" not in script


def test_a_cluster_file_without_workers_is_refused(tmp_path: Path) -> None:
    file = cluster_file(tmp_path, f"{SLURM}{ARGUMENTS}}}\n")
    with pytest.raises(ValueError, match="cluster.yaml asks for no workers.*--workers"), connect(file, wait_s=60):
        pass


def test_a_driver_is_submitted_with_bsub_or_its_error_is_shown(
    tmp_path: Path, program: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my folder; exit"
    folder.mkdir()
    monkeypatch.chdir(folder)
    arguments = ARGUMENTS.replace("queue", "use_stdin: true, queue")
    file = load_cluster_file(cluster_file(folder, f"{LSF}workers: 1\n{arguments}}}\n"))
    program("bsub", f"cat > {tmp_path}/script; echo 'Job <31> is submitted to queue <tests>.'")
    job = submit_driver(file, ["export", "zarr"])
    assert (job.job, job.system) == ("31", "lsf")
    assert (tmp_path / "script").read_text() == Path(job.script).read_text()
    program("bsub", "echo 'tests: No such queue' >&2; exit 255")
    before = sorted(folder.rglob("*.sh"))
    with pytest.raises(OSError, match="did not take the driver's job: tests: No such queue$"):
        submit_driver(file, ["export", "zarr"])
    assert sorted(folder.rglob("*.sh")) == before, "the script of a job that was refused is left"
    (tmp_path / "bin" / "bsub").unlink()
    with pytest.raises(OSError, match="bsub"):
        submit_driver(file, ["export", "zarr"])


@pytest.mark.parametrize(
    ("system", "arguments", "driver", "expected", "unexpected"),
    [
        (SLURM, "job_cpu: 16, job_mem: 128G", "", ["--cpus-per-task=1", "--mem=4G"], ["16", "128G"]),
        (LSF, "ncpus: 8, mem: 64000000000", "", ["-n 1"], ["-n 8", "64000"]),
        (SLURM, "name: mine", "", ["imagery_dask export zarr"], []),
        (SLURM, "python: /workers/python", "python: /drivers/python", ["exec /drivers/python -m"], ["/workers"]),
        (SLURM, "python: apptainer exec image.sif python", "", ["exec apptainer exec image.sif python -m"], []),
    ],
    ids=["slurm", "lsf", "name", "python", "container"],
)
def test_the_drivers_job_has_its_own_resources_name_and_python(
    tmp_path: Path, system: str, arguments: str, driver: str, expected: list[str], unexpected: list[str]
) -> None:
    text = f"{system}workers: 1\n{ARGUMENTS}, {arguments}}}\n" + (f"driver: {{{driver}}}\n" if driver else "")
    script = driver_script(load_cluster_file(cluster_file(tmp_path, text)), ["export", "zarr"])
    assert not [word for word in expected if word not in script], script
    assert not [word for word in unexpected if word in script.replace(str(tmp_path), "")], script


def test_the_driver_uses_the_python_of_dasks_configuration(tmp_path: Path) -> None:

    file = load_cluster_file(cluster_file(tmp_path, f"{SLURM}workers: 1\n{ARGUMENTS}}}\n"))
    with dask.config.set({"jobqueue.slurm.python": "/configured/python"}):
        assert "exec /configured/python -m imagery_dask export" in driver_script(file, ["export"])


def test_the_name_of_the_drivers_job_cannot_be_set(tmp_path: Path) -> None:
    file = cluster_file(tmp_path, f"{SLURM}workers: 1\n{ARGUMENTS}}}\ndriver: {{name: x}}\n")
    with pytest.raises(ValueError, match="line 4: unknown argument 'name'"):
        load_cluster_file(file)


def test_a_key_may_replace_a_merged_one_but_not_repeat(tmp_path: Path) -> None:
    arguments = ARGUMENTS.replace("arguments: {", "arguments: &workers {")
    driver = "driver: {<<: *workers, walltime: '48:00:00'}\n"
    file = load_cluster_file(cluster_file(tmp_path, f"{SLURM}workers: 1\n{arguments}}}\n{driver}"))
    assert (file.driver["walltime"], file.driver["queue"]) == ("48:00:00", "tests")
    with pytest.raises(ValueError, match="duplicate key 'walltime'"):
        load_cluster_file(cluster_file(tmp_path, f"{SLURM}driver: {{<<: {{queue: x}}, walltime: 1, walltime: 2}}\n"))


@pytest.mark.parametrize(
    ("arguments", "encrypted"),
    [
        ("{host: 127.0.0.2}", False),
        ("{host: 'tcp://[::1]'}", False),
        ("{host: localhost}", False),
        ("{host: 127.0.0.1.example}", True),
        ("{host: 0.0.0.0}", True),
        ("{scheduler_kwargs: {host: 0.0.0.0}}", True),
        ("{scheduler_kwargs: {interface: eth0}}", True),
        ("{}", False),
    ],
)
def test_schedulers_reachable_from_other_hosts_are_encrypted(tmp_path: Path, arguments: str, encrypted: bool) -> None:
    text = f"cluster: distributed.LocalCluster\nworkers: 1\narguments: {arguments}\n"
    assert (_secured(load_cluster_file(cluster_file(tmp_path, text))).security is not None) == encrypted


def test_the_log_of_a_job_is_found_by_its_whole_id(tmp_path: Path) -> None:
    for name in ("dask-worker-49.err", "imagery-dask-a4bc3de.sh", "imagery-dask-4.sh"):
        (tmp_path / name).write_text("of another")
    assert end_of_log(str(tmp_path), ["4"]) == ""
    (tmp_path / "dask-worker-4.err").write_text("its own")
    assert "its own" in end_of_log(str(tmp_path), ["4.server"])


INTERRUPTED = """
import importlib, os, signal, sys, time
from pathlib import Path
from imagery_dask.cli.run_flags import ended_as_interrupted
from imagery_dask.cluster import load_cluster_file

with ended_as_interrupted():
    load_cluster_file(Path(sys.argv[1]))
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        print("closed", flush=True)
        sys.exit(130)
"""


def test_an_interrupt_exits_with_130_although_dask_jobqueue_is_imported(tmp_path: Path) -> None:
    """dask_jobqueue's own handler exits with 0, and LSF sends SIGTERM after SIGINT."""
    file = cluster_file(tmp_path, f"{SLURM}workers: 1\n{ARGUMENTS}}}\n")
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "closed\n"
        assert process.wait(30) == 130
