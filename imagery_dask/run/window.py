"""Run blocks on a dask cluster, of which the scheduler has a bounded number at a time; repeat those that fail."""

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
from imagery_dask.errors import (
    AccessRefusedError,
    ClusterLostError,
    SourceGoneError,
    TargetFullError,
    TooManyMissingError,
)
from imagery_dask.records.runs import Records
from imagery_dask.run.block import BlockError, BlockResult, BlockTask, run_batch
from imagery_dask.run.report import FailedBlock, RunReport
from imagery_dask.run.silent_workers import SilentWorkers
from imagery_dask.sources import ReadCounts

__all__ = ["WINDOW_PER_THREAD", "Rules", "Stages", "check_missing", "run_blocks"]

# Tasks in the scheduler per thread of the cluster: enough that no thread waits for the driver.
WINDOW_PER_THREAD = 3
# Failed blocks that a report lists.
FAILURES_KEPT = 1000
# Seconds of work in a task, if blocks are short: each task costs driver and scheduler some milliseconds.
BATCH_S = 1.0
# Seconds that a scheduler has to answer. If its process dies, the connection ends at once.
SILENCE_S = 120.0
# Seconds to wait for a finished result; if its worker died before the result was fetched, dask computes it again.
RESULT_S = 10.0
# Interval at which the wait for a result checks for other work.
LOOK_S = 0.1

