"""Threads of this process: how many there are, when they end, and when they are used."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from distributed import Client

from imagery_dask.run import tasks_at_once, thread_workers, workers_of
from imagery_dask.run.dask_workers import DaskWorkers
from imagery_dask.run.thread_workers import ThreadWorkers


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("imagery-dask-task-")]


def results_of(tasks: Any, number: int) -> list[Any]:
    """Take so many results."""
    results = []
    while len(results) < number:
        if tasks.wait():
            results.append(tasks.take()[1])
    return results


def test_large_tasks_run_on_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_workers, "free_memory", lambda: 1000)
    workers = ThreadWorkers(8)
    assert (workers.resources().threads, workers.resources().thread_memory) == (8, 1000)
    for size, threads in ((100, 8), (200, 5), (600, 1), (5000, 1), (0, 8)):
        assert workers.fit(size) == 1000
        assert workers.tasks().look() == threads
    assert workers.resources().threads == 8


def test_threads_start_with_tasks_and_end_with_the_last() -> None:
    workers = ThreadWorkers(3)
    tasks, started = workers.tasks(), threading.Barrier(4)
    assert own_threads() == []
    for number in range(7):
        tasks.submit(f"task {number}", started.wait if number < 3 else tasks_at_once)
    started.wait(30)
    assert sorted(results_of(tasks, 7))[3:] == [3] * 4
    deadline = time.monotonic() + 30
    while own_threads():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert tasks_at_once() == 1
    tasks.submit("again", tasks_at_once)
    assert results_of(tasks, 1) == [3]


def test_an_exit_in_a_task_is_its_result() -> None:
    tasks = ThreadWorkers(1).tasks()
    tasks.submit("exit", raise_exit)
    tasks.submit("after", int)
    first, second = results_of(tasks, 2)
    assert (type(first), second) == (SystemExit, 0)


def raise_exit() -> None:
    raise SystemExit(3)


def test_tasks_that_have_begun_end_before_a_cancelled_run_does() -> None:
    tasks, begun, done = ThreadWorkers(1).tasks(), threading.Event(), []

    def slow() -> None:
        begun.set()
        time.sleep(0.2)
        done.append("slow")

    tasks.submit("slow", slow)
    tasks.submit("later", done.append, "later")
    assert begun.wait(30)
    tasks.cancel()
    assert done == ["slow"]
    assert not tasks.wait()


def test_a_task_that_does_not_end_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_workers, "END_S", 0.0)
    tasks, begun, released = ThreadWorkers(1).tasks(), threading.Event(), threading.Event()

    def endless() -> None:
        begun.set()
        released.wait(60)

    tasks.submit("endless", endless)
    assert begun.wait(30)
    tasks.cancel()
    assert not released.is_set()
    released.set()


def test_threads_are_used_unless_there_is_a_client(threads: Client) -> None:
    with workers_of() as workers:
        assert isinstance(workers, ThreadWorkers)
        assert workers.resources().threads == thread_workers.cores()
    with workers_of(workers=5) as workers:
        assert isinstance(workers, ThreadWorkers)
        assert workers.resources().threads == 5
    with workers_of(threads) as workers:
        assert isinstance(workers, DaskWorkers)
        assert workers.client is threads
    with threads.as_current(), workers_of() as workers:
        assert isinstance(workers, DaskWorkers)
        assert workers.client is threads


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_a_number_of_threads_is_positive(workers: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="workers"), workers_of(workers=workers):
        pass


def test_retiring_needs_a_batch_system() -> None:
    with pytest.raises(ValueError, match="retire_before_s"), workers_of(retire_before_s=60):
        pass
