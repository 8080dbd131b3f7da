"""Starts processes that have imported everything, which takes seconds: it forks them, and says how they ended.

One line of JSON on stdin is answered by one on stdout: ``{"start": {...}}`` with a process id, ``{"poll": PID}`` with
an exit code (negative for a signal) or null.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import dask
import distributed.cli.dask_scheduler
import distributed.cli.dask_worker  # noqa: F401
import zarrs  # noqa: F401

import imagery_dask
from imagery_dask.cli import cmd_export, cmd_plan, cmd_status, cmd_submit, cmd_verify  # noqa: F401
from imagery_dask.cluster.worker_plugin import prepare_workers  # noqa: F401
from imagery_dask.export import registry, verify  # noqa: F401
from imagery_dask.export.planning import estimate  # noqa: F401
from imagery_dask.run.block import run_batch  # noqa: F401
from imagery_dask.sources.precomputed import PrecomputedVolume  # noqa: F401

# Names that are imported when they are first used: here, rather than in each process.
NAMES = [getattr(imagery_dask, name) for name in imagery_dask.__all__]


def start(code: str, arguments: list[str], environment: dict[str, str], said: str) -> int:
    """Fork a process that runs some code."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    with open(os.devnull) as nothing, open(said, "ab") as out:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    dask.config.refresh()
    sys.argv = ["-c", *arguments]
    status: Any = 0
    try:
        exec(compile(code, "<driver>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # As an interpreter ends: with what is registered for it, among it the clusters that were started.
    sys.exit(status)


def main() -> None:
    """Answer until the input ends."""
    ended: dict[int, int] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            answer: Any = start(**asked["start"])
        else:
            process = asked["poll"]
            if process not in ended:
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    ended[process] = os.waitstatus_to_exitcode(status)
            answer = ended.get(process)
        print(json.dumps(answer), flush=True)  # noqa: T201


main()
