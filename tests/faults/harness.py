"""Exports in processes that can be killed: drivers, schedulers and workers, each of its own, and what they leave."""

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

from imagery_dask.records.journal import Records
from imagery_dask.records.receipts import RECEIPT
from imagery_dask.storage.files import Files

ROOT = Path(__file__).resolve().parents[2]
# Small volumes in many blocks, and levels that are made of the level above: as in large ones.
SMALL = """
from imagery_dask.config import config
config.set({"export.small_fused_bytes": 2**17, "export.fused_blocks_at_least": 64})
config.set({"export.small_block_bytes": 2**17, "export.blocks_per_thread": 32})
"""
CLI = SMALL + "from imagery_dask.cli.main import main; main()"
SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
WORKER = "from distributed.cli.dask_worker import main; main()"
SEEDS = int(os.environ.get("IMAGERY_DASK_FAULT_SEEDS", "2"))
SHAPE = (128, 128, 64)
# How long a client tries to reach a scheduler that is not there.
CONNECT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
# What takes longer and shows little more is for those who ask for many.
MANY = SEEDS > 2
# A scheduler that is killed is noticed long before this.
BOUND_S = 60.0


def write_sources(folder: Path) -> None:
    """Imagery and segmentation of 64 storage chunks each, of which a few are not there."""
    write_volume(folder / "image", coordinate_volume(SHAPE, dtype=np.uint8), compress=False)
    write_volume(folder / "ids", random_labels(SHAPE, n=60), layer_type="segmentation", compress=False)
    delete_chunks(f"precomputed://file://{folder}/image", 0, lambda start: start in ((0, 32, 16), (96, 64, 0)))
    delete_chunks(f"precomputed://file://{folder}/ids", 0, lambda start: start == (32, 64, 48))


def export(kind: str, out: Path, url: str, *more: Any) -> list[str]:
    """Arguments of an export of both layers in about a hundred blocks, or of their overlay."""
    region = ["--bounds", 0, 0, 0, *SHAPE, "--image-source", f"precomputed://{url}/image"]
    region += ["--segmentation-source", f"precomputed://{url}/ids"]
    blocks = ["--chunks", "16,16,16", "--block-mib", 0.03]
    of_kind = {
        "zarr": [*blocks, "--levels", 4, "--shards", "none"],
        "shards": [*blocks, "--levels", 2, "--shards", "32,32,16"],
        "precomputed": [*blocks, "--levels", 2],
        "png": ["--what", "overlay", "--tile", 32],
    }[kind]
    name = "zarr" if kind == "shards" else kind
    return list(map(str, ["export", name, out, *region, *of_kind, *more]))