# Blocks of each stage, by number, made when they are indexed. A stage begins when the one before it has ended.
Stages = Iterable[Sequence[BlockTask]]


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits and callbacks of a run.

    Parameters
    ----------
    records : Records or None
        Folder of the receipts.
    todo : ndarray of bool or None
        True for blocks to run, by number; None runs all.
    most_missing : float or None
        Number of missing storage chunks above which the run ends.
    max_requests : int or None
        Limit of requests in flight to one server, from all workers together.
    check : callable
        Called after every block; an exception that it raises ends the run.
    wrap : callable
        Called with the task and the number of a block; returns the task to submit.
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
    """Run blocks on a cluster, with a bounded number of them in the scheduler at a time.

    Parameters
    ----------
    client : distributed.Client
        Client of the cluster.
    stages : iterable of sequences of BlockTask
        Blocks, made when they are submitted. A stage begins when the one before it has ended. It does not run
        if a block of that failed, since it would read what was not written.
    report : RunReport
        Report so far; updated in place.
    on_progress : callable, optional
        Called with the report after every block.
    rules : Rules, optional
        Limits and callbacks.

    Returns
    -------
    RunReport
        The updated report. If blocks failed, the other blocks of their stage were run.

    Raises
    ------
    AccessRefusedError
        If the source refuses access to a block; further blocks would be refused as well.
    SourceGoneError
        If the source has vanished.
    TargetFullError
        If no space is left at the target.
    TooManyMissingError
        If more chunks are missing than the rules allow.
    ClusterLostError
        If the scheduler is gone, or has had no worker for `run.no_worker_s` seconds.
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
    """A block that was submitted, or will be."""

    number: int
    task: BlockTask
    attempt: int
    # Number of workers that died while they had it.
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class _Lost:
    """An attempt that ended because workers died."""

    deaths: int
    # Address of the last worker.
    last: str


@dataclass(slots=True)
class _Window:
    """The blocks of a stage that are in the scheduler, and those that wait for another attempt."""

    client: Client
    report: RunReport
    on_progress: Callable[[RunReport], None]
    rules: Rules
    started: float = field(default_factory=time.perf_counter)
    run_id: str = field(default_factory=lambda: uuid4().hex)
    # Batches in the scheduler, by key.
    submitted: dict[str, list[_Submitted]] = field(default_factory=dict)
    # Threads of the cluster.
    threads: int = 1
    # Blocks of the stage that were not submitted yet.
    left: int = 0
    # Moving average of the seconds of a block.
    block_s: float = math.inf
    # Heap of blocks to repeat, with the time and the number.
    waiting: list[tuple[float, int, _Submitted]] = field(default_factory=list)
    # Blocks whose workers died.
    suspects: deque[_Submitted] = field(default_factory=deque)
    # Time at which the scheduler was last asked for its workers.
    asked: float = -math.inf
    # Time at which it last had a worker.
    last_manned: float = field(default_factory=time.monotonic)
    silent: SilentWorkers = field(init=False)

    def __post_init__(self) -> None:
        self.silent = SilentWorkers(self.client)

    def run(self, tasks: Sequence[BlockTask], first: int) -> None:
        """Run a stage."""
        self._check_missing()  # earlier calls may have had a higher limit
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
                    if self._wait_for_result(running):
                        self._take(next(running), running)
                elif self.waiting:
                    time.sleep(max(0.0, self.waiting[0][0] - time.monotonic()))
                else:
                    return
        except BaseException:
            with suppress(Exception):  # the client is closed
                self.client.cancel(list(running.futures), force=True)
            raise

    @property
    def size(self) -> int:
        """Number of tasks that may be in the scheduler at a time."""
        return max(4, WINDOW_PER_THREAD * self.threads)

    def _wait_for_result(self, running: as_completed) -> bool:
        """Wait for a result and return True; return False if something else is due first."""
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
        """Ask the scheduler for the number of threads, and at longer intervals for the workers' heartbeats."""
        is_to_look = self.silent.is_to_look()
        with self._asking():
            identity = self.client.sync(
                self.client.scheduler.identity, n_workers=-1 if is_to_look else 0, callback_timeout=SILENCE_S
            )
        self.asked = time.monotonic()
        if is_to_look:
            silent = self.silent.look(identity["workers"])
            if silent != self.report.silent:
                self.report.silent = silent
                self.show()
        self.threads = int(identity["total_threads"])
        self.last_manned = self.asked if self.threads else self.last_manned
        if self.asked - self.last_manned > config.get("run.no_worker_s"):
            minutes = config.get("run.no_worker_s") / 60
            details = job_details(self.client.cluster)
            raise ClusterLostError(
                f"The cluster has had no worker for {minutes:.0f} minutes. Finished blocks are kept; run the "
                "same command again to resume." + (f"\n{details}" if details else "")
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
        """Yield batches of blocks to submit: first blocks to repeat, each alone, then new ones."""
        while True:
            if self.suspects and self._may_suspect():
                yield [self.suspects.popleft()]
                continue
            if self.waiting and self.waiting[0][0] <= time.monotonic():
                yield [heapq.heappop(self.waiting)[2]]
                continue
            # Large enough that a task is worth its scheduling, but small enough that threads end at the same time.
            most = min(config.get("run.batch_blocks"), self.left // self.size)
            most = min(most, int(BATCH_S / self.block_s)) if self.block_s else most
            batch = list(islice(fresh, max(1, most)))
            self.left -= len(batch)
            if not batch:
                return
            yield batch

    def _may_suspect(self) -> bool:
        """Return True if another block whose workers died may be submitted: these run few at a time, on few workers."""
        under_way = sum(batch[0].deaths > 0 for batch in self.submitted.values())
        return under_way < max(1, self.threads // 4)

    def _submit(self, batch: list[_Submitted]) -> Future:
        # The part of a key before the first dash names its group, which the scheduler keeps for ever: it has no number.
        # The id distinguishes runs of the same array on one cluster.
        work, *block_words = batch[0].task.name.rsplit(maxsplit=3)
        tries = f"attempt {batch[0].attempt}" + (f" after {batch[0].deaths} deaths" if batch[0].deaths else "")
        key = f"{work}-{' '.join(block_words)}, block {batch[0].number}, {tries}, {self.run_id}"
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
        # If a batch was lost with its worker, each of its blocks is repeated alone, since one of them may be the cause.
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
            self.last_manned = time.monotonic()
            return results
        except (CancelledError, Exception) as error:  # raised by dask: a killed worker, a lost result
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
        # The first block sets the average. It may be slow, since it opens volumes and stores.
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
        if result.outcome in ("passing", "gone") and block.attempt < config.get("run.attempts"):
            self.report.repeats += 1
            pauses_s = config.get("run.pauses_s")
            pause = pauses_s[min(block.attempt, len(pauses_s)) - 1] * random.uniform(0.5, 1.5)
            again = _Submitted(block.number, block.task, block.attempt + 1)
            heapq.heappush(self.waiting, (time.monotonic() + pause, block.number, again))
            return
        if result.outcome == "gone":  # further blocks would be filled with zeros
            raise SourceGoneError(result.message)
        self._set_aside(block, result.reason)

    def _lost(self, block: _Submitted, lost: _Lost) -> None:
        """Repeat a block whose workers died, up to `run.worker_deaths` deaths."""
        deaths = block.deaths + lost.deaths
        if deaths < config.get("run.worker_deaths"):
            self.suspects.append(replace(block, deaths=deaths))
            return
        self._set_aside(
            block, f"its worker died {deaths} times; the last: {lost.last}. The block may need more memory than a "
            "worker has (worker_memory); see also the logs of the workers.",
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
    # No key is known if the records of earlier calls are incomplete.
    first = f"; the first: {counts.missing_keys[0]}" if counts.missing_keys else ""
    raise TooManyMissingError(
        f"{counts.missing:,} storage chunks of the source do not exist, and max_missing (--max-missing) allows "
        f"{most:,.0f}{first}. Finished blocks are kept; to resume, allow more."
    )
