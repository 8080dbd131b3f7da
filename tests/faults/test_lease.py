"""One process at a time writes a store, even if others try, die, are stopped or have another clock."""

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
from distributed import Client
from faults.conftest import World
from faults.harness import CLI, MANY, SEEDS, Process, assert_same, comparable_files, driver, receipts_so_far, wait_for

from imagery_dask.records import lease
from imagery_dask.storage.atomic_files import Files

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
    """Start drivers, which are killed when the test ends."""
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
    return world.export_arguments(kind, folder, "--cluster", world.cluster.address)


def wait_for_blocks(folder: Path, process: Process, count: int = 5) -> None:
    """Wait until blocks are written, and check that the process still runs."""
    wait_for(lambda: receipts_so_far(folder) >= count or process.code is not None)
    assert process.code is None, process.output


# ------------------------------------------------------------------------------------------------------ two exports


def test_a_second_export_into_the_same_store_is_refused(world: World, folder: Path, start: Start) -> None:
    expected, arguments = world.expected("zarr"), arguments_of(world, folder)
    world.server.latency_s = 0.4  # so that the first export does not end before the others start
    first = start(arguments)
    wait_for_blocks(folder, first, 2)
    for options in ([], ["--overwrite"]):
        second = start([*arguments, *options])
        assert second.wait() == 2
        assert f"is being written by process {first.pid} on {HERE}" in second.output
        assert "Traceback" not in second.output
    world.server.latency_s = 0.0
    assert first.wait() == 0
    assert_same(comparable_files(folder), expected)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(world: World, folder: Path, start: Start) -> None:
    expected, arguments = world.expected("zarr"), arguments_of(world, folder)
    first = start(arguments)
    wait_for_blocks(folder, first)
    first.kill()
    assert (folder / "out.receipts" / "lease.json").exists()
    before, started = receipts_so_far(folder), time.monotonic()
    second = start(arguments)
    # Long before the lease would have expired.
    wait_for(lambda: receipts_so_far(folder) > before + 8, timeout=40)
    assert time.monotonic() - started < 40
    assert second.wait() == 0
    assert_same(comparable_files(folder), expected)


def test_sigterm_from_a_batch_system_is_an_interrupt(world: World, folder: Path, start: Start) -> None:
    """The driver releases its lease and ends its workers, so the next one need not wait."""
    first = start(world.export_arguments("zarr", folder, "--cluster", "local", "--workers", 1))
    wait_for_blocks(folder, first)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.send(signal.SIGTERM)
    assert first.wait() == 130
    assert "Interrupted. Run the same command again to resume " in first.output
    assert "Traceback" not in first.output
    assert not (folder / "out.receipts" / "lease.json").exists()
    wait_for(lambda: not any(worker.is_running() for worker in workers))


# --------------------------------------------------------------------------------------------------- other machines


def foreign(renewed: float) -> bytes:
    """Return a lease of another machine."""
    lease = {"id": "0" * 32, "host": "elsewhere", "pid": os.getpid(), "machine": "another boot pid:[1]"}
    return json.dumps(lease | {"renewed": renewed}).encode()


@contextmanager
def renewing(file: Path, off_s: float) -> Iterator[None]:
    """Renew a lease as another machine does whose clock is off by `off_s` seconds."""
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


def test_an_expired_lease_of_another_machine_is_taken_over(world: World, folder: Path, start: Start) -> None:
    expected, arguments = world.expected("zarr"), arguments_of(world, folder)
    lease = folder / "out.receipts" / "lease.json"
    lease.parent.mkdir()
    written = time.time()
    lease.write_bytes(foreign(written))
    refused = start(arguments, IMPATIENT + CLI)
    assert refused.wait() == 2, refused.output
    assert f"is being written by process {os.getpid()} on elsewhere" in refused.output
    assert lease.read_bytes() == foreign(written)
    time.sleep(max(0.0, written + EXPIRES_S - time.time()))
    process = start(arguments, IMPATIENT + CLI)
    assert process.wait() == 0, process.output
    assert_same(comparable_files(folder), expected)


@pytest.mark.parametrize("off_s", [-1000.0, 0.0, 1000.0], ids=["late", "right", "early"])
def test_a_renewed_lease_is_respected_despite_clock_differences(
    world: World, folder: Path, start: Start, off_s: float
) -> None:
    lease = folder / "out.receipts" / "lease.json"
    arguments = arguments_of(world, folder)
    lease.parent.mkdir()
    with renewing(lease, off_s):
        wait_for(lease.exists)
        process = start(arguments, IMPATIENT + CLI)
        assert process.wait() == 2, process.output
        assert "on elsewhere" in process.output
    assert sorted(path.name for path in folder.rglob("*")) == ["lease.json", "out.receipts"]


