"""Requests in flight to one server are limited, in a process and over a cluster, and each gets its turn."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import dask
import pytest
from distributed import Client, Future, LocalCluster, get_worker
from support.http_server import Fault, FileServer

from imagery_dask.sources.requests import throttle
from imagery_dask.sources.requests.throttle import limited_requests, request_slots
from imagery_dask.sources.requests.transport import Request, Transport

FILES = 24


@pytest.fixture
def server(tmp_path: Path, http_server_factory: Callable[..., FileServer]) -> FileServer:
    for number in range(FILES):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    return http_server_factory(tmp_path, latency_s=0.01)


@pytest.fixture(autouse=True)
def _no_slots() -> Iterator[None]:
    throttle.forget_slots()
    yield
    throttle.forget_slots()


def read_files(url: str, limit: int | None, times: int = 1) -> list[str]:
    """Read all files of a server, as a block does; return the address of the worker."""
    with limited_requests(limit):
        for _ in range(times):
            answers = Transport(url).get_many([Request(str(number)) for number in range(FILES)])
            assert [int(blob.content) for _, blob in answers if blob is not None] == list(range(FILES))
    try:
        return [get_worker().address]
    except ValueError:
        return []


@pytest.mark.parametrize("limit", [1, 3])
def test_threads_of_a_process_share_the_limit(server: FileServer, limit: int) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: read_files(server.url, limit), range(4)))
    assert server.count() == 4 * FILES
    assert server.max_in_flight == limit


def test_without_a_limit_more_requests_are_in_flight(server: FileServer) -> None:
    read_files(server.url, None)
    assert server.max_in_flight > 3


@pytest.mark.parametrize("limit", [pytest.param(1, marks=pytest.mark.long), 3])
def test_workers_of_a_cluster_share_the_limit(server: FileServer, processes: Client, limit: int) -> None:
    futures = [processes.submit(read_files, server.url, limit, 3, pure=False) for _ in range(6)]
    workers = {address for [address] in processes.gather(futures)}
    assert len(workers) == 2
    assert server.count() == 6 * 3 * FILES
    assert server.max_in_flight == limit


@pytest.mark.parametrize("limit", [1, 3])
def test_worker_threads_in_this_process_share_the_limit(server: FileServer, threads: Client, limit: int) -> None:
    threads.gather([threads.submit(read_files, server.url, limit, pure=False) for _ in range(4)])
    assert server.count() == 4 * FILES
    assert server.max_in_flight == limit


def semaphore_use(dask_scheduler: object, name: str) -> tuple[int, int]:
    """Return how often a semaphore was acquired, and how many leases are held."""
    extension = dask_scheduler.extensions["semaphores"]  # type: ignore[attr-defined]
    return extension.metrics["acquire_total"][name], len(extension.leases[name])


def test_slots_are_acquired_rarely_and_all_released(server: FileServer, processes: Client) -> None:
    server.latency_s = 0.0
    processes.gather([processes.submit(read_files, server.url, 2, 5, pure=False) for _ in range(4)])
    name = f"imagery-dask-requests-2-{server.url}"
    deadline = time.monotonic() + 5
    while processes.run_on_scheduler(semaphore_use, name=name)[1] and time.monotonic() < deadline:
        time.sleep(0.05)
    acquired, held = processes.run_on_scheduler(semaphore_use, name=name)
    assert held == 0
    assert 0 < acquired < server.count() / 4


def first_and_last(url: str, seconds: float) -> tuple[float, float]:
    """Read one file at a time for some seconds; return the times of the first and the last read."""
    transport = Transport(url)
    end = time.time() + seconds
    moments = []
    with limited_requests(1):
        while time.time() < end or not moments:
            list(transport.get_many([Request(str(number)) for number in range(4)]))
            moments.append(time.time())
    return moments[0], moments[-1]


def test_the_only_slot_is_passed_on_between_workers(server: FileServer, processes: Client) -> None:
    """Both workers have pending requests all the time, for much longer than a slot is kept."""
    started = time.time()
    futures = [processes.submit(first_and_last, server.url, 4.0, pure=False) for _ in range(2)]
    for first, last in processes.gather(futures):
        assert first - started < 3
        assert last - started > 3
    assert server.max_in_flight == 1


@pytest.mark.long
def test_the_slots_of_a_dead_worker_are_released(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = "DASK_DISTRIBUTED__SCHEDULER__LOCKS__"
    for name, value in (("LEASE_TIMEOUT", "2s"), ("LEASE_VALIDATION_INTERVAL", "200ms")):
        monkeypatch.setenv(variable + name, value)
    dask.config.refresh()
    try:
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            server.faults = lambda path, n: Fault(delay_s=60) if path == "/0" and n == 1 else None
            pids = client.run(os.getpid)
            one, other = pids
            doomed: Future = client.submit(read_files, server.url, 1, workers=[one], pure=False)
            while not server._in_flight:
                time.sleep(0.01)
            waits = client.submit(read_files, server.url, 1, workers=[other], pure=False)
            time.sleep(0.5)
            assert not waits.done()
            os.kill(pids[one], signal.SIGKILL)
            assert waits.result(timeout=30) == [other]
            doomed.cancel()
    finally:
        monkeypatch.undo()
        dask.config.refresh()


# ------------------------------------------------------------------------------------------------- choice of the limit


def test_a_worker_that_closes_releases_no_slots(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(throttle, "IDLE_S", 1.0)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.submit(read_files, server.url, 3).result()
        cluster.sync(cluster.workers[0].close)
        (slots,) = throttle._of_worker[cluster.workers[0]].values()
        while slots._idle:
            time.sleep(0.02)
        client.sync(asyncio.sleep, 0)  # after the release, which is another turn of the same loop
    assert "Release failed" not in caplog.text


@pytest.mark.parametrize("count", [0, -1])
def test_a_limit_is_at_least_1(count: int) -> None:
    with pytest.raises(ValueError, match="whole number from 1"), limited_requests(count):
        pass


def held_at_once(own: int | None = None) -> int:
    """Return how many threads get a slot before any is released."""
    slots, inside, release = request_slots("https://here", own), [], threading.Event()

    def hold() -> None:
        with slots:
            inside.append(1)
            release.wait(5)

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    held = len(inside)
    release.set()
    for thread in threads:
        thread.join()
    assert len(inside) == 6
    return held


def test_the_smallest_limit_applies() -> None:
    assert held_at_once() == 6
    assert held_at_once(2) == 2
    with limited_requests(3):
        assert (held_at_once(), held_at_once(2), held_at_once(5)) == (3, 2, 3)
        with limited_requests(None):
            assert held_at_once() == 3
        with limited_requests(5):
            assert held_at_once() == 3
        with limited_requests(1):
            assert held_at_once() == 1
        assert held_at_once() == 3
    assert held_at_once() == 6


def test_a_limit_applies_to_its_thread_and_to_copies_of_its_context() -> None:
    with ThreadPoolExecutor(1) as thread, limited_requests(2):
        assert thread.submit(held_at_once).result() == 6
        assert thread.submit(copy_context().run, held_at_once).result() == 2


def test_servers_have_their_own_slots() -> None:
    with limited_requests(1), request_slots("https://here"), request_slots("https://there"):
        pass


def test_files_take_no_slot(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    transport = Transport(f"file://{tmp_path}")
    with limited_requests(1):
        assert transport.get(Request("a")) is not None
    assert not throttle._of_process
