"""Workers in simulated time: the driver's own code runs, and blocks take seconds that nobody waits for."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from imagery_dask.cluster import WorkerResources
from imagery_dask.run.block import BlockResult
from imagery_dask.sources import ReadCounts

T = TypeVar("T")

LOOK_S = 0.1


class SimulatedWorkers:
    """Threads of a cluster whose blocks all take as long.

    Parameters
    ----------
    threads : int
        Number of threads.
    seconds : float
        Time of a block.
    """

    def __init__(self, threads: int, seconds: float) -> None:
        self._threads, self._seconds = threads, seconds
        self.submitted = SimulatedTasks(threads, seconds)

    def resources(self) -> WorkerResources:
        """Return the number of threads."""
        return WorkerResources(self._threads, 2**30)

    def fit(self, task_bytes: int) -> int:
        """Return a gigabyte."""
        del task_bytes
        return 2**30

    def run(self, function: Callable[..., T], *arguments: object) -> Mapping[str, T]:
        """Call a function once."""
        return {"simulated": function(*arguments)}

    def tasks(self) -> SimulatedTasks:
        """Return the tasks."""
        return self.submitted

    def dashboard(self) -> None:
        """Return None."""


class SimulatedTasks:
    """Tasks of blocks, see `imagery_dask.run.workers.Tasks`."""

    def __init__(self, threads: int, seconds: float) -> None:
        self._threads, self._free, self._seconds = threads, threads, seconds
        # Running tasks by their end, with a number, and those that wait for a thread.
        self._running: list[tuple[float, int, str, int]] = []
        self._waiting: deque[tuple[str, int]] = deque()
        self.silent: list[str] = []
        self.note = ""
        self.now = 0.0
        # Number of tasks, of their blocks at most, and seconds of all blocks together.
        self.count, self.largest, self.worked = 0, 0, 0.0

    @property
    def busy(self) -> float:
        """Share of the threads' time in which they had blocks."""
        return self.worked / (self._threads * self.now)

    def look(self, work: object = None) -> int:
        """Return the number of threads."""
        del work
        return self._threads

    def submit(self, key: str, function: Callable[..., object], *arguments: object) -> None:
        """Begin a task, or let it wait for a thread."""
        blocks: Any = arguments[0]
        self.count, self.largest = self.count + 1, max(self.largest, len(blocks))
        self._waiting.append((key, len(blocks)))
        self._begin()

    def _begin(self) -> None:
        while self._free and self._waiting:
            key, blocks = self._waiting.popleft()
            self._free -= 1
            self.worked += blocks * self._seconds
            heapq.heappush(self._running, (self.now + blocks * self._seconds, self.count, key, blocks))

    def wait(self) -> bool:
        """Let a tenth of a second pass at most; return True if a task ends within it."""
        if self._running and self._running[0][0] <= self.now + LOOK_S:
            return True
        self.now += LOOK_S
        return False

    def take(self) -> tuple[str, Any]:
        """Take the result of the task that ends next."""
        self.now, _, key, blocks = heapq.heappop(self._running)
        self._free += 1
        self._begin()
        return key, [BlockResult(1, ReadCounts(), self._seconds)] * blocks

    def cancel(self) -> None:
        """Drop all tasks."""
        self._running.clear()
        self._waiting.clear()
