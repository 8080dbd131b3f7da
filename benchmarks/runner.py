"""Measurements of rows: programs in turn, results compared before their time counts, each process seen from outside."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import data, servers
from benchmarks.environments import python_of
from benchmarks.rows import Row

ROOT = Path(__file__).parents[1]
# More bytes than most programs use; see `touch_memory`.
TOUCHED = 2**30

Counts = dict[str, Any]
Seen = dict[str, Any]


class Failed(Exception):
    """A program failed, its result differs from another's, or a count exceeds its limit."""


class Child:
    """A process that runs jobs, and what it used with all processes that it started and waited for."""

    def __init__(self, python: Path, log: Path) -> None:
        self._log = log
        self._started = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
            )  # fmt: skip

    def answer(self, job: dict[str, Any]) -> Seen:
        """Run a job; if it waits until it is about to begin, touch memory then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer and job.get("waits"):
            touch_memory()
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            self.end()
            raise Failed(f"{job['call']} {job['arguments']} failed:\n{self._log.read_text()[-3000:]}")
        return dict(json.loads(answer))

    def end(self) -> Seen:
        """End the process; return seconds and CPU seconds from its start, and the memory of its largest process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return {
            "process_wall_s": time.perf_counter() - self._started,
            "process_cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_mib": usage.ru_maxrss / 1024,
        }


