"""Replace workers whose job or process ended, so that a cluster keeps the requested number.

dask does not replace them. ``SpecCluster`` removes a worker that was disconnected for a while, even if its nanny is
about to restart it. It does not notice a job that ends before its worker connects, or one of several workers of a job.
``Adaptive`` counts requested workers, not connected ones. Here the batch system is asked for its jobs, but only while a
job has no connected worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import dask
from distributed.core import Status

from imagery_dask.cluster.batch_jobs import is_job_queue, job_number, listed_jobs, system_of

if TYPE_CHECKING:
    from distributed.deploy import Cluster

__all__ = ["Replacer", "replacing_workers"]

# Interval at which workers are counted, which is cheap, and at which the batch system is asked while one is missing.
# The second grows from one number to the other, since jobs may stay in the queue for days.
COUNT_S = 1.0
ASK_S = (2.0, 30.0)
ASK_GROWTH = 1.5
# A worker that was connected for less counts as one that failed to start: the next one would probably end as well.
STAYS_S = 10.0
# Pauses before workers that failed to start are replaced; after the last pause nothing is replaced. If no worker ever
# connected, the environment is probably broken, and the user should hear of it soon.
PAUSES_S = (2.0, 5.0, 15.0, 60.0, 300.0)
FIRST_TRIES = 2
# Longest wait for a submission in progress, whose job would otherwise stay in the queue.
STOP_S = 60.0

_logger = logging.getLogger(__name__)


@contextmanager
def replacing_workers(cluster: Cluster, configuration: Mapping[str, object]) -> Iterator[Replacer]:
    """Run a `Replacer` with these arguments inside a `with` block."""
    replacer = Replacer(cluster, configuration)
    cluster.sync(replacer.start)
    try:
        yield replacer
    finally:
        with suppress(RuntimeError):  # the event loop has ended
            cluster.sync(replacer.stop)


class Replacer:
    """Replaces the workers of a cluster, in its event loop.

    Parameters
    ----------
    cluster : distributed.SpecCluster
        A cluster of a batch system, of SSH, or of local processes.
    configuration : mapping
        dask's configuration while workers start.

    Attributes
    ----------
    hopeless : bool
        True if all workers ended and none will be started again.
    """

    def __init__(self, cluster: Cluster, configuration: Mapping[str, object]) -> None:
        self.hopeless = False
        self._cluster = cluster
        self._configuration = configuration
        # Names of connected workers with the time they connected, and of those that stayed for `STAYS_S`.
        self._connected: dict[str, float] = {}
        self._stayed: set[str] = set()
        self._ever_connected = self._warned = False
        # Starts of workers since one stayed, including the first start.
        self._tries = 1
        # Time at which workers that failed to start will be replaced.
        self._due: float | None = None
        # Jobs that the batch system has ever listed. A job that it never listed does not count as ended.
        self._listed: set[str] = set()
        self._ask_s, self._asked = ASK_S[0], 0.0
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task that checks the workers."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop after the current step."""
        self._stopping.set()
        if self._task is not None:
            with suppress(asyncio.TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._task, STOP_S)

    async def _run(self) -> None:
        while not await self._stops_within(COUNT_S):
            try:
                await self._look()
            except Exception:
                # One failure must not end the task.
                _logger.debug("A check of the workers failed", exc_info=True)

    async def _look(self) -> None:
        """Replace workers that ended: at once if they had stayed, otherwise after a pause, a few times."""
        self._count()
        is_due = self._due is not None and time.monotonic() >= self._due
        ended = await self._ended(is_due)
        if stayed := [name for name in ended if self._has_stayed(name)]:
            await self._replace(stayed)
        fleeting = [name for name in ended if name not in stayed]
        if fleeting and self._tries > (len(PAUSES_S) if self._ever_connected else FIRST_TRIES):
            self._give_up(len(fleeting) == len(self._cluster.worker_spec))
        elif fleeting and self._tries and self._due is None:
            self._due = time.monotonic() + PAUSES_S[self._tries - 1]
        elif fleeting and (is_due or not self._tries):
            self._tries, self._due = self._tries + 1, None
            await self._replace(fleeting)
        elif is_due:
            self._due = None

    def _give_up(self, all_ended: bool) -> None:
        self.hopeless = all_ended
        if self._warned:
            return
        self._warned = True
        _logger.warning(
            "Workers were started %d times in a row, and none of them connected and stayed: workers that end are not "
            "replaced any longer. The logs of the workers may say why%s.", self._tries, _logs_in(self._cluster),
        )  # fmt: skip

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return self._stopping.is_set()

    def _count(self) -> None:
        names, now = _names(self._cluster), time.monotonic()
        if names - self._connected.keys():
            self._ever_connected, self.hopeless = True, False
        if names != self._connected.keys():
            self._ask_s = ASK_S[0]
        self._connected = {name: self._connected.get(name, now) for name in names}
        stayed = {name for name, since in self._connected.items() if now - since >= STAYS_S}
        if stayed - self._stayed:
            self._tries, self._due = 0, None
        self._stayed |= stayed

    def _has_stayed(self, name: object) -> bool:
        return not self._stayed.isdisjoint(self._workers_of(name))

    def _workers_of(self, name: object) -> list[str]:
        """Return the names of the workers of a job, or of a process."""
        suffixes = self._cluster.worker_spec.get(name, {}).get("group") or [""]
        return [f"{name}{suffix}" for suffix in suffixes]

    async def _ended(self, now: bool = False) -> list[Any]:
        """Return the names of workers that ended, or that dask has removed."""
        cluster = self._cluster
        if cluster._lock.locked() or cluster._correct_state_waiting:
            return []  # dask is starting workers; these are specified, but not connected yet
        dropped = [name for name in cluster.worker_spec if name not in cluster.workers]
        if not is_job_queue(type(cluster)):
            return dropped + [name for name, worker in cluster.workers.items() if _process_ended(worker)]
        refused = [name for name, job in cluster.workers.items() if job.job_id is None]
        lacking = {name: str(cluster.workers[name].job_id) for name in self._without_worker() if name not in refused}
        if not lacking:
            return dropped + refused
        loop = asyncio.get_running_loop()
        if not now and loop.time() - self._asked < self._ask_s:
            return dropped + refused
        listed = await listed_jobs(system_of(type(cluster)))
        self._asked, self._ask_s = loop.time(), min(self._ask_s * ASK_GROWTH, ASK_S[1])
        if listed is None:
            return dropped + refused
        self._listed |= listed.keys()
        ended = {number for number in self._listed if listed.get(number, True)}
        return dropped + refused + [name for name, job_id in lacking.items() if job_number(job_id) in ended]

    def _without_worker(self) -> list[Any]:
        """Return the names of jobs without a connected worker."""
        connected = _names(self._cluster)
        return [name for name in self._cluster.workers if connected.isdisjoint(self._workers_of(name))]

    async def _replace(self, names: list[Any]) -> None:
        cluster = self._cluster
        self._ask_s = ASK_S[0]
        for name in names:
            worker = cluster.workers.pop(name, None)
            if worker is not None:
                # It may still run.
                with suppress(Exception):
                    await worker.close()
                if (connection := getattr(worker, "connection", None)) is not None:  # of SSH; close() leaves it open
                    connection.close()
                worker.status = Status.closed
            if name in cluster.worker_spec:
                # With a new name, since dask may still remove the old one.
                (fresh,) = cluster.new_worker_spec()
                cluster.worker_spec[fresh] = cluster.worker_spec.pop(name)
        _logger.info("%d workers ended and are replaced.", len(names))
        try:
            with dask.config.set(self._configuration):
                await cluster._correct_state()
        except Exception as error:
            # The batch system refused the job, or a host did not answer: the next check tries again after a pause.
            _logger.info("Workers could not be started: %s", " ".join(str(error).split()))


def _names(cluster: Cluster) -> set[str]:
    """Return the names of the connected workers."""
    return {str(worker["name"]) for worker in cluster.scheduler_info["workers"].values()}


def _process_ended(worker: Any) -> bool:
    """Return True if a worker has no running process, and no nanny that will start one."""
    if not hasattr(worker, "proc"):
        return worker.status in (Status.closed, Status.failed)
    process = worker.proc  # of SSH
    return worker.status is not Status.running or process.exit_status is not None or bool(process.is_closing())


def _logs_in(cluster: Cluster) -> str:
    folder = getattr(getattr(cluster, "_dummy_job", None), "log_directory", None)
    return f" (in {folder})" if folder else ""
