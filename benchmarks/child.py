"""A process that runs programs: it reads one job a line (JSON) and answers each with a line.

A job names a function of this package and its arguments. Modules of the job are imported, and with `waits` a line is
exchanged, before the clock starts: those that the function's own module imports, and those of `preload`, which an
earlier process imported during its work. A function returns an array, or nothing, or a dict with any of `value` (an
array), `counts`, `figures`, and `wall_s` and `cpu_s` of the part of its work that counts.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stopwatch:
    """Times of this process and of those that it started, from now on; reading them is not on their account."""

    def __init__(self) -> None:
        self._living = _living_s()
        self._own, self._started = _own_s(), time.perf_counter()

    def times(self) -> dict[str, float]:
        """Return seconds and CPU seconds."""
        wall, own = time.perf_counter() - self._started, _own_s() - self._own
        return {"wall_s": wall, "cpu_s": own + _living_s() - self._living}


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Do what counts of a program's work; return its times, which take the place of those of the whole."""
    watch = Stopwatch()
    work()
    return watch.times()


def _own_s() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _living_s() -> float:
    """Return the CPU seconds of the processes below this one, which Linux lists: pools keep theirs."""
    ticks, parents = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()  # from the third on: the state
            parents[int(file.parent.name)] = int(fields[1])
            ticks[int(file.parent.name)] = sum(map(int, fields[11:15]))
    found, seconds = {os.getpid()}, 0.0
    while found:
        found = {pid for pid, parent in parents.items() if parent in found}
        seconds += sum(ticks[pid] for pid in found) / os.sysconf("SC_CLK_TCK")
    return seconds


def run(job: dict[str, Any], ready: Callable[[], None]) -> dict[str, Any]:
    """Run a job, after a call of `ready`; return its times, what the function returned, and the digest of an array."""
    module, _, name = job["call"].partition(":")
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    for imported in job.get("preload", ()):
        with contextlib.suppress(Exception):
            importlib.import_module(imported)
    ready()
    before = set(sys.modules)
    watch = Stopwatch()
    result = function(**job["arguments"])
    answer: dict[str, Any] = dict(watch.times())
    answer["imported"] = [name for name in sys.modules if name not in before and not name.startswith("_")]
    if not isinstance(result, dict):
        result = {} if result is None else {"value": result}
    if job.get("check") and "value" in result:
        answer["digest"] = digest(result["value"])
    return answer | {key: value for key, value in result.items() if key != "value"}


def digest(array: Any) -> str:
    """Return a hash of an array's shape and voxels, whatever their order in memory; of integers, signed or not."""
    import hashlib

    import numpy as np

    array = np.ascontiguousarray(array)
    return hashlib.sha1(repr((array.shape, array.itemsize)).encode() + array.tobytes()).hexdigest()


def main() -> None:
    """Answer jobs until the input ends."""
    # Programs, and processes that they start, print to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)

        def ready(waits: bool = job.get("waits", False)) -> None:
            if waits:
                print("ready", file=answers, flush=True)
                sys.stdin.readline()

        print(json.dumps(run(job, ready)), file=answers, flush=True)


if __name__ == "__main__":
    main()
