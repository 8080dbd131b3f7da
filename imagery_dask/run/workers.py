"""What runs tasks: threads of this process, or the workers of a dask cluster. Begin with `workers_of`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from imagery_dask.annotations import EachProcess
from imagery_dask.cluster import WAIT_S, WorkerResources
from imagery_dask.validate import integer, whole_number

if TYPE_CHECKING:
    from imagery_dask.cluster import WorkDone

__all__ = ["AT_ONCE", "Tasks", "WANTED", "Workers", "WorkersDied", "is_wanted", "tasks_at_once", "workers_of"]

# Number of tasks that this process runs at once, in the threads that run them.
AT_ONCE: ContextVar[int | None] = ContextVar("imagery_dask_tasks_at_once", default=None)
# Whether the caller of a task still waits for its result, in the threads that run tasks.
WANTED: ContextVar[Callable[[], bool] | None] = ContextVar("imagery_dask_task_wanted", default=None)


class WorkersDied(Exception):
    """Result of a task whose workers died.

    Parameters
    ----------
    deaths : int
        Number of workers that died.
    last : str
        Address of the last of them.
    """

    def __init__(self, deaths: int, last: str) -> None:
        super().__init__(f"{deaths} workers died; the last: {last}")
        self.deaths, self.last = deaths, last


class Tasks(Protocol):
    """Tasks of one caller, from when they are submitted until their results are taken."""

    @property
    def silent(self) -> list[str]:
        """Addresses of workers that have sent no heartbeats for a while."""
        ...

    @property
    def note(self) -> str:
        """Why no more workers are added, as a sentence; "" where their number does not follow what they achieve."""
        ...

    def look(self, work: WorkDone | None = None) -> int:
        """Look after the workers, if that is due, and return how many tasks run at once.

        Parameters
        ----------
        work : WorkDone, optional
            How far the caller is, by which workers may be added.

        Raises
        ------
        ClusterLostError
            The scheduler is gone, or has had no worker for `run.no_worker_s` seconds.
        """
        ...

    def submit(self, key: str, function: Callable[..., object], *arguments: object) -> None:
        """Submit the call of a function; the key names it on dashboards."""
        ...

    def wait(self) -> bool:
        """Wait for a result, for a tenth of a second at most; return True if there is one.

        Raises
        ------
        ClusterLostError
            The scheduler is gone.
        """
        ...

    def take(self) -> tuple[str, Any] | None:
        """Take a result, where `wait` has returned True.

        Returns
        -------
        tuple of str and object, or None
            The key of the task, and what its function has returned. If it has raised, this is the exception; if its
            workers died, `WorkersDied`. None if it is computed again because its worker died.
        """
        ...

    def cancel(self) -> None:
        """Drop all tasks that have not begun, and the results of the others."""
        ...


class Workers(EachProcess, Protocol):
    """What runs tasks."""

    def resources(self) -> WorkerResources:
        """Return the number of tasks that run at once, and the memory of each."""
        ...

    def fit(self, task_bytes: int) -> int:
        """Run fewer tasks at once if more do not fit into memory; return the memory that a task may use, in bytes."""
        ...

    def tasks(self) -> Tasks:
        """Return an empty collection of tasks."""
        ...

    def dashboard(self) -> str | None:
        """Return the address of a dashboard, or None."""
        ...


@contextmanager
def workers_of(
    cluster: Any = None,
    workers: int | str | None = None,
    wait_s: float = WAIT_S,
    retire_before_s: float | None = None,
    *,
    max_workers: int | None = None,
    threads: int | None = None,
) -> Iterator[Workers]:
    """Yield threads of this process if no cluster is named and there is no current client, or else a cluster.

    Parameters
    ----------
    cluster : optional
        As in `imagery_dask.cluster.connect`.
    workers : int or "auto", optional
        Number of threads, or of workers to start. ``"auto"`` starts a few workers of a cluster, and more as long as
        they make the run faster.
    max_workers : int, optional
        Largest number of workers for ``"auto"``.
    threads : int, optional
        Number of threads of this process, or of each process of this machine.
    wait_s, retire_before_s
        As in `imagery_dask.cluster.connect`, which also says what is raised.
    """
    if cluster is None and retire_before_s is None and workers != "auto" and not _has_client():
        from imagery_dask.run.thread_workers import ThreadWorkers

        if max_workers is not None:
            raise ValueError("max_workers (--max-workers) is for workers='auto' (--workers auto).")
        count = None if workers is None else whole_number("workers", integer("workers", workers))
        yield ThreadWorkers(count or threads)
    else:
        # Both import dask.distributed, which takes as long as a small export.
        from imagery_dask.cluster import WorkerCount, connection
        from imagery_dask.run.dask_workers import DaskWorkers

        wanted = WorkerCount(workers, max_workers, threads or 1)
        with connection(cluster, wanted, wait_s, retire_before_s) as opened:
            yield DaskWorkers(opened.client, opened.grower)


def tasks_at_once() -> int:
    """Return how many tasks this process runs at once, so that they and the codecs' threads share the cores."""
    count = AT_ONCE.get()
    if count is not None:
        return count
    # A dask worker has imported this module.
    module = sys.modules.get("distributed.worker")
    if module is None:
        return 1
    try:
        return int(module.get_worker().state.nthreads)
    except ValueError:
        return 1


def is_wanted() -> bool:
    """Return False if the task that this thread runs was cancelled, so that it may end between two blocks."""
    wanted = WANTED.get()
    if wanted is not None:
        return wanted()
    module = sys.modules.get("distributed.worker")
    if module is None:
        return True
    try:
        worker = module.get_worker()
        task = worker.state.tasks.get(worker.get_current_task())
    except (ValueError, AttributeError):  # no task of a worker
        return True
    return task is not None and task.state != "cancelled"


def _has_client() -> bool:
    """Return True if this process has a current client, for which it has imported dask.distributed."""
    module = sys.modules.get("distributed.client")
    if module is None:
        return False
    try:
        module.default_client()
    except ValueError:
        return False
    return True
