"""Import everything once, which takes seconds, then fork processes on request and report their exit codes.

Each line of JSON on stdin is answered by one on stdout: ``{"start": {...}}`` by a process id, ``{"poll": PID}`` by an
exit code (negative for a signal) or null.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

import dask
import distributed.cli.dask_scheduler
import distributed.cli.dask_worker  # noqa: F401
import requests  # noqa: F401
import zarrs  # noqa: F401

import imagery_dask
from imagery_dask.cli import cmd_export, cmd_plan, cmd_status, cmd_submit, cmd_verify  # noqa: F401
from imagery_dask.cluster.worker_plugin import prepare_workers  # noqa: F401
from imagery_dask.export import registry, verify  # noqa: F401
from imagery_dask.export.planning import estimate  # noqa: F401
from imagery_dask.run.block import run_batch  # noqa: F401
from imagery_dask.sources.precomputed.precomputed_volume import PrecomputedVolume  # noqa: F401

# Resolve the lazy imports once here rather than in each forked process.
NAMES = [getattr(imagery_dask, name) for name in imagery_dask.__all__]


def start(code: str, arguments: list[str], environment: dict[str, str], log: str) -> int:
    """Fork a process that runs code; return its id."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    with open(os.devnull) as nothing, open(log, "ab") as out:
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
    # Exit as an interpreter does, which runs the exit handlers, among them those that close clusters.
    sys.exit(status)


def main() -> None:
    """Answer requests until stdin is closed."""
    # Garbage collections, at the latest those at exit, would copy the memory that a forked process shares.
    gc.freeze()
    exit_codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer: Any = start(**request["start"])
        else:
            pid = request["poll"]
            if pid not in exit_codes:
                ended_pid, status = os.waitpid(pid, os.WNOHANG)
                if ended_pid:
                    exit_codes[pid] = os.waitstatus_to_exitcode(status)
            answer = exit_codes.get(pid)
        print(json.dumps(answer), flush=True)  # noqa: T201


main()
