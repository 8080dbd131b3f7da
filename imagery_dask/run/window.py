"""Run blocks on a dask cluster in a bounded window: submit, repeat, give up, and stop."""

from __future__ import annotations

import heapq
import math
import random
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from uuid import uuid4

import numpy as np
from distributed import Client, Future, KilledWorker, as_completed
from numpy.typing import NDArray

from imagery_dask.cluster import LOST, job_details
from imagery_dask.config import config
from imagery_dask.errors import AccessRefusedError, ClusterLostError, TargetFullError, TooManyMissingError
from imagery_dask.records.journal import Records
from imagery_dask.run.block import BlockError, BlockResult, BlockTask, run_batch
from imagery_dask.run.report import FailedBlock, RunReport
from imagery_dask.sources import ReadCounts

__all__ = ["WINDOW_PER_THREAD", "Rules", "Stages", "check_missing", "run_blocks"]

# Blocks that the scheduler knows of, per thread of the cluster: enough that none waits for the driver.
WINDOW_PER_THREAD = 3
FAILURES_KEPT = 1000
# A task of dask costs driver and scheduler some milliseconds: short blocks are done several in one.
BATCH_S = 1.0
# A scheduler whose process died is noticed at once, by its connection; one that stands still has so long to answer.
SILENCE_S = 120.0
# A result whose worker died before it was fetched is computed again.
RESULT_S = 10.0
LOOK_S = 0.1

