"""How the driver divides blocks into tasks, for any number of threads, in simulated time."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.programs.runs import NoBlocks
from benchmarks.simulated_workers import SimulatedWorkers
from imagery_dask.run import Rules, RunReport, run_blocks
from imagery_dask.run.window import LOOK_AHEAD


def _run(blocks: int, threads: int, seconds: float) -> SimulatedWorkers:
    workers = SimulatedWorkers(threads, seconds)
    assert run_blocks(workers, [NoBlocks(blocks)], RunReport(blocks)).ok
    return workers


@pytest.mark.parametrize("seconds", [0.01, 0.5, 2.0])
def test_many_threads_send_driver_and_scheduler_few_tasks(seconds: float) -> None:
    blocks, threads = 20_000, 200
    tasks = _run(blocks, threads, seconds).submitted
    # 20 blocks a task, but fewer towards the end, so that all threads end together.
    assert tasks.count <= 3000
    assert tasks.busy > 0.95


def test_few_threads_have_short_tasks() -> None:
    tasks = _run(10_000, 4, 0.1).submitted
    assert tasks.largest == 10  # a second: what a worker that dies repeats
    assert tasks.busy > 0.98


def test_long_blocks_are_tasks_of_their_own() -> None:
    tasks = _run(500, 16, 60.0).submitted
    assert (tasks.count, tasks.largest) == (500, 1)


def test_blocks_are_looked_up_in_pieces() -> None:
    todo = np.zeros(3 * LOOK_AHEAD, bool)
    todo[[0, LOOK_AHEAD - 1, LOOK_AHEAD, 3 * LOOK_AHEAD - 1]] = True
    taken: list[int] = []

    class Noted(NoBlocks):
        def __getitem__(self, number: int) -> object:
            taken.append(number)
            return super().__getitem__(number)

    run_blocks(SimulatedWorkers(2, 1.0), [Noted(len(todo))], RunReport(4), rules=Rules(todo=todo))
    assert taken == np.flatnonzero(todo).tolist()
