"""Threads of this process that run tasks: no scheduler, no connections, and nothing is pickled."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from imagery_dask.cluster import WorkerResources, cores, free_memory
from imagery_dask.run.workers import AT_ONCE, WANTED
from imagery_dask.sources.memory import keep_freed_memory

if TYPE_CHECKING:
    from imagery_dask.cluster import WorkDone

__all__ = ["ThreadWorkers"]

T = TypeVar("T")

# Interval at which the wait for a result ends, so that the caller can check for other work.
LOOK_S = 0.1
# Seconds that tasks which have begun have to end when a run is interrupted. A process that ends does not wait longer.
END_S = 5.0


class ThreadWorkers:
    """Workers that are threads of this process.

    Parameters
    ----------
    threads : int, optional
        Largest number of threads. By default one for each core that this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._most = self._threads = threads or cores()

    def resources(self) -> WorkerResources:
        """Return the number of threads, and the memory that is free: `fit` takes fewer threads for large blocks."""
        return WorkerResources(self._most, free_memory())

    def fit(self, task_bytes: int) -> int:
        """Use no more threads than tasks fit into memory; return the memory that is free, in bytes."""
        free = free_memory()
        self._threads = max(1, min(self._most, free // max(1, task_bytes)))
        return free

    def run(self, function: Callable[..., T], *arguments: object) -> Mapping[str, T]:
        """Call a function."""
        return {"this process": function(*arguments)}

    def tasks(self) -> ThreadTasks:
        """Return an empty collection of tasks; threads start with the first tasks, and end with the last."""
        keep_freed_memory(instead_of_glibc=True)
        return ThreadTasks(self._threads)

    def dashboard(self) -> None:
        """Return None: there is no dashboard."""


class ThreadTasks:
    """Tasks that threads of this process run, see `imagery_dask.run.workers.Tasks`.

    Parameters
    ----------
    threads : int
        Largest number of threads.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._changed = threading.Condition()
        # Guarded by the condition, like the number of threads that run.
        self._submitted: deque[tuple[str, Callable[..., object], tuple[object, ...]]] = deque()
        self._ended: deque[tuple[str, Any]] = deque()
        self._running = 0
        self._cancelled = False

    @property
    def silent(self) -> list[str]:
        """Return an empty list: threads send no heartbeats."""
        return []

    @property
    def note(self) -> str:
        """Return "": the number of threads does not change."""
        return ""

    def look(self, work: WorkDone | None = None) -> int:
        """Return the number of threads."""
        del work
        return self._threads

    def submit(self, key: str, function: Callable[..., object], *arguments: object) -> None:
        """Let a thread call a function."""
        with self._changed:
            self._submitted.append((key, function, arguments))
            if self._running == self._threads:
                return
            self._running += 1
        # Daemons, because a process that was interrupted must not wait for a server that does not answer.
        threading.Thread(target=self._work, name=f"imagery-dask-task-{self._running}", daemon=True).start()

    def wait(self) -> bool:
        """Wait for a result, for a tenth of a second at most; return True if there is one."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._ended), LOOK_S)

    def take(self) -> tuple[str, Any]:
        """Take a result, where `wait` has returned True."""
        with self._changed:
            return self._ended.popleft()

    def cancel(self) -> None:
        """Drop tasks and results, and wait for the tasks that have begun, but no longer than `END_S`."""
        deadline = time.monotonic() + END_S
        with self._changed:
            self._cancelled = True
            self._submitted.clear()
            # In short intervals: another Ctrl-C ends the wait.
            while self._running and time.monotonic() < deadline:
                self._changed.wait(LOOK_S)
            self._ended.clear()

    def _work(self) -> None:
        """Run tasks until none is left."""
        AT_ONCE.set(self._threads)
        WANTED.set(lambda: not self._cancelled)
        while True:
            with self._changed:
                if not self._submitted:
                    self._running -= 1
                    self._changed.notify_all()
                    return
                key, function, arguments = self._submitted.popleft()
            try:
                result = function(*arguments)
            except BaseException as error:
                result = error
            # Before the lock is taken, so that a block is not held until the next one has been read.
            del function, arguments
            with self._changed:
                if not self._cancelled:
                    self._ended.append((key, result))
                self._changed.notify_all()
            del result
