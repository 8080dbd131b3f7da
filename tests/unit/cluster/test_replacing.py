"""Which workers are replaced when: by the clock of a test, with what `Replacer` asks of a cluster."""

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
    """Worker processes that come when a test says so."""

    def __init__(self, count: int) -> None:
        self.worker_spec: dict[Any, dict[str, Any]] = {name: {} for name in range(count)}
        self.workers = {name: Worker() for name in self.worker_spec}
        self.scheduler_info: dict[str, Any] = {"workers": {}}
        self.fresh = count
        self._lock, self._correct_state_waiting = asyncio.Lock(), None

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        self.fresh += 1
        return {self.fresh - 1: {}}

    async def _correct_state(self) -> None:
        for name in self.worker_spec.keys() - self.workers.keys():
            self.workers[name] = Worker()

    def come(self, *names: int) -> None:
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
    made = Clock()
    monkeypatch.setattr(replacing, "time", made)
    return made


def look(topping: Replacer) -> None:
    asyncio.run(topping._look())


def with_two_that_stay(clock: Clock, count: int) -> tuple[Cluster, Replacer]:
    """Give a cluster of so many workers, of which 0 and 1 came to stay."""
    cluster = Cluster(count)
    topping = Replacer(cluster, {})
    cluster.come(0, 1)
    look(topping)
    clock.now += STAYS_S + 1
    look(topping)
    return cluster, topping


def test_workers_that_had_come_to_stay_are_replaced_at_once(clock: Clock) -> None:
    """However many leave one after the other, and whether or not others come in their place soon."""
    cluster = Cluster(20)
    topping = Replacer(cluster, {})
    cluster.come(*range(20))
    look(topping)
    clock.now += STAYS_S + 1
    for name in range(20):
        look(topping)
        cluster.end(name)
        clock.now += 2
        look(topping)
        assert len(cluster.workers) == 20
        assert name not in cluster.workers
    assert not topping.hopeless


def test_workers_that_come_and_leave_at_once_are_replaced_after_pauses(clock: Clock) -> None:
    cluster, topping = with_two_that_stay(clock, 2)
    cluster.end(0)
    look(topping)
    pauses, bad = [], 2
    while True:
        cluster.come(bad)
        look(topping)
        clock.now += STAYS_S / 2
        cluster.end(bad)
        look(topping)
        since = clock.now
        while bad in cluster.workers and clock.now < since + 2 * PAUSES_S[-1]:
            clock.now += 1
            look(topping)
        if bad in cluster.workers:
            break
        pauses.append(clock.now - since)
        bad += 1
    # The first time at once: nothing had failed by then.
    assert pauses == [0.0, *PAUSES_S]
    assert not topping.hopeless, "the other worker is there"
    # That is replaced all the same; and where its successor stays, all others are again.
    cluster.end(1)
    look(topping)
    assert set(cluster.workers) == {bad, bad + 1}
    cluster.come(bad + 1)
    look(topping)
    clock.now += STAYS_S + 1
    look(topping)
    look(topping)
    assert set(cluster.workers) == {bad + 1, bad + 2}


def test_nobody_waits_for_those_that_never_stay(clock: Clock) -> None:
    cluster, topping = with_two_that_stay(clock, 3)
    cluster.end(2)  # which never came
    for _ in range(2):
        look(topping)
        (bad,) = cluster.workers.keys() - {0, 1}
        cluster.end(bad)
        look(topping)
    assert bad in cluster.workers, "it is replaced after a pause"
    cluster.end(0)
    look(topping)
    assert set(cluster.workers) == {1, bad, bad + 1}


def test_what_dask_is_starting_is_not_taken_for_dropped() -> None:
    cluster = Cluster(1)
    topping = Replacer(cluster, {})
    cluster.worker_spec[7] = {}

    async def looks() -> tuple[list[Any], list[Any]]:
        async with cluster._lock:
            meanwhile = await topping._ended()
        return meanwhile, await topping._ended()

    assert asyncio.run(looks()) == ([], [7])
