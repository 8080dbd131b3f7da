"""Workers without heartbeats are named early, restarted later, and forgiven when all processes were stopped."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support.settings import Configure

from imagery_dask.run import silent_workers
from imagery_dask.run.silent_workers import SilentWorkers


class Clock:
    """A clock that a test sets, and a client that records what is called in its loop."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.restarted: list[list[str]] = []
        self.loop = self

    def monotonic(self) -> float:
        return self.now

    def add_callback(self, callback: Any, addresses: list[str]) -> None:
        self.restarted.append(addresses)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> Clock:
    clock = Clock()
    monkeypatch.setattr(silent_workers, "time", clock)
    configure("run.silent_s", 80.0)
    return clock


def looks(watch: SilentWorkers, clock: Clock, seconds: range, heartbeats: dict[str, list[float]]) -> list[list[str]]:
    """Look every 10 s; a worker's heartbeats are its last known values."""
    answers = []
    for step in seconds:
        clock.now += 10.0
        seen = {
            name: {"last_seen": beats[min(step, len(beats) - 1)], "name": name} for name, beats in heartbeats.items()
        }
        answers.append(watch.look(seen))
    return answers


def test_a_silent_worker_is_named_and_then_restarted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    watch = SilentWorkers(clock)  # type: ignore[arg-type]
    beating = [float(step) for step in range(40)]
    with caplog.at_level(logging.WARNING, logger="imagery_dask"):
        answers = looks(watch, clock, range(9), {"tcp://a": beating, "tcp://b": [0.0, 1.0]})
    assert answers == [[], [], [], ["tcp://b"], ["tcp://b"], ["tcp://b"], ["tcp://b"], ["tcp://b"], ["tcp://b"]]
    assert clock.restarted == []
    assert [message.split(";")[0] for message in caplog.messages] == [
        "The worker tcp://b (tcp://b) has been silent for 20 s"
    ]
    assert looks(watch, clock, range(9, 10), {"tcp://a": beating, "tcp://b": [1.0]}) == [[]]
    assert clock.restarted == [["tcp://b"]]
    # It is restarted once, and again only if it stays silent as long.
    looks(watch, clock, range(10, 17), {"tcp://a": beating, "tcp://b": [1.0]})
    assert clock.restarted == [["tcp://b"]]


def test_a_worker_that_answers_again_is_not_restarted(clock: Clock) -> None:
    watch = SilentWorkers(clock)  # type: ignore[arg-type]
    beats = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
    answers = looks(watch, clock, range(12), {"tcp://a": beats})
    assert answers[4] == ["tcp://a"]
    assert answers[5] == answers[11] == []
    assert clock.restarted == []


def test_a_process_that_slept_restarts_no_worker(clock: Clock) -> None:
    watch = SilentWorkers(clock)  # type: ignore[arg-type]
    looks(watch, clock, range(3), {"tcp://a": [0.0, 1.0, 2.0]})
    clock.now += 100_000.0
    looks(watch, clock, range(3, 5), {"tcp://a": [0.0, 1.0, 2.0, 2.0, 3.0]})
    assert clock.restarted == []


def test_it_looks_at_intervals(clock: Clock) -> None:
    watch = SilentWorkers(clock)  # type: ignore[arg-type]
    watch.look({})
    assert not watch.is_to_look()
    clock.now += 10.0
    assert watch.is_to_look()
