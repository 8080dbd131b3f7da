"""What to say when no worker comes: the job's script, and what the batch system and the job's log say themselves."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import Client

from imagery_dask.cluster.classes import is_job_queue, system_of
from imagery_dask.cluster.replacing import ToppingUp

__all__ = ["job_words", "said_of_jobs", "wait_for_worker"]

COMMAND_S = 10
# How often is looked whether there is still hope for a worker.
LOOK_S = 1.0
# When it is said that there is none yet, the first time and from then on.
SAY_S = (30.0, 300.0)
LOG_LINES = 15
ANSWER_LINES = 20
JOBS_SHOWN = 3
# What each batch system says about jobs, by dask-jobqueue's name for it; the first that says something counts.
QUESTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "slurm": (("squeue", "--format=%i %P %T %R", "--jobs={ids}"), ("scontrol", "show", "job", "{id}")),
    "pbs": (("qstat", "-f", "{id}"),),
    "lsf": (("bjobs", "-p", "{id}"), ("bjobs", "-l", "{id}")),
    "sge": (("qstat", "-j", "{id}"),),
    "oar": (("oarstat", "-f", "-j", "{id}"),),
    "moab": (("checkjob", "{id}"),),
    "htcondor": (("condor_q", "-better-analyze", "{id}"),),
}

_logger = logging.getLogger(__name__)


def wait_for_worker(client: Client, cluster: Any, wait_s: float, topping_up: ToppingUp | None = None) -> None:
    """Wait for the first worker.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    cluster : object
        The cluster that was started, or what was joined.
    wait_s : float
        Seconds.
    topping_up : ToppingUp, optional
        Who starts new workers for those that ended: when it gives up, nothing is waited for any longer.

    Raises
    ------
    TimeoutError
        No worker came; with the job script and the batch system's words where there are such.
    """
    started = time.monotonic()
    deadline, say_at = started + wait_s, started + SAY_S[0]
    while True:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=max(0.01, min(LOOK_S, deadline - time.monotonic())))
            return
        hopeless, now = topping_up is not None and topping_up.hopeless, time.monotonic()
        if not (hopeless or now > deadline):
            if now > say_at:
                say_at = now + SAY_S[1]
                said = f"\n{_said_of(cluster, _ids(cluster))}" if is_job_queue(type(cluster)) else ""
                _logger.warning("No worker yet, after %.0f s of %.0f (--wait).%s", now - started, wait_s, said)
            continue
        words = job_words(cluster)
        where = words or (
            "Start workers (dask worker ADDRESS), or look at the batch system's queue and at the logs of those that "
            "were started."
        )
        when = (
            ": each time, all of them ended before they connected" if hopeless else f" within {wait_s:.3g} s (--wait)"
        )
        raise TimeoutError(f"No worker came{when}.{chr(10) if words else ' '}{where}")


def job_words(cluster: Any) -> str:
    """Script, state and log of the jobs of a cluster; empty for clusters without a batch system."""
    if not is_job_queue(type(cluster)):
        return ""
    ids = _ids(cluster)
    parts = [_said_of(cluster, ids), _log(getattr(cluster._dummy_job, "log_directory", None), ids)]
    parts.append("The script of each job:\n" + _indented(cluster.job_script().splitlines()))
    return "\n".join(part for part in parts if part)


def _ids(cluster: Any) -> list[str]:
    return [str(job.job_id) for job in cluster.workers.values() if getattr(job, "job_id", None)]


def _said_of(cluster: Any, ids: Sequence[str]) -> str:
    return said_of_jobs(system_of(type(cluster)), ids) if ids else "No job was submitted."


def said_of_jobs(system: str, ids: Sequence[str]) -> str:
    """Say what a batch system says of jobs."""
    shown = ids[:JOBS_SHOWN]
    for question in QUESTIONS.get(system, ()):
        command = [word.format(ids=",".join(shown), id=shown[0]) for word in question]
        if shutil.which(command[0]) is None:
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(command)}: {error}"
        lines = (done.stdout + done.stderr).strip().splitlines()
        # A table with nothing but its head says that the jobs have ended.
        if len(lines) > 1 or (lines and not question[1].startswith("--format")):
            return f"{' '.join(command)} says:\n{_indented(lines[:ANSWER_LINES])}"
    return f"The batch system says nothing about the jobs {', '.join(shown)}."


def _log(folder: Any, ids: Sequence[str]) -> str:
    """Last lines of the newest log of a job."""
    if not folder or not ids or not Path(folder).is_dir():
        return ""
    numbers = [each.partition(".")[0] for each in ids]  # PBS: 123.server
    of_them = re.compile(rf"(?<!\d)({'|'.join(map(re.escape, numbers))})(?!\d)")
    # Scripts of `imagery-dask submit` lie there, too.
    found = [file for file in Path(folder).iterdir() if file.is_file() and file.suffix != ".sh"]
    logs = [file for file in found if of_them.search(file.name)]
    for log in sorted(logs, key=lambda file: file.stat().st_mtime, reverse=True):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return f"The end of {log}:\n{_indented(lines[-LOG_LINES:])}"
    return ""


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
