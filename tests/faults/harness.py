"""Run exports whose driver, scheduler and workers are processes that a test can kill, and compare their files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from integration.stores import files_of
from support.ports import free_port
from support.streams import without_dashboard
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

from imagery_dask.records.receipts import RECEIPT
from imagery_dask.records.runs import Records
from imagery_dask.storage.atomic_files import Files

ROOT = Path(__file__).resolve().parents[2]
# Split small volumes into many blocks, and build each level from the level above, as for large volumes.
SMALL = """
from imagery_dask.config import config
config.set({"export.small_fused_bytes": 2**17, "export.fused_blocks_at_least": 64})
config.set({"export.small_block_bytes": 2**17, "export.blocks_per_thread": 32})
"""
MAIN = "from imagery_dask.cli.main import main; main()"
CLI = SMALL + MAIN
# Kills this process before the n-th change of a name, n being the first argument: files appear by renames and links,
# and are removed.
KILLED_AT_CHANGE = (
    SMALL
    + """
import os, signal, sys, threading
config.set({"lease.look_again_s": 0.01})
left, lock = int(sys.argv.pop(1)), threading.Lock()
def counted(change):
    def count(*arguments, **options):
        global left
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **options)
    return count
for name in ("rename", "replace", "link", "remove", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
"""
)
SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
WORKER = "from distributed.cli.dask_worker import main; main()"
SEEDS = int(os.environ.get("IMAGERY_DASK_FAULT_SEEDS", "2"))
SHAPE = (128, 128, 64)
# Timeout of a client that connects to a scheduler that does not run.
CONNECT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
# Slow cases that show little more run only when many seeds are requested.
MANY = SEEDS > 2
# Upper bound for noticing that a scheduler was killed.
BOUND_S = 60.0


def write_sources(folder: Path) -> None:
    """Write imagery and segmentation of 64 storage chunks each, and delete a few of the chunks."""
    write_volume(folder / "image", coordinate_volume(SHAPE, dtype=np.uint8), compress=False)
    write_volume(folder / "ids", random_labels(SHAPE, n=60), layer_type="segmentation", compress=False)
    delete_chunks(f"precomputed://file://{folder}/image", 0, lambda start: start in ((0, 32, 16), (96, 64, 0)))
    delete_chunks(f"precomputed://file://{folder}/ids", 0, lambda start: start == (32, 64, 48))


def export_arguments(kind: str, out: Path, url: str, *options: Any) -> list[str]:
    """Return the command line of an export of both layers in about a hundred blocks, or of their overlay."""
    region = ["--bounds", 0, 0, 0, *SHAPE, "--image-source", f"precomputed://{url}/image"]
    region += ["--segmentation-source", f"precomputed://{url}/ids"]
    blocks = ["--chunks", "16,16,16", "--block-mib", 0.03]
    format_options = {
        "zarr": [*blocks, "--levels", 4, "--shards", "none"],
        "shards": [*blocks, "--levels", 2, "--shards", "32,32,16"],
        "precomputed": [*blocks, "--levels", 2],
        "png": ["--what", "overlay", "--tile", 32],
    }[kind]
    name = "zarr" if kind == "shards" else kind
    return list(map(str, ["export", name, out, *region, *format_options, *options]))


# ------------------------------------------------------------------------------------------------------- processes


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process that can import the package and the tests."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return (
        {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
        | CONNECT
        | variables
    )


class Zygote:
    """Start processes by forking one that has imported everything."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment(), text=True, start_new_session=True,
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(json.dumps(request) + "\n")
        self._popen.stdin.flush()
        return json.loads(self._popen.stdout.readline())

    def end(self) -> None:
        self._popen.kill()
        self._popen.communicate()


@cache
def zygote() -> Zygote:
    """Return the zygote of this session; `tests/faults/conftest.py` ends it."""
    return Zygote()


class Process:
    """A Python process that writes its output to a log file.

    Parameters
    ----------
    code, arguments
        Code that the process runs, and its `sys.argv`.
    log : Path
        File for stdout and stderr.
    prefix : sequence of str
        Command that starts the process, such as one that enters a network namespace.
    **variables : str
        Additional environment variables.
    """

    def __init__(
        self, code: str, arguments: Sequence[Any], log: Path, prefix: Sequence[str] = (), **variables: str
    ) -> None:
        self._log, self._popen = log, None
        words = list(map(str, arguments))
        if prefix:
            with log.open("ab") as file:
                self._popen = subprocess.Popen(
                    [*prefix, sys.executable, "-c", code, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    env=environment(**variables), start_new_session=True,
                )  # fmt: skip
            self.pid = self._popen.pid
        else:
            start = {"code": code, "arguments": words, "environment": environment(**variables), "log": str(log)}
            self.pid = int(zygote().ask(start=start))
        self._children: list[psutil.Process] = []

    @property
    def code(self) -> int | None:
        """Exit code; None while the process runs."""
        status = zygote().ask(poll=self.pid) if self._popen is None else self._popen.poll()
        return None if status is None else int(status)

    @property
    def output(self) -> str:
        """What the process has written so far, without the line that names the dashboard."""
        return without_dashboard(self._log.read_text()) if self._log.exists() else ""

    def send(self, number: int) -> None:
        """Send a signal to the process, and not to its children."""
        if self.code is None:
            with suppress(psutil.NoSuchProcess):
                self._children += psutil.Process(self.pid).children(recursive=True)
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float = 120) -> int:
        wait_for(lambda: self.code is not None, timeout)
        assert (code := self.code) is not None
        return code

    def end(self) -> None:
        """Kill the process and those of its children that outlived it."""
        self.kill()
        for child in self._children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def driver(arguments: Sequence[str], log: Path, code: str = CLI, prefix: Sequence[str] = ()) -> Process:
    """Start the command line in a process of its own."""
    return Process(code, arguments, log, prefix)


def run_killed(words: Sequence[Any], kill_at: int, log: Path, code: str = KILLED_AT_CHANGE + MAIN) -> int:
    """Run the command line, killed before its n-th change of a file; return its exit code: 0, or that of the kill."""
    process = Process(code, [kill_at, *words], log)
    try:
        status = process.wait()
    finally:
        process.end()
    assert status in (0, -signal.SIGKILL), process.output
    return status


@dataclass
class Cluster:
    """A scheduler and workers without nannies, as processes that `ensure` restarts when they have died."""

    folder: Path
    workers: int = 2
    host: str = "127.0.0.1"
    variables: Mapping[str, str] = field(default_factory=dict)
    worker: str = WORKER
    # Command that starts each of the first workers in another network namespace.
    prefixes: Sequence[Sequence[str]] = ()
    running: dict[str, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.port = free_port(self.host)
        self.address = f"tcp://{self.host}:{self.port}"

    def ensure(self) -> None:
        """Start each process that does not run."""
        common = ["--no-dashboard"]
        self._start("scheduler", SCHEDULER, ["--host", self.host, "--port", self.port, *common])
        for number in range(self.workers):
            prefix = self.prefixes[number] if number < len(self.prefixes) else ()
            folder = self.folder / f"worker{number}"
            options = ["--no-nanny", "--nthreads", 1, "--memory-limit", "1GiB", "--local-directory", folder, *common]
            self._start(f"worker{number}", self.worker, [self.address, *options], prefix)

    def _start(self, name: str, code: str, arguments: Sequence[Any], prefix: Sequence[str] = ()) -> None:
        if name not in self.running or self.running[name].code is not None:
            self.running[name] = Process(code, arguments, self.folder / f"{name}.log", prefix, **self.variables)

    def kill(self, name: str) -> None:
        """Kill a process; when the scheduler is killed, also wait for the workers, which then exit."""
        self.running[name].kill()
        if name == "scheduler":
            for other in self.running.values():
                with suppress(AssertionError):
                    other.wait(10)
                other.end()

    def end(self) -> None:
        for process in self.running.values():
            process.end()


@contextmanager
def cluster(folder: Path, **options: Any) -> Iterator[Cluster]:
    """Run a cluster until the `with` block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    started = Cluster(folder, **options)
    try:
        started.ensure()
        yield started
    finally:
        started.end()


def wait_for(condition: Callable[[], Any], timeout: float = 60, every: float = 0.01) -> Any:
    """Wait until a condition is true, and return its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition was not met within {timeout} s"
        time.sleep(every)
    return value


# ------------------------------------------------------------------------------------------------ files of exports


def records_of(folder: Path) -> Path:
    """Return the folder with the records of the only export in a folder."""
    (records,) = folder.glob("*.receipts")
    return records


def receipts_so_far(folder: Path) -> int:
    """Count the receipts of the export in a folder by the sizes of files, while processes write them."""
    total = 0
    for file in folder.glob("*.receipts/*/receipts-*.bin"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size // RECEIPT.itemsize
    return total


def comparable_files(folder: Path) -> dict[str, bytes]:
    """Return the files of an export, without dates and without the records of its run.

    Half-written files, a lease and stores that were to replace another are included, so an export that left any of
    them differs from one that finished undisturbed.
    """
    dates = re.compile(rb'"date": "[^"]*"')
    run = re.compile(r"\.receipts/(?:[0-9a-f]{8}/[^.]|config\.yaml$)")
    files = {name: dates.sub(b"", content) for name, content in files_of(folder).items() if not run.search(name)}
    # Include folders, since a scratch folder may be empty.
    return files | {str(path.relative_to(folder)): b"" for path in folder.rglob("*partial*") if path.is_dir()}


def check_receipts(folder: Path) -> None:
    """Check that one run is left, that it is finished, and that each block has its receipt."""
    records = records_of(folder)
    (run,) = [path.name for path in records.iterdir() if path.is_dir()]
    blocks = Records(Files.at(records), run).receipts()["block"]
    plan = Records(Files.at(records), run).get("plan.json")
    assert plan["finished"] is not None
    np.testing.assert_array_equal(blocks, np.arange(len(blocks)))
    assert len(blocks) > 50


def assert_same(files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Compare files by name and content; a failure shows names only, not megabytes of content."""
    assert sorted(files) == sorted(expected), sorted(files.keys() ^ expected.keys())
    assert [name for name in expected if files[name] != expected[name]] == []