# Blocks by number, made when they are asked for: stage by stage, none of which begins before the one before has ended.
Stages = Iterable[Sequence[BlockTask]]


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits and callbacks of a run.

    Parameters
    ----------
    records : Records or None
        Where receipts are written.
    todo : ndarray of bool or None
        True for the numbers of blocks to run; None runs all.
    most_missing : float or None
        Number of missing storage chunks above which the run ends.
    max_requests : int or None
        Limit of requests in flight to one server, from all workers together.
    check : callable
        Called after every block; raises what ends the run.
    wrap : callable
        Makes the task that is submitted from the task of a block and its number.
    on_failure : callable
        Called with the number, the task, the reason and the attempts of a block that failed.
    """

    records: Records | None = None
    todo: NDArray[np.bool_] | None = None
    most_missing: float | None = None
    max_requests: int | None = None
    check: Callable[[], None] = lambda: None
    wrap: Callable[[BlockTask, int], BlockTask] = lambda task, number: task
    on_failure: Callable[[int, BlockTask, str, int], None] = lambda number, task, reason, attempts: None


def run_blocks(
    client: Client,
    stages: Stages,
    report: RunReport,
    on_progress: Callable[[RunReport], None] | None = None,
    rules: Rules | None = None,
) -> RunReport:
    """Run blocks on a cluster, with no more than a window of them in the scheduler at a time.

    Parameters
    ----------
    client : distributed.Client
        Where to run.
    stages : iterable of sequences of BlockTask
        Blocks, made as they are submitted; never held all at once. A stage begins when the one before it has ended, and
        not at all when a block of that failed: it would read what was not written.
    report : RunReport
        Report so far; updated in place.
    on_progress : callable, optional
        Called with the report after every block.
    rules : Rules, optional
        Limits and callbacks.

    Returns
    -------
    RunReport
        With the failed blocks; the other blocks of their stage still run.

    Raises
    ------
    AccessRefusedError
        At once, since every further block would be refused too.
    TargetFullError
        No space is left where blocks are written.
    TooManyMissingError
        More chunks are missing than the rules allow.
    ClusterLostError
        The scheduler is gone.
    """
    window = _Window(client, report, on_progress or (lambda _: None), rules or Rules())
    first = 0
    for tasks in stages:
        if report.failures:
            break
        window.run(tasks, first)
        first += len(tasks)
    report.seconds = time.perf_counter() - window.started
    return report


@dataclass(slots=True)
class _Submitted:
    """A block that the scheduler has."""

    number: int
    task: BlockTask
    attempt: int
    # Workers that died while they had it.
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class _Lost:
    """An attempt that ended because workers did."""

    deaths: int
    last: str


@dataclass(slots=True)
class _Window:
    """The blocks of one stage that are in the scheduler, and those that wait for another attempt."""

    client: Client
    report: RunReport
    on_progress: Callable[[RunReport], None]
    rules: Rules
    started: float = field(default_factory=time.perf_counter)
    run_id: str = field(default_factory=lambda: uuid4().hex)
    submitted: dict[str, list[_Submitted]] = field(default_factory=dict)
    threads: int = 1
    left: int = 0
    block_s: float = math.inf
    waiting: list[tuple[float, int, _Submitted]] = field(default_factory=list)
    # Blocks whose workers died.
    suspects: deque[_Submitted] = field(default_factory=deque)
    # When the scheduler was last asked for its workers.
    asked: float = -math.inf
    # When it was last known to have one.
    manned: float = field(default_factory=time.monotonic)

    def run(self, tasks: Sequence[BlockTask], first: int) -> None:
        """Run a stage."""
        self._check_missing()  # earlier calls may have been allowed more
        numbers = self._todo(first, len(tasks))
        self.left = len(numbers)
        fresh = (_Submitted(first + index, tasks[index], 1) for index in numbers)
        running = as_completed(loop=self.client.loop)
        try:
            while True:
                if self._is_to_ask():
                    self._ask()
                for batch in islice(self._batches(fresh), max(0, self.size - len(self.submitted))):
                    running.add(self._submit(batch))
                if self.submitted:
                    if self._result_is_there(running):
                        self._take(next(running), running)
                elif self.waiting:
                    time.sleep(max(0.0, self.waiting[0][0] - time.monotonic()))
                else:
                    return
        except BaseException:
            with suppress(Exception):  # a client that is closed
                self.client.cancel(list(running.futures), force=True)
            raise

    @property
    def size(self) -> int:
        """Tasks that the scheduler may know of at a time."""
        return max(4, WINDOW_PER_THREAD * self.threads)

    def _result_is_there(self, running: as_completed) -> bool:
        """Wait for a result, and return True; return False when another step is due first."""
        while not running.has_ready():
            with running.thread_condition:
                running.thread_condition.wait(LOOK_S)
            if self.client.status != "running" and not running.has_ready():
                raise ClusterLostError(LOST)
            self.rules.check()
            if self._is_to_ask() or (self.waiting and self.waiting[0][0] <= time.monotonic()):
                return running.has_ready()  # type: ignore[no-any-return]
        return True

    def _is_to_ask(self) -> bool:
        ask_s: float = config.get("run.ask_s")
        return time.monotonic() - self.asked > ask_s

    def _ask(self) -> None:
        """Ask the scheduler how many threads there are."""
        with self._asking():
            identity = self.client.sync(self.client.scheduler.identity, n_workers=0, callback_timeout=SILENCE_S)
        self.asked = time.monotonic()
        self.threads = int(identity["total_threads"])
        self.manned = self.asked if self.threads else self.manned
        if self.asked - self.manned > config.get("run.no_worker_s"):
            minutes = config.get("run.no_worker_s") / 60
            words = job_details(self.client.cluster)
            raise ClusterLostError(
                f"The cluster has had no worker for {minutes:.0f} minutes. Finished blocks are kept; run the "
                "same command again to resume." + (f"\n{words}" if words else "")
            )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Raise ClusterLostError if the client has lost its scheduler."""
        try:
            yield
        except Exception as error:
            # dask's own CommClosedError and TimeoutError are OSErrors.
            if isinstance(error, OSError) or self.client.status in ("closing", "closed"):
                raise ClusterLostError(LOST) from error
            raise

    def show(self) -> None:
        """Call the progress callback."""
        self.report.seconds = time.perf_counter() - self.started
        self.on_progress(self.report)

    def _todo(self, first: int, count: int) -> Sequence[int]:
        if self.rules.todo is None:
            return range(count)
        return np.flatnonzero(self.rules.todo[first : first + count]).tolist()

    def _batches(self, fresh: Iterator[_Submitted]) -> Iterator[list[_Submitted]]:
        """Yield batches of blocks to submit: first those that were tried before, each alone, then new ones."""
        while True:
            if self.suspects and self._may_suspect():
                yield [self.suspects.popleft()]
                continue
            if self.waiting and self.waiting[0][0] <= time.monotonic():
                yield [heapq.heappop(self.waiting)[2]]
                continue
            # So many that their task is worth its scheduling, and that none is left over for one thread in the end.
            most = min(config.get("run.batch_blocks"), self.left // self.size)
            most = min(most, int(BATCH_S / self.block_s)) if self.block_s else most
            batch = list(islice(fresh, max(1, most)))
            self.left -= len(batch)
            if not batch:
                return
            yield batch

    def _may_suspect(self) -> bool:
        """Return True if another block whose workers died may be tried: few at a time, apart from each other."""
        under_way = sum(batch[0].deaths > 0 for batch in self.submitted.values())
        return under_way < max(1, self.threads // 4)

    def _submit(self, batch: list[_Submitted]) -> Future:
        # Up to the first dash a key is its group's name, which the scheduler and the dashboard keep for ever; the id
        # keeps a run apart from another of the same array on the same cluster.
        doing, *where = batch[0].task.name.rsplit(maxsplit=3)
        tries = f"attempt {batch[0].attempt}" + (f" after {batch[0].deaths} deaths" if batch[0].deaths else "")
        key = f"{doing}-{' '.join(where)}, block {batch[0].number}, {tries}, {self.run_id}"
        blocks = [(self.rules.wrap(block.task, block.number), block.number, block.attempt) for block in batch]
        with self._asking():
            future = self.client.submit(
                run_batch, blocks, self.rules.records, self.rules.max_requests, key=key, pure=False
            )
        self.submitted[future.key] = batch
        return future

    def _take(self, future: Future, running: as_completed) -> None:
        results = self._results(future)
        if results is None:
            running.add(future)
            self.rules.check()
            return
        batch = self.submitted.pop(future.key)
        future.release()
        # Of a batch that got lost with its worker each block is done by itself: one of them may be the reason.
        of_blocks = results if isinstance(results, list) else [results] * len(batch)
        for block, result in zip(batch, of_blocks, strict=False):
            if isinstance(result, BlockResult):
                self._done(block, result)
            elif isinstance(result, _Lost):
                self._lost(block, result)
            else:
                self._failed(block, result)
            self.show()
        self.rules.check()

    def _results(self, future: Future) -> list[BlockResult | BlockError] | BlockError | _Lost | None:
        """Return the results of a batch; None if dask computes it again because its worker died."""
        try:
            results: list[BlockResult | BlockError] = future.result(timeout=RESULT_S)
            self.manned = time.monotonic()
            return results
        except (CancelledError, Exception) as error:  # of dask's own: a killed worker, a result that got lost
            if self.client.status != "running":
                raise ClusterLostError(LOST) from error
            if isinstance(error, KilledWorker):
                return _Lost(error.allowed_failures + 1, error.last_worker.address)
            if isinstance(error, CancelledError):
                return _Lost(1, f"{type(error).__name__}: {error}")
            if isinstance(error, TimeoutError) and future.status != "error":
                return None
            return BlockError(f"{type(error).__name__}: {error}", "", "passing")

    def _done(self, block: _Submitted, result: BlockResult) -> None:
        report = self.report
        report.done += 1
        # A mean of the last few; the first one counts whole, and may have opened volumes and stores.
        self.block_s = result.seconds if self.block_s == math.inf else 0.8 * self.block_s + 0.2 * result.seconds
        report.written_bytes += result.written_bytes
        report.counts.add(result.counts)
        report.counts_of.setdefault(block.task.volume, ReadCounts()).add(result.counts)
        self._check_missing()

    def _check_missing(self) -> None:
        check_missing(self.report, self.rules.most_missing)

    def _failed(self, block: _Submitted, result: BlockError) -> None:
        if result.outcome == "refused":
            raise AccessRefusedError(result.message)
        if result.outcome == "full":
            raise TargetFullError(
                f"No space is left: {result.reason}. {self.report.done} of {self.report.blocks} blocks are written; "
                "free some space and run the same command again to resume."
            )
        if result.outcome == "passing" and block.attempt < config.get("run.attempts"):
            self.report.repeats += 1
            pauses_s = config.get("run.pauses_s")
            pause = pauses_s[min(block.attempt, len(pauses_s)) - 1] * random.uniform(0.5, 1.5)
            again = _Submitted(block.number, block.task, block.attempt + 1)
            heapq.heappush(self.waiting, (time.monotonic() + pause, block.number, again))
            return
        self._set_aside(block, result.reason)

    def _lost(self, block: _Submitted, lost: _Lost) -> None:
        """Repeat a block whose workers died, up to `run.worker_deaths` deaths."""
        deaths = block.deaths + lost.deaths
        if deaths < config.get("run.worker_deaths"):
            self.suspects.append(replace(block, deaths=deaths))
            return
        self._set_aside(
            block, f"its worker died {deaths} times; the last: {lost.last}. Is a worker's memory enough for it "
            "(worker_memory)? The workers' logs may say why they died.",
        )  # fmt: skip

    def _set_aside(self, block: _Submitted, reason: str) -> None:
        self.report.failures += 1
        if len(self.report.failed) < FAILURES_KEPT:
            self.report.failed.append(FailedBlock(block.task.name, reason))
        self.rules.on_failure(block.number, block.task, reason, block.attempt)


def check_missing(report: RunReport, most: float | None) -> None:
    """Raise `TooManyMissingError` if more than `most` storage chunks are missing."""
    counts = report.counts
    if most is None or counts.missing <= most:
        return
    # Where the records of earlier calls are incomplete, no key is known.
    first = f"; the first: {counts.missing_keys[0]}" if counts.missing_keys else ""
    raise TooManyMissingError(
        f"{counts.missing:,} storage chunks of the source do not exist, and max_missing (--max-missing) allows "
        f"{most:,.0f}{first}. Finished blocks are kept; to resume, allow more."
    )
