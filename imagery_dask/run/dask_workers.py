"""The workers of a dask cluster, as what runs tasks; when the cluster is lost, and what a dead worker means."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from distributed import Client, Future, KilledWorker, as_completed

from imagery_dask.cluster import (
    LOST,
    Grower,
    WorkDone,
    WorkerResources,
    dashboard_address,
    job_details,
    resources_of,
    thread_memory,
)
from imagery_dask.config import config
from imagery_dask.errors import ClusterLostError
from imagery_dask.run.silent_workers import SilentWorkers
from imagery_dask.run.workers import WorkersDied

__all__ = ["DaskWorkers"]

T = TypeVar("T")

# Seconds that a scheduler has to answer. If its process dies, the connection ends at once.
SILENCE_S = 120.0
# Seconds to wait for a finished result; if its worker died before the result was fetched, dask computes it again.
RESULT_S = 10.0
# Interval at which the wait for a result ends, so that the caller can check for other work.
LOOK_S = 0.1


class DaskWorkers:
    """Workers of a dask cluster.

    Parameters
    ----------
    client : distributed.Client
        Client of the cluster.
    grower : Grower, optional
        Adds workers to the cluster.
    """

    def __init__(self, client: Client, grower: Grower | None = None) -> None:
        self.client, self._grower = client, grower

    def resources(self) -> WorkerResources:
        """Return the present resources of the workers, or those of as many as there may be."""
        present = resources_of(self.client)
        if self._grower is None:
            return present
        each = max(1, present.threads // max(1, len(self.client.nthreads())))
        return WorkerResources(each * self._grower.most, present.thread_memory)

    def fit(self, task_bytes: int) -> int:
        """Return the memory that a task may use, in bytes; the cluster says how many tasks run at once."""
        del task_bytes
        return thread_memory(self.client)

    def run(self, function: Callable[..., T], *arguments: object) -> Mapping[str, T]:
        """Call a function once on each worker, and return the results by address."""
        return cast("Mapping[str, T]", self.client.run(function, *arguments))

    def tasks(self) -> DaskTasks:
        """Return an empty collection of tasks."""
        return DaskTasks(self.client, self._grower)

    def dashboard(self) -> str | None:
        """Return the address of the scheduler's dashboard, or None if there is none."""
        return dashboard_address(self.client)


class DaskTasks:
    """Tasks in the scheduler of a cluster, see `imagery_dask.run.workers.Tasks`.

    Parameters
    ----------
    client : distributed.Client
        Client of the cluster.
    grower : Grower, optional
        Adds workers to the cluster.
    """

    def __init__(self, client: Client, grower: Grower | None = None) -> None:
        self._client, self._grower = client, grower
        self._running = as_completed(loop=client.loop)
        self._silent = SilentWorkers(client)
        self._threads = 1
        # Time at which the scheduler was last asked for its workers, and at which it last had one.
        self._asked, self._last_manned = -float("inf"), time.monotonic()
        self.silent: list[str] = []

    @property
    def note(self) -> str:
        """Why no more workers are added, as a sentence; "" as long as more may be, or if none are."""
        return "" if self._grower is None else self._grower.note

    def look(self, work: WorkDone | None = None) -> int:
        """Ask the scheduler for the number of threads, and at longer intervals for the workers' heartbeats.

        Raises
        ------
        ClusterLostError
            The scheduler is gone, or has had no worker for `run.no_worker_s` seconds.
        """
        if time.monotonic() - self._asked <= config.get("run.ask_s"):
            return self._threads
        is_to_look = self._silent.is_to_look()
        with self._asking():
            identity = self._client.sync(
                self._client.scheduler.identity, n_workers=-1 if is_to_look else 0, callback_timeout=SILENCE_S
            )
        self._asked = time.monotonic()
        if is_to_look:
            self.silent = self._silent.look(identity["workers"])
        self._threads = int(identity["total_threads"])
        self._last_manned = self._asked if self._threads else self._last_manned
        if self._grower is not None and work is not None:
            self._grower.look(int(identity["n_workers"]), self._threads, work)
        if self._asked - self._last_manned > config.get("run.no_worker_s"):
            minutes = config.get("run.no_worker_s") / 60
            details = job_details(self._client.cluster)
            raise ClusterLostError(
                f"The cluster has had no worker for {minutes:.0f} minutes. Finished blocks are kept; run the "
                "same command again to resume." + (f"\n{details}" if details else "")
            )
        return self._threads

    def submit(self, key: str, function: Callable[..., object], *arguments: object) -> None:
        """Submit the call of a function; the scheduler keeps the part of its key before the first dash for ever."""
        with self._asking():
            self._running.add(self._client.submit(function, *arguments, key=key, pure=False))

    def wait(self) -> bool:
        """Wait for a result, for a tenth of a second at most; return True if there is one."""
        if not self._running.has_ready():
            with self._running.thread_condition:
                self._running.thread_condition.wait(LOOK_S)
        is_ready = bool(self._running.has_ready())
        if self._client.status != "running" and not is_ready:
            raise ClusterLostError(LOST)
        return is_ready

    def take(self) -> tuple[str, Any] | None:
        """Take a result, where `wait` has returned True; None if it is computed again because its worker died."""
        future: Future = next(self._running)
        try:
            result = future.result(timeout=RESULT_S)
            self._last_manned = time.monotonic()
        except (CancelledError, Exception) as error:  # raised by dask: a killed worker, a lost result
            if self._client.status != "running":
                raise ClusterLostError(LOST) from error
            if isinstance(error, TimeoutError) and future.status != "error":
                self._running.add(future)
                return None
            result = error
            if isinstance(error, KilledWorker):
                result = WorkersDied(error.allowed_failures + 1, error.last_worker.address)
            elif isinstance(error, CancelledError):
                result = WorkersDied(1, f"{type(error).__name__}: {error}")
        future.release()
        return future.key, result

    def cancel(self) -> None:
        """Drop all tasks."""
        self._client.cancel(list(self._running.futures), force=True)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Raise ClusterLostError if the client has lost its scheduler."""
        try:
            yield
        except Exception as error:
            # dask's own CommClosedError and TimeoutError are OSErrors.
            if isinstance(error, OSError) or self._client.status in ("closing", "closed"):
                raise ClusterLostError(LOST) from error
            raise
