"""One process at a time writes a store, whoever else tries, dies, stands still or has another clock."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults.conftest import World
from faults.harness import CLI, MANY, SEEDS, Process, assert_same, driver, receipts_so_far, settled, wait_for

from imagery_dask.records import lease
from imagery_dask.storage.files import Files

pytestmark = pytest.mark.long
LATENCY_S = 0.02

RENEW_S, EXPIRES_S = 0.2, 2.0
IMPATIENT = f"""
from imagery_dask.config import config
config.set({{"lease.renew_s": {RENEW_S}, "lease.expires_s": {EXPIRES_S}}})
"""
HERE = socket.gethostname()
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a driver; all are ended with the test."""
    started: list[Process] = []

    def run(arguments: list[str], code: str = CLI) -> Process:
        started.append(driver(arguments, tmp_path / f"driver{len(started)}.log", code))
        return started[-1]

    yield run
    for process in started:
        process.send(signal.SIGCONT)
        process.end()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "export"


def arguments_of(world: World, folder: Path, kind: str = "zarr") -> list[str]:
    return world.export(kind, folder, "--cluster", world.cluster.address)


def some_blocks(folder: Path, process: Process, count: int = 5) -> None:
    wait_for(lambda: receipts_so_far(folder) >= count or process.code is not None)
    assert process.code is None, process.said


# ------------------------------------------------------------------------------------------------------ two exports


def test_the_second_of_two_is_refused(world: World, folder: Path, start: Start) -> None:
    expected, arguments = world.expected("zarr"), arguments_of(world, folder)
    world.server.latency_s = 0.4  # it shall not end before the others have begun
    first = start(arguments)
    some_blocks(folder, first, 2)
    for more in ([], ["--overwrite"]):
        second = start([*arguments, *more])
        assert second.wait() == 2
        assert f"is being written by process {first.pid} on {HERE}" in second.said
        assert "Traceback" not in second.said
    world.server.latency_s = 0.0
    assert first.wait() == 0
    assert_same(settled(folder), expected)


def test_a_killed_holder_is_followed_at_once(world: World, folder: Path, start: Start) -> None:
    expected, arguments = world.expected("zarr"), arguments_of(world, folder)
    first = start(arguments)
    some_blocks(folder, first)
    first.kill()
    assert (folder / "out.receipts" / "lease.json").exists()
    before, started = receipts_so_far(folder), time.monotonic()
    second = start(arguments)
    # Long before the lease would have expired.
    wait_for(lambda: receipts_so_far(folder) > before + 8, timeout=40)
    assert time.monotonic() - started < 40
    assert second.wait() == 0
    assert_same(settled(folder), expected)


def test_a_batch_system_that_ends_a_driver(world: World, folder: Path, start: Start) -> None:
    """SIGTERM, which it sends first, is an interrupt: nothing is left behind, and the next one need not wait."""
    first = start(world.export("zarr", folder, "--cluster", "local", "--workers", 1))
    some_blocks(folder, first)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.send(signal.SIGTERM)
    assert first.wait() == 130
    assert "Interrupted; the same command goes on with " in first.said
    assert "Traceback" not in first.said
    assert not (folder / "out.receipts" / "lease.json").exists()
    wait_for(lambda: not any(worker.is_running() for worker in workers))


# --------------------------------------------------------------------------------------------------- other machines


def foreign(renewed: float) -> bytes:
    lease = {"id": "0" * 32, "host": "elsewhere", "pid": os.getpid(), "machine": "another boot pid:[1]"}
    return json.dumps(lease | {"renewed": renewed}).encode()


