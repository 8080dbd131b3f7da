"""Times at which `Replacer` replaces workers, with a clock and a cluster that the test controls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from distributed.core import Status

from imagery_dask.cluster import replacing
from imagery_dask.cluster.replacing import PAUSES_S, STAYS_S, Replacer


class Worker:
    def __init__(self) -> None:
        self.status = Status.running

    async def close(self) -> None:
        self.status = Status.closed


class Cluster:
    """The parts of a cluster that `Replacer` uses; workers connect and end when the test says so."""

    def __init__(self, count: int) -> None:
        self.worker_spec: dict[Any, dict[str, Any]] = {name: {} for name in range(count)}
        self.workers = {name: Worker() for name in self.worker_spec}
        self.scheduler_info: dict[str, Any] = {"workers": {}}
        self.next_name = count
        self._lock, self._correct_state_waiting = asyncio.Lock(), None

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        self.next_name += 1
        return {self.next_name - 1: {}}

    async def _correct_state(self) -> None:
        for name in self.worker_spec.keys() - self.workers.keys():
            self.workers[name] = Worker()

    def connect(self, *names: int) -> None:
        self.scheduler_info["workers"] |= {f"tcp://{name}": {"name": name} for name in names}

    def end(self, name: int) -> None:
        self.workers[name].status = Status.closed
        self.scheduler_info["workers"].pop(f"tcp://{name}", None)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    test_clock = Clock()
    monkeypatch.setattr(replacing, "time", test_clock)
    return test_clock


def look(replacer: Replacer) -> None:
    asyncio.run(replacer._look())


def with_two_stable_workers(clock: Clock, count: int) -> tuple[Cluster, Replacer]:
    """Return a cluster of ``count`` workers, of which 0 and 1 have been connected for longer than `STAYS_S`."""
    cluster = Cluster(count)
    replacer = Replacer(cluster, {})
    cluster.connect(0, 1)
    look(replacer)
    clock.now += STAYS_S + 1
    look(replacer)
    return cluster, replacer


def test_stable_workers_are_replaced_at_once(clock: Clock) -> None:
    """However many end one after the other, and whether or not their successors connect soon."""
    cluster = Cluster(20)
    replacer = Replacer(cluster, {})
    cluster.connect(*range(20))
    look(replacer)
    clock.now += STAYS_S + 1
    for name in range(20):
        look(replacer)
        cluster.end(name)
        clock.now += 2
        look(replacer)
        assert len(cluster.workers) == 20
        assert name not in cluster.workers
    assert not replacer.hopeless


def test_workers_that_end_soon_are_replaced_after_pauses(clock: Clock) -> None:
    cluster, replacer = with_two_stable_workers(clock, 2)
    cluster.end(0)
    look(replacer)
    pauses, bad = [], 2
    while True:
        cluster.connect(bad)
        look(replacer)
        clock.now += STAYS_S / 2
        cluster.end(bad)
        look(replacer)
        since = clock.now
        while bad in cluster.workers and clock.now < since + 2 * PAUSES_S[-1]:
            clock.now += 1
            look(replacer)
        if bad in cluster.workers:
            break
        pauses.append(clock.now - since)
        bad += 1
    # The first is replaced at once, because no worker had failed before.
    assert pauses == [0.0, *PAUSES_S]
    assert not replacer.hopeless, "the other worker is still connected"
    # The other worker is still replaced when it ends; if its successor is stable, failed workers are replaced again.
    cluster.end(1)
    look(replacer)
    assert set(cluster.workers) == {bad, bad + 1}
    cluster.connect(bad + 1)
    look(replacer)
    clock.now += STAYS_S + 1
    look(replacer)
    look(replacer)
    assert set(cluster.workers) == {bad + 1, bad + 2}


def test_a_stable_worker_is_replaced_at_once_while_others_fail(clock: Clock) -> None:
    cluster, replacer = with_two_stable_workers(clock, 3)
    cluster.end(2)  # it never connected
    for _ in range(2):
        look(replacer)
        (bad,) = cluster.workers.keys() - {0, 1}
        cluster.end(bad)
        look(replacer)
    assert bad in cluster.workers, "it is replaced only after a pause"
    cluster.end(0)
    look(replacer)
    assert set(cluster.workers) == {1, bad, bad + 1}


def test_workers_that_dask_is_starting_are_not_counted_as_ended() -> None:
    cluster = Cluster(1)
    replacer = Replacer(cluster, {})
    cluster.worker_spec[7] = {}

    async def ended_twice() -> tuple[list[Any], list[Any]]:
        async with cluster._lock:
            during_start = await replacer._ended()
        return during_start, await replacer._ended()

    assert asyncio.run(ended_twice()) == ([], [7])
