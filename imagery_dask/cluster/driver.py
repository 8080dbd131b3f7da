"""Run the driver as a job of the batch system: dask-jobqueue's script header with another command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask

from imagery_dask.cluster.batch_jobs import DriverJob, is_job_queue, system_of
from imagery_dask.cluster.classes import NO_SHELL, job_names
from imagery_dask.cluster.files import ClusterFile

__all__ = ["driver_script", "submit_driver"]

# Scheduler and client; a plan of a million blocks takes 0.3 GB.
MEMORY = "4GiB"
NAME = "imagery-dask"
SUBMIT_S = 120.0
# Arguments for cores and memory of the workers, which do not apply to the driver.
OF_WORKERS = {"job_cpu", "job_mem", "ncpus", "mem"}


def driver_script(file: ClusterFile, command: Sequence[str]) -> str:
    """Return the script of a job that runs a command as the driver of an export.

    Parameters
    ----------
    file : ClusterFile
        A file of a batch system. The job has one core, 4 GiB, and the queue, account, ``job_extra_directives`` and
        ``resource_spec`` of the workers, unless the file's ``driver`` overrides them.
    command : sequence of str
        Arguments of ``imagery-dask``.

    Raises
    ------
    ValueError
        If the file is not of a batch system.
    """
    return str(_job(file, command).job_script())


def submit_driver(file: ClusterFile, command: Sequence[str]) -> DriverJob:
    """Write the script of `driver_script` to a file, and submit it.

    Raises
    ------
    OSError
        If the batch system refuses the job, or its output has no job id; with that output.
    """
    job = _job(file, command)
    folder = Path(job.log_directory or ".").absolute()
    script = folder / f"{NAME}-{uuid4().hex[:8]}.sh"
    script.touch(0o600)
    script.write_text(job.job_script())
    try:
        output = _submit(job, script)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or error
        script.unlink()
        raise OSError(f"The batch system did not take the driver's job: {str(words).strip()}") from None
    try:
        job_id = str(job._job_id_from_submit_output(output))
    except ValueError:
        raise OSError(
            f"The driver's job {script} was submitted, but its id is not in the output: {output.strip()!r}. Look at "
            "the queue before you submit it again."
        ) from None
    return DriverJob(job_id, system_of(file.cluster), str(script), str(folder) if job.log_directory else None)


def _submit(job: Any, script: Path) -> str:
    """Submit a script and return the output; dask-jobqueue's own function hides the errors of bsub."""
    words, content = shlex.split(job.submit_command), ""
    if getattr(job, "use_stdin", False):
        content = script.read_text()
    else:
        words.append(str(script))
    return subprocess.run(words, input=content, capture_output=True, text=True, check=True, timeout=SUBMIT_S).stdout


def _job(file: ClusterFile, command: Sequence[str]) -> Any:
    if not is_job_queue(file.cluster) or file.cluster.__name__ in NO_SHELL:
        raise ValueError(
            f"{file.path}: submit needs a batch system (dask_jobqueue's SLURMCluster, LSFCluster, ...), and "
            f"{getattr(file.cluster, '__name__', 'a running cluster')} is none; run imagery-dask export instead."
        )
    kind = file.cluster.job_cls
    taken = job_names(file.cluster) - OF_WORKERS
    given = {name: value for name, value in file.arguments.items() if name in taken}
    size = {"cores": 1, "processes": 1, "memory": MEMORY, "job_name": NAME}
    arguments = given | size | dict(file.driver) | {"scheduler": "", "name": NAME}
    job = kind(**arguments)
    section = arguments.get("config_name") or system_of(file.cluster)
    python = arguments.get("python") or dask.config.get(f"jobqueue.{section}.python", None) or sys.executable
    # The script of a worker's job ends with this command; `exec` lets the driver receive the batch system's signals.
    # `python` may be several words, such as a command that runs it in a container.
    words = f"{python} -m imagery_dask {shlex.join(command)}"
    job._command_template = f"cd {shlex.quote(os.getcwd())}\nexec {words}"
    return job