@contextmanager
def renewing(file: Path, off_s: float) -> Iterator[None]:
    """Renew a lease as another machine does, whose clock is off by so many seconds."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.is_set():
            partial = file.with_name("of another machine")
            partial.write_bytes(foreign(time.time() + off_s))
            partial.rename(file)
            ended.wait(RENEW_S)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_lease_of_another_machine_is_taken_over_when_it_has_expired(world: World, folder: Path, start: Start) -> None:
    expected, arguments = world.expected("zarr"), arguments_of(world, folder)
    lease = folder / "out.receipts" / "lease.json"
    lease.parent.mkdir()
    written = time.time()
    lease.write_bytes(foreign(written))
    refused = start(arguments, IMPATIENT + CLI)
    assert refused.wait() == 2, refused.said
    assert f"is being written by process {os.getpid()} on elsewhere" in refused.said
    assert lease.read_bytes() == foreign(written)
    time.sleep(max(0.0, written + EXPIRES_S - time.time()))
    process = start(arguments, IMPATIENT + CLI)
    assert process.wait() == 0, process.said
    assert_same(settled(folder), expected)


@pytest.mark.parametrize("off_s", [-1000.0, 0.0, 1000.0], ids=["late", "right", "early"])
def test_a_lease_that_is_renewed_is_kept_whatever_the_clocks_say(
    world: World, folder: Path, start: Start, off_s: float
) -> None:
    lease = folder / "out.receipts" / "lease.json"
    arguments = arguments_of(world, folder)
    lease.parent.mkdir()
    with renewing(lease, off_s):
        wait_for(lease.exists)
        process = start(arguments, IMPATIENT + CLI)
        assert process.wait() == 2, process.said
        assert "on elsewhere" in process.said
    assert sorted(path.name for path in folder.rglob("*")) == ["lease.json", "out.receipts"]


def test_a_lease_of_a_clock_in_the_future_is_not_kept_for_ever(world: World, folder: Path, start: Start) -> None:
    arguments = arguments_of(world, folder)
    lease = folder / "out.receipts" / "lease.json"
    lease.parent.mkdir()
    lease.write_bytes(foreign(time.time() + 3600))
    process = start(arguments, IMPATIENT + CLI)
    assert process.wait() == 0, process.said


# ---------------------------------------------------------------------------------------------------- all at once

CONTEND = (
    IMPATIENT
    + """
import os, sys, time
from imagery_dask.errors import TargetBusyError
from imagery_dask.storage.files import Files
from imagery_dask.records.lease import Lease
folder, out, at = sys.argv[1:]
time.sleep(max(0, float(at) - time.time()))
try:
    with Lease(Files.at(folder), "the store") as held:
        for _ in range(6):
            time.sleep(0.1)
            held.check()
        print("kept it")
except TargetBusyError as error:
    print(error)
"""
)


@pytest.mark.parametrize("found", ["none", "of a dead process", "expired", "cut off"])
def test_of_many_at_once_one_has_the_lease(tmp_path: Path, start: Start, found: str) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for number in range(SEEDS // 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        at = time.time() + 0.3
        content = foreign(time.time() - 100)
        if found == "of a dead process":
            from imagery_dask.records.lease import _machine

            content = json.dumps(json.loads(content) | {"machine": _machine(), "pid": dead.pid}).encode()
        if found != "none":
            (folder / "lease.json").write_bytes(content[: 20 if found == "cut off" else None])
        processes = [start([str(folder), "out", str(at)], CONTEND) for _ in range(4)]
        assert [process.wait() for process in processes] == [0] * 4
        said = [process.said for process in processes]
        assert sum("kept it" in words for words in said) == 1, said
        assert sum("is being written" in words or "has taken over" in words for words in said) == 3, said
        assert list(folder.iterdir()) == []


# ------------------------------------------------------------------------------------------- holders that stood still


@pytest.mark.parametrize("how", ["goes on", "overwrites", "has ended"] if MANY else ["goes on", "overwrites"])
def test_a_holder_that_stood_still_ends(world: World, folder: Path, start: Start, how: str) -> None:
    """And what the other one writes stays as it is, also when that has ended and left no lease."""
    kind = "shards" if how == "overwrites" else "zarr"
    expected = world.expected(kind)
    first = start(arguments_of(world, folder), IMPATIENT + CLI)
    some_blocks(folder, first)
    first.send(signal.SIGSTOP)
    time.sleep(EXPIRES_S)
    if how == "overwrites":
        _wait_for_workers(folder)
    more = ["--overwrite"] if how == "overwrites" else []
    second = start([*arguments_of(world, folder, kind), *more], IMPATIENT + CLI)
    if how == "goes on":
        # Workers still write blocks of the first one's, meanwhile.
        records = Files.at(folder / "out.receipts")
        wait_for(lambda: (lease.holder_of(records) or {}).get("pid") == second.pid or second.code is not None)
        some_blocks(folder, second, receipts_so_far(folder) + 1)
    else:
        assert second.wait() == 0, second.said
    first.send(signal.SIGCONT)
    assert first.wait() == 2, first.said
    assert "another process has taken over" in first.said
    assert "Traceback" not in first.said
    assert second.wait() == 0, second.said
    assert_same(settled(folder), expected)


def _wait_for_workers(folder: Path) -> None:
    """Wait until the workers of a driver that stands still have written the blocks that they had."""
    before = -1
    while (now := receipts_so_far(folder)) != before:
        before = now
        time.sleep(2.0)


def test_what_a_lease_says(tmp_path: Path) -> None:
    files = Files.at(tmp_path / "records")
    with lease.Lease(files, "the store"):
        held: Any = lease.holder_of(files)
        assert (held["pid"], held["host"]) == (os.getpid(), HERE)
        assert abs(held["renewed"] - time.time()) < 5
    assert lease.holder_of(files) is None
