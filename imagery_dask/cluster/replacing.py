"""New workers for those whose job or process ended: as many as were asked for, while a cluster is used.

dask replaces none of them. Its ``SpecCluster`` drops a worker that has been away for a while, even one whose nanny is
about to start it again, and lets its place be empty; of a job that ended before its worker connected, and of jobs with
several workers, it hears nothing; and its ``Adaptive`` compares what is wanted with the places, not with the workers.
Here the batch system is asked which jobs there are, but only while one of them has no worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import dask
from distributed.core import Status

from imagery_dask.cluster.batch_jobs import is_job_queue, job_number, listed_jobs, system_of

__all__ = ["Replacer", "replacing_workers"]

# How often the workers are counted, which costs nothing, and how often the batch system is asked while one is missing:
# soon after something happened, then ever less, since jobs may wait in the queue for days.
COUNT_S = 1.0
ASK_S = (2.0, 30.0)
ASK_GROWTH = 1.5
# A worker that leaves sooner has not come to stay: others would end as it did.
STAYS_S = 10.0
# Pauses before such workers are replaced, when since the last time none came to stay; after the last of them it ends.
# A cluster that never had a worker has a broken environment, most likely: somebody waits to be told.
PAUSES_S = (2.0, 5.0, 15.0, 60.0, 300.0)
FIRST_TRIES = 2
# A submission that is under way is waited for: its job would stay in the queue.
STOP_S = 60.0

_logger = logging.getLogger(__name__)


@contextmanager
def replacing_workers(cluster: Any, configuration: Mapping[str, Any]) -> Iterator[Replacer]:
    """Replace the workers of a cluster that end, until the block is left.

    Parameters
    ----------
    cluster : distributed.SpecCluster
        Of a batch system, of SSH, or of processes of this machine.
    configuration : mapping
        Of dask, while workers start.

    Yields
    ------
    Replacer
        Says whether there is hope.
    """
    topping = Replacer(cluster, configuration)
    cluster.sync(topping.start)
    try:
        yield topping
    finally:
        with suppress(RuntimeError):  # a loop that has ended
            cluster.sync(topping.stop)


class Replacer:
    """Looks after the workers of a cluster, in its event loop.

    Parameters
    ----------
    cluster : distributed.SpecCluster
        Of a batch system, of SSH, or of processes of this machine.
    configuration : mapping
        Of dask, while workers start.

    Attributes
    ----------
    hopeless : bool
        Everything that was started has ended, and will not be started again.
    """

    def __init__(self, cluster: Any, configuration: Mapping[str, Any]) -> None:
        self.hopeless = False
        self._cluster = cluster
        self._configuration = configuration
        # Names of workers that are here, since when, and of those that came to stay.
        self._here: dict[str, float] = {}
        self._stayed: set[str] = set()
        self._came = self._said = False
        # Times that workers were started, the first time included, since one came to stay.
        self._tries = 1
        # When those that ended and had not come to stay are replaced.
        self._due: float | None = None
        # Jobs that the batch system has listed: of those that it never has (another cluster's) nothing is known.
        self._listed: set[str] = set()
        self._ask_s, self._asked = ASK_S[0], 0.0
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, when what is under way is done."""
        self._stopping.set()
        if self._task is not None:
            with suppress(asyncio.TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._task, STOP_S)

    async def _run(self) -> None:
        while not await self._stops_within(COUNT_S):
            try:
                await self._look()
            except Exception:
                # A look that failed is no reason to leave the workers alone from then on.
                _logger.debug("Looking after the workers failed", exc_info=True)

    async def _look(self) -> None:
        """Replace what has ended: at once what had come to stay, anything else unless that is of no use."""
        self._count()
        is_due = self._due is not None and time.monotonic() >= self._due
        ended = await self._ended(is_due)
        if stayed := [name for name in ended if self._has_stayed(name)]:
            await self._replace(stayed)
        fleeting = [name for name in ended if name not in stayed]
        if fleeting and self._tries > (len(PAUSES_S) if self._came else FIRST_TRIES):
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
        if self._said:
            return
        self._said = True
        _logger.warning(
            "Workers were started %d times in a row, and none of them connected and stayed: those that end are not "
            "replaced any longer. Their logs may say why%s.", self._tries, _logs_in(self._cluster),
        )  # fmt: skip

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return self._stopping.is_set()

    def _count(self) -> None:
        names, now = _names(self._cluster), time.monotonic()
        if names - self._here.keys():
            self._came, self.hopeless = True, False
        if names != self._here.keys():
            self._ask_s = ASK_S[0]
        self._here = {name: self._here.get(name, now) for name in names}
        stayed = {name for name, since in self._here.items() if now - since >= STAYS_S}
        if stayed - self._stayed:
            self._tries, self._due = 0, None
        self._stayed |= stayed

    def _has_stayed(self, name: Any) -> bool:
        return not self._stayed.isdisjoint(self._workers_of(name))

    def _workers_of(self, name: Any) -> list[str]:
        """Names of the workers of a job, or of the one of a process."""
        suffixes = self._cluster.worker_spec.get(name, {}).get("group") or [""]
        return [f"{name}{suffix}" for suffix in suffixes]

    async def _ended(self, now: bool = False) -> list[Any]:
        """Names of workers that ended, or that dask has dropped."""
        cluster = self._cluster
        if cluster._lock.locked() or cluster._correct_state_waiting:
            return []  # dask is starting some: those have a place, and no worker yet
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
        """Names of jobs of which no worker is there."""
        there = _names(self._cluster)
        return [name for name in self._cluster.workers if there.isdisjoint(self._workers_of(name))]

    async def _replace(self, names: list[Any]) -> None:
        cluster = self._cluster
        self._ask_s = ASK_S[0]
        for name in names:
            worker = cluster.workers.pop(name, None)
            if worker is not None:
                # Should it run nevertheless.
                with suppress(Exception):
                    await worker.close()
                if (connection := getattr(worker, "connection", None)) is not None:  # SSH: left open by close()
                    connection.close()
                worker.status = Status.closed
            if name in cluster.worker_spec:
                # Another name: dask may still be about to drop the old one.
                (fresh,) = cluster.new_worker_spec()
                cluster.worker_spec[fresh] = cluster.worker_spec.pop(name)
        _logger.info("%d workers ended; new ones are started in their place.", len(names))
        try:
            with dask.config.set(self._configuration):
                await cluster._correct_state()
        except Exception as error:
            # A batch system that refuses, a host that does not answer: tried again, after a pause.
            _logger.info("Workers could not be started: %s", " ".join(str(error).split()))


def _names(cluster: Any) -> set[str]:
    """Names of the workers that are there."""
    return {str(worker["name"]) for worker in cluster.scheduler_info["workers"].values()}


def _process_ended(worker: Any) -> bool:
    """Whether the process of a worker has ended, or was never there; a nanny starts a new one in its place."""
    if not hasattr(worker, "proc"):
        return worker.status in (Status.closed, Status.failed)
    process = worker.proc  # of SSH
    return worker.status is not Status.running or process.exit_status is not None or bool(process.is_closing())


def _logs_in(cluster: Any) -> str:
    folder = getattr(getattr(cluster, "_dummy_job", None), "log_directory", None)
    return f" (in {folder})" if folder else ""