# ------------------------------------------------------------------------------------------------------- processes


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return (
        {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
        | CONNECT
        | more
    )


class Zygote:
    """Starts processes from one that has imported everything."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment(), text=True, start_new_session=True,
        )  # fmt: skip

    def ask(self, **what: Any) -> Any:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(json.dumps(what) + "\n")
        self._popen.stdin.flush()
        return json.loads(self._popen.stdout.readline())

    def end(self) -> None:
        self._popen.kill()
        self._popen.communicate()


@cache
def zygote() -> Zygote:
    """Give the one of this session; `tests/faults/conftest.py` ends it."""
    return Zygote()


class Process:
    """A process of Python that writes what it says to a file, and is ended with the test.

    Parameters
    ----------
    code, arguments
        What it runs.
    said : Path
        What it says.
    prefix : sequence of str
        Command that starts it, such as one that puts it into another network.
    **more : str
        Of its environment.
    """

    def __init__(
        self, code: str, arguments: Sequence[Any], said: Path, prefix: Sequence[str] = (), **more: str
    ) -> None:
        self._said, self._popen = said, None
        given = list(map(str, arguments))
        if prefix:
            with said.open("ab") as file:
                self._popen = subprocess.Popen(
                    [*prefix, sys.executable, "-c", code, *given], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    env=environment(**more), start_new_session=True,
                )  # fmt: skip
            self.pid = self._popen.pid
        else:
            start = {"code": code, "arguments": given, "environment": environment(**more), "said": str(said)}
            self.pid = int(zygote().ask(start=start))
        self._children: list[psutil.Process] = []

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        found = zygote().ask(poll=self.pid) if self._popen is None else self._popen.poll()
        return None if found is None else int(found)

    @property
    def said(self) -> str:
        return without_dashboard(self._said.read_text()) if self._said.exists() else ""

    def send(self, number: int) -> None:
        """Send a signal to it, and to nothing that it started."""
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
        """End it, and the processes that it started and that outlived it."""
        self.kill()
        for child in self._children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def driver(arguments: Sequence[str], said: Path, code: str = CLI, prefix: Sequence[str] = ()) -> Process:
    """Start the command line in a process of its own."""
    return Process(code, arguments, said, prefix)


@dataclass
class Cluster:
    """A scheduler and workers without nannies, each a process that is started again when it is dead."""

    folder: Path
    workers: int = 2
    host: str = "127.0.0.1"
    more: Mapping[str, str] = field(default_factory=dict)
    worker: str = WORKER
    # Before the command of each worker: in which network it is.
    prefixes: Sequence[Sequence[str]] = ()
    running: dict[str, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.port = free_port(self.host)
        self.address = f"tcp://{self.host}:{self.port}"

    def ensure(self) -> None:
        """Start what is not running."""
        common = ["--no-dashboard"]
        self._start("scheduler", SCHEDULER, ["--host", self.host, "--port", self.port, *common])
        for number in range(self.workers):
            prefix = self.prefixes[number] if number < len(self.prefixes) else ()
            folder = self.folder / f"worker{number}"
            options = ["--no-nanny", "--nthreads", 1, "--memory-limit", "1GiB", "--local-directory", folder, *common]
            self._start(f"worker{number}", self.worker, [self.address, *options], prefix)

    def _start(self, name: str, code: str, arguments: Sequence[Any], prefix: Sequence[str] = ()) -> None:
        if name not in self.running or self.running[name].code is not None:
            self.running[name] = Process(code, arguments, self.folder / f"{name}.log", prefix, **self.more)

    def kill(self, name: str) -> None:
        """Kill a process; workers end by themselves when their scheduler does."""
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
    """Run a cluster while the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Cluster(folder, **options)
    try:
        made.ensure()
        yield made
    finally:
        made.end()


def wait_for(what: Callable[[], Any], timeout: float = 60, every: float = 0.01) -> Any:
    """Wait until something is true, and give it."""
    deadline = time.monotonic() + timeout
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)
    return found


# -------------------------------------------------------------------------------------------------- what they leave


def records_of(folder: Path) -> Path:
    """Folder of the records of the only export in a folder."""
    (found,) = folder.glob("*.receipts")
    return found


def receipts_so_far(folder: Path) -> int:
    """Count the receipts below a folder, without reading them; processes write meanwhile."""
    total = 0
    for file in folder.glob("*.receipts/*/receipts-*.bin"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size // RECEIPT.itemsize
    return total


def settled(folder: Path) -> dict[str, bytes]:
    """Everything that an export has left in a folder, but for dates and the records of its run.

    Half-written files, a lease and stores that were to take another's place are in it: two exports are the same when
    neither has any.
    """
    dates = re.compile(rb'"date": "[^"]*"')
    run = re.compile(r"\.receipts/[0-9a-f]{8}/[^.]")
    found = {name: dates.sub(b"", content) for name, content in files_of(folder).items() if not run.search(name)}
    # Folders too: a scratch folder may be empty.
    return found | {str(path.relative_to(folder)): b"" for path in folder.rglob("*partial*") if path.is_dir()}


def check_receipts(folder: Path) -> None:
    """Each block has its receipt, in the one run that is left."""
    records = records_of(folder)
    (run,) = [path.name for path in records.iterdir() if path.is_dir()]
    blocks = Records(Files.at(records), run).receipts()["block"]
    plan = Records(Files.at(records), run).get("plan.json")
    assert plan["finished"] is not None
    np.testing.assert_array_equal(blocks, np.arange(len(blocks)))
    assert len(blocks) > 50


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Compare without printing megabytes."""
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
