"""The driver as a job of the batch system that its workers are jobs of: dask-jobqueue's header, and another command."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from imagery_dask.cluster.classes import is_job_queue, job_names
from imagery_dask.cluster.files import ClusterFile
from imagery_dask.cluster.waiting import system_of

__all__ = ["DriverJob", "driver_script", "submit_driver"]

# Scheduler and client; a plan of a million blocks takes 0.3 GB.
MEMORY = "4GiB"
NAME = "imagery-dask"


@dataclass(frozen=True, slots=True)
class DriverJob:
    """A job that was submitted.

    Parameters
    ----------
    job : str
        Its id.
    system : str
        Which batch system, as dask-jobqueue calls it: ``"slurm"``.
    script : str
        Path of its script.
    logs : str or None
        Folder of its output, where the cluster file says one.
    """

    job: str
    system: str
    script: str
    logs: str | None


def driver_script(file: ClusterFile, command: Sequence[str]) -> str:
    """Script of a job that runs a command as the driver of an export.

    Parameters
    ----------
    file : ClusterFile
        Of a batch system. The driver's job is one of one core and 4 GiB, in the same queue and for the same account as
        the workers, but for what the file's ``driver`` says.
    command : sequence of str
        Arguments of ``imagery-dask``.

    Raises
    ------
    ValueError
        The file is of no batch system.
    """
    return str(_job(file, command).job_script())


def submit_driver(file: ClusterFile, command: Sequence[str]) -> DriverJob:
    """Write the script of `driver_script` to a file, and submit it.

    Raises
    ------
    OSError
        The batch system does not take it; with its words.
    """
    job = _job(file, command)
    folder = Path(job.log_directory or ".").absolute()
    script = folder / f"{NAME}-{uuid4().hex[:8]}.sh"
    script.touch(0o600)
    script.write_text(job.job_script())
    try:
        said = asyncio.run(job._submit_job(str(script)))
        found = str(job._job_id_from_submit_output(said))
    except (RuntimeError, OSError, ValueError) as error:
        raise OSError(f"The batch system did not take the driver's job ({script}):\n{error}") from None
    return DriverJob(found, system_of(file.cluster), str(script), str(folder) if job.log_directory else None)


def _job(file: ClusterFile, command: Sequence[str]) -> Any:
    if not is_job_queue(file.cluster):
        raise ValueError(
            f"{file.path}: submit is for batch systems (dask_jobqueue's SLURMCluster and its kin), and "
            f"{getattr(file.cluster, '__name__', 'a cluster that runs')} is none; run the export itself."
        )
    kind = file.cluster.job_cls
    given = {name: value for name, value in file.arguments.items() if name in job_names(file.cluster)}
    python = given.get("python") or sys.executable
    arguments = given | {"cores": 1, "processes": 1, "memory": MEMORY, "job_name": NAME} | dict(file.driver)
    job = kind(scheduler="", name=NAME, **arguments)
    words = [python, "-m", "imagery_dask", *command]
    # What a worker's job does is one line, whose place the driver's takes; `exec` hands it the system's signals.
    job._command_template = f"cd {shlex.quote(os.getcwd())}\nexec {shlex.join(words)}"
    return job