def test_a_lease_from_the_future_is_not_respected_for_ever(world: World, folder: Path, start: Start) -> None:
    arguments = arguments_of(world, folder)
    lease = folder / "out.receipts" / "lease.json"
    lease.parent.mkdir()
    lease.write_bytes(foreign(time.time() + 3600))
    process = start(arguments, IMPATIENT + CLI)
    assert process.wait() == 0, process.output


# ------------------------------------------------------------------------------------------------- races for a lease

CONTEND = (
    IMPATIENT
    + """
import os, sys, time
from imagery_dask.errors import TargetBusyError
from imagery_dask.storage.atomic_files import Files
from imagery_dask.records.lease import Lease
folder, lost, at = sys.argv[1:]
time.sleep(max(0, float(at) - time.time()))
try:
    with Lease(Files.at(folder), "the store") as held:
        end = time.monotonic() + 60
        while len(os.listdir(lost)) < 3 and time.monotonic() < end:  # on a busy machine, others may come late
            time.sleep(0.1)
            held.check()
        print("kept it")
except TargetBusyError as error:
    print(error)
    open(f"{lost}/{os.getpid()}", "w").close()
"""
)


@pytest.mark.parametrize("existing", ["none", "of a dead process", "expired", "cut off"])
def test_one_of_many_concurrent_processes_gets_the_lease(tmp_path: Path, start: Start, existing: str) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for number in range(SEEDS // 2):
        folder, lost = tmp_path / str(number), tmp_path / f"{number}-lost"
        folder.mkdir()
        lost.mkdir()
        start_at = time.time() + 0.3
        content = foreign(time.time() - 100)
        if existing == "of a dead process":
            from imagery_dask.records.lease import _machine

            content = json.dumps(json.loads(content) | {"machine": _machine(), "pid": dead.pid}).encode()
        if existing != "none":
            (folder / "lease.json").write_bytes(content[: 20 if existing == "cut off" else None])
        processes = [start([str(folder), str(lost), str(start_at)], CONTEND) for _ in range(4)]
        assert [process.wait() for process in processes] == [0] * 4
        outputs = [process.output for process in processes]
        assert sum("kept it" in output for output in outputs) == 1, outputs
        assert sum("is being written" in output or "has taken over" in output for output in outputs) == 3, outputs
        assert list(folder.iterdir()) == []


# ------------------------------------------------------------------------------------------------- stopped holders


@pytest.mark.parametrize("how", ["goes on", "overwrites", "has ended"] if MANY else ["goes on", "overwrites"])
def test_a_stopped_holder_exits_when_another_has_taken_over(world: World, folder: Path, start: Start, how: str) -> None:
    """It does not change what the other process writes, even if that has ended and removed its lease."""
    kind = "shards" if how == "overwrites" else "zarr"
    expected = world.expected(kind)
    first = start(arguments_of(world, folder), IMPATIENT + CLI)
    wait_for_blocks(folder, first)
    first.send(signal.SIGSTOP)
    time.sleep(EXPIRES_S)
    if how == "overwrites":
        _wait_for_workers(world)
    options = ["--overwrite"] if how == "overwrites" else []
    second = start([*arguments_of(world, folder, kind), *options], IMPATIENT + CLI)
    if how == "goes on":
        # Workers of the first process still write blocks meanwhile.
        records = Files.at(folder / "out.receipts")
        wait_for(lambda: (lease.holder_of(records) or {}).get("pid") == second.pid or second.code is not None)
        wait_for_blocks(folder, second, receipts_so_far(folder) + 1)
    else:
        assert second.wait() == 0, second.output
    first.send(signal.SIGCONT)
    assert first.wait() == 2, first.output
    assert "another process has taken over" in first.output
    assert "Traceback" not in first.output
    assert second.wait() == 0, second.output
    assert_same(comparable_files(folder), expected)


def _wait_for_workers(world: World) -> None:
    """Wait until the workers of a stopped driver have written the blocks that were assigned to them."""
    unfinished = ("processing", "queued", "waiting", "no-worker")
    with Client(world.cluster.address, set_as_default=False) as client:
        wait_for(
            lambda: (
                not client.run_on_scheduler(
                    lambda dask_scheduler: [
                        task.key for task in dask_scheduler.tasks.values() if task.state in unfinished
                    ]
                )
            )
        )


def test_a_lease_names_its_holder(tmp_path: Path) -> None:
    files = Files.at(tmp_path / "records")
    with lease.Lease(files, "the store"):
        holder: Any = lease.holder_of(files)
        assert (holder["pid"], holder["host"]) == (os.getpid(), HERE)
        assert abs(holder["renewed"] - time.time()) < 5
    assert lease.holder_of(files) is None
