"""Ask a batch system about jobs: which are listed, why they wait, how they ended.

Batch systems have their names in dask-jobqueue (``"slurm"``). Nothing here imports dask.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed.deploy import Cluster

__all__ = [
    "DriverJob", "describe_jobs", "end_of_log", "is_job_queue", "is_listed", "job_details", "job_number", "listed_jobs",
    "submitted_ids", "system_of",
]  # fmt: skip

# Seconds after which a command of the batch system is given up.
DESCRIBE_S = 10
LIST_S = 30.0
# Lines of a log, lines of an answer, and jobs that a message shows.
LOG_LINES = 15
ANSWER_LINES = 20
JOBS_SHOWN = 3
# Commands that describe jobs. The first one with output is used.
DESCRIBE: dict[str, tuple[tuple[str, ...], ...]] = {
    "slurm": (("squeue", "--format=%i %P %T %R", "--jobs={ids}"), ("scontrol", "show", "job", "{id}")),
    "pbs": (("qstat", "-f", "{id}"),),
    "lsf": (("bjobs", "-p", "{id}"), ("bjobs", "-l", "{id}")),
    "sge": (("qstat", "-j", "{id}"),),
    "oar": (("oarstat", "-f", "-j", "{id}"),),
    "moab": (("checkjob", "{id}"),),
    "htcondor": (("condor_q", "-better-analyze", "{id}"),),
}
# Commands that list the jobs of a user. The first word of a line is the id; another word may be the state.
LIST = {
    "slurm": "squeue --noheader --states=all --format=%i/%T --user={user}",
    "pbs": "qselect -u {user}",
    "lsf": "bjobs -a -w -u {user}",
    "sge": "qstat -u {user}",
}
ENDED_STATES = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "DONE", "EXIT", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
# Output of bjobs if there are no jobs. Its exit code depends on the version.
NO_JOBS = ("No unfinished job", "No job found")


@dataclass(frozen=True, slots=True)
class DriverJob:
    """A submitted job that runs the driver of an export."""

    # Id of the job.
    job: str
    # Name of the batch system.
    system: str
    # Path of the job script.
    script: str
    # Folder of the job's output, if the cluster file names one.
    logs: str | None


def is_job_queue(cluster_class: type) -> bool:
    """Return True if a class submits jobs to a batch system, as the classes of dask-jobqueue do."""
    return any(base.__name__ == "JobQueueCluster" for base in getattr(cluster_class, "__mro__", ()))


def system_of(cluster_class: Any) -> str:
    """Return dask-jobqueue's name for the batch system of a cluster class: ``"slurm"``."""
    return str(cluster_class.job_cls.default_config_name())


def is_listed(system: str, job_id: str) -> bool | None:
    """Return True if a job is queued or running; None if the batch system gives no answer."""
    jobs = asyncio.run(listed_jobs(system))
    return None if jobs is None else not jobs.get(job_number(job_id), True)


async def listed_jobs(system: str) -> dict[str, bool] | None:
    """Return this user's listed jobs by number, with True for those that ended; None if there is no answer."""
    command = LIST.get(system)
    if command is None:
        return None
    try:
        # By user id: with the name of another user, which the environment may have, all jobs would seem to have ended.
        words = command.format(user=pwd.getpwuid(os.getuid()).pw_name).split()
        process = await asyncio.to_thread(
            subprocess.run, words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIST_S
        )
    except (OSError, KeyError, subprocess.TimeoutExpired):
        return None
    if process.returncode:
        return {} if any(text in process.stdout + process.stderr for text in NO_JOBS) else None
    lines = [line.replace("/", " ").split() for line in process.stdout.splitlines() if line.strip()]
    return {job_number(number): not ENDED_STATES.isdisjoint(states) for number, *states in lines}


def job_number(job_id: str) -> str:
    """Return the part of a job id that all commands of a batch system print: PBS appends ``.server``."""
    return job_id.partition(".")[0]


def submitted_ids(cluster: Cluster) -> list[str]:
    """Return the ids of the jobs that a cluster of a batch system has submitted."""
    return [str(job.job_id) for job in cluster.workers.values() if getattr(job, "job_id", None)]


def job_details(cluster: Cluster) -> str:
    """Return the state, last log lines and script of a cluster's jobs; "" without a batch system."""
    if not is_job_queue(type(cluster)):
        return ""
    ids = submitted_ids(cluster)
    parts = [
        describe_jobs(system_of(type(cluster)), ids),
        end_of_log(getattr(cluster._dummy_job, "log_directory", None), ids),
        "The job script:\n" + _indented(cluster.job_script().splitlines()),
    ]
    return "\n".join(part for part in parts if part)


def describe_jobs(system: str, ids: Sequence[str]) -> str:
    """Return what a batch system's own commands print about jobs."""
    if not ids:
        return "No job was submitted."
    shown = ids[:JOBS_SHOWN]
    for words in DESCRIBE.get(system, ()):
        command = [word.format(ids=",".join(shown), id=shown[0]) for word in words]
        if shutil.which(command[0]) is None:
            continue
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=DESCRIBE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(command)}: {error}"
        lines = (process.stdout + process.stderr).strip().splitlines()
        # A table with only its header means that the jobs have ended.
        if len(lines) > 1 or (lines and not words[1].startswith("--format")):
            return f"{' '.join(command)} prints:\n{_indented(lines[:ANSWER_LINES])}"
    return f"The batch system has no information about the jobs {', '.join(shown)}."


def end_of_log(folder: Any, ids: Sequence[str]) -> str:
    """Return the last lines of the newest log of one of the jobs; "" if there is none."""
    if not folder or not ids or not Path(folder).is_dir():
        return ""
    numbers = "|".join(re.escape(job_number(job_id)) for job_id in ids)
    pattern = re.compile(rf"(?<!\d)({numbers})(?!\d)")
    # Scripts of `imagery-dask submit` are in the same folder.
    files = [file for file in Path(folder).iterdir() if file.is_file() and file.suffix != ".sh"]
    logs = [file for file in files if pattern.search(file.name)]
    for log in sorted(logs, key=lambda file: file.stat().st_mtime, reverse=True):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return f"The end of {log}:\n{_indented(lines[-LOG_LINES:])}"
    return ""


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