@dataclass
class Runner:
    """Measures rows; keeps data, environments and outputs in the folder `cache`.

    Without repeats, only results and counts are checked, in one process for each environment that exists.
    """

    cache: Path
    small: bool
    repeats: int
    children: dict[Path, Child] = field(default_factory=dict)
    servers: dict[tuple[str, float, str], servers.Served] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def measure(self, row: Row) -> dict[str, Any]:
        """Return what the programs of a row did, by name: runs, counts, and notes on results that may differ."""
        folder, facts = self._data(row.data)
        given = {**facts["given"], **row.options, **(row.small if self.small else {})}
        known: dict[str, dict[str, Any]] = {}
        url, counts = self._served(row, folder)
        with tempfile.TemporaryDirectory(dir=self.cache) as temporary:
            outs = Path(temporary)
            runs: dict[str, Callable[[bool], Seen]] = {}
            for program in row.programs:
                python = python_of(program.environment, self.cache, create=self.repeats > 0)
                if python is not None:
                    source = url if url and not program.data else self._local(program.data or row.data)
                    job = {"call": program.call, "arguments": {"source": source, **given, **program.options}}
                    if row.output:
                        job["arguments"]["out"] = str(outs.resolve() / program.name)
                    runs[program.name] = self._run_of(python, job, counts)
            for name, run in runs.items():
                known[name] = {"runs": [], "counts": {}, "notes": [], **run(True)}
            self._compare(row, known, outs)
            for turn in range(min(self.repeats, row.repeats or self.repeats)):
                for name in list(runs) if turn % 2 else reversed(runs):
                    shutil.rmtree(outs / name, ignore_errors=True)
                    if row.output:
                        os.sync()  # what earlier runs wrote is not on the account of this one
                    known[name]["runs"].append(runs[name](False))
        return {name: _summary(program) for name, program in known.items()}

    def check_counts(self, row: Row, programs: dict[str, Any]) -> None:
        """Raise if a count of the first program, which is ours, exceeds its limit."""
        facts = self._data(row.data)[1]
        ours = programs[row.programs[0].name]["counts"]
        for name, limit_of in row.limits.items():
            if ours[name] > limit_of(facts):
                raise Failed(f"{row.name}: {name} is {ours[name]:,}; at most {limit_of(facts):,} is right")

    def close(self) -> None:
        """End the servers, and the processes that are shared."""
        self.stack.close()
        for child in self.children.values():
            child.end()

    def _data(self, name: str) -> tuple[Path, dict[str, Any]]:
        """Return the folder of a data set, and what is known of it; make it if it does not exist."""
        folder = data.folder_of(name, self.cache, self.small)
        if not (folder / "data.json").exists():
            arguments = {"name": name, "folder": str(folder), "small": self.small}
            self._answer(Path(sys.executable), {"call": "data:make", "arguments": arguments})
        return folder, json.loads((folder / "data.json").read_text())

    def _answer(self, python: Path, job: dict[str, Any]) -> Seen:
        """Run a job in a process of its own; without repeats, in that of the environment."""
        child = self.children.pop(python, None) or Child(python, self.cache / f"{python.parents[1].name}.log")
        seen = child.answer(job)
        if self.repeats:
            return seen | child.end()
        self.children[python] = child  # unless it has failed
        return seen

    def _local(self, name: str) -> str:
        return f"file://{self._data(name)[0]}"

    def _served(self, row: Row, folder: Path) -> tuple[str | None, Callable[[], Counts]]:
        """Return the URL of the row's data, and a function that returns the counts since its last call."""
        if row.server is None:
            return None, dict
        # A server of a segmentation has one data set; the others have all of them.
        key = (row.server, row.latency_s, row.data if row.server == "cave" else "")
        if key not in self.servers:
            server = {
                "nginx": lambda: servers.nginx(folder.parent, self.cache / "nginx"),
                "slow": lambda: servers.slow(folder.parent, row.latency_s),
                "cave": lambda: servers.cave(folder),
                "bucket": servers.bucket,
            }[row.server]()
            self.servers[key] = self.stack.enter_context(server)
        url, counts = self.servers[key]
        return url if row.server == "cave" else f"{url}/{folder.name}", counts

    def _run_of(self, python: Path, job: dict[str, Any], counts: Callable[[], Counts]) -> Callable[[bool], Seen]:
        """Return a function that runs a job once; the argument says whether its result is hashed."""
        remote = not job["arguments"]["source"].startswith("file:")
        preload: list[str] = []

        def run(check: bool) -> Seen:
            counts()
            seen = self._answer(python, job | {"check": check, "preload": preload, "waits": not check})
            preload.extend(seen["imported"])
            served = counts() if remote else {}
            return seen | {"counts": {**served, **seen.get("counts", {})}}

        return run

    def _compare(self, row: Row, known: dict[str, dict[str, Any]], outs: Path) -> None:
        """Raise if results differ, where they must not; note differences of coarser levels."""
        digests = {name: program["digest"] for name, program in known.items() if "digest" in program}
        if len(set(digests.values())) > 1:
            raise Failed(f"{row.name}: results differ: {digests}")
        if not row.output:
            return
        arguments = {"outs": {name: str(outs / name) for name in known}, "form": row.output}
        unlike = self._answer(Path(sys.executable), {"call": "programs.compare:outputs", "arguments": arguments})[
            "figures"
        ]
        for name, levels in unlike.items():
            if levels[0][0]:
                raise Failed(f"{row.name}: the result of {name} differs in {levels[0][0]:.2%} of voxels")
            known[name]["notes"] += [
                f"level {level}: {share:.1%} of voxels differ" + (f" by at most {most}" if most < 256 else "")
                for level, (share, most) in enumerate(levels)
                if share
            ]


def touch_memory() -> None:
    """Write into memory and free it.

    A virtual machine gives memory that is free for two seconds back to its host, and the program that touches it next
    pays for it: 1.5 seconds of CPU a GiB were measured. Which programs do depends on their order, and on how long their
    imports take.
    """
    # In huge pages, which numpy asks for: small ones that are freed are not those that large arrays get.
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({TOUCHED}, 'u1')"], check=True)


def _summary(program: dict[str, Any]) -> dict[str, Any]:
    """Return the largest counts, the median figures, the notes, and the times of the runs."""
    every = [program, *program["runs"]]
    figures = [run.get("figures", {}) for run in program["runs"]] or [program.get("figures", {})]
    times = ("wall_s", "cpu_s", "process_wall_s", "process_cpu_s", "peak_mib")
    return {
        "counts": {name: max(run["counts"][name] for run in every) for name in program["counts"]},
        "figures": {name: statistics.median(run[name] for run in figures) for name in figures[0]},
        "notes": program["notes"],
        "runs": [{name: run[name] for name in times} for run in program["runs"]],
    }
