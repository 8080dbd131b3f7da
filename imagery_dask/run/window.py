"""Run blocks on workers, which have a bounded number of them at a time; repeat those that fail."""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from imagery_dask.cluster import WorkDone
from imagery_dask.config import config
from imagery_dask.errors import (
    AccessRefusedError,
    SourceGoneError,
    TargetFullError,
    TooManyMissingError,
)
from imagery_dask.records.runs import Records
from imagery_dask.run.block import BlockError, BlockResult, BlockTask, run_batch
from imagery_dask.run.report import FailedBlock, RunReport
from imagery_dask.run.workers import Tasks, Workers, WorkersDied
from imagery_dask.sources import ReadCounts

__all__ = ["WINDOW_PER_THREAD", "Rules", "Stages", "check_missing", "run_blocks"]

# Tasks submitted per thread of the workers, enough that no thread waits for the driver; and where tasks are long.
WINDOW_PER_THREAD, WINDOW_OF_LONG = 3, 2
# Tasks submitted at a time: a scheduler with a thousand new tasks in its queue hears no heartbeats meanwhile.
SUBMIT_AT_ONCE = 16
# Failed blocks that a report lists.
FAILURES_KEPT = 1000
# Seconds of work in a task, if blocks are short and threads are few: each task costs driver and scheduler milliseconds.
BATCH_S = 1.0
# Blocks of a stage that are looked up together.
LOOK_AHEAD = 2**16

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
    on_found : callable
        Called with the number and the task of a block that was done, and what it has found (`Written.found`).
    on_failure : callable
        Called with the number, the task, the reason and the attempts of a block that failed.
    """

    records: Records | None = None
    todo: NDArray[np.bool_] | None = None
    most_missing: float | None = None
    max_requests: int | None = None
    check: Callable[[], None] = lambda: None
    wrap: Callable[[BlockTask, int], BlockTask] = lambda task, number: task
    on_found: Callable[[int, BlockTask, Any], None] = lambda number, task, found: None
    on_failure: Callable[[int, BlockTask, str, int], None] = lambda number, task, reason, attempts: None


def run_blocks(
    workers: Workers,
    stages: Stages,
    report: RunReport,
    on_progress: Callable[[RunReport], None] | None = None,
    rules: Rules | None = None,
) -> RunReport:
    """Run blocks on workers, which have a bounded number of them at a time.

    Parameters
    ----------
    workers : Workers
        Threads of this process, or the workers of a cluster.
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
    window = _Window(workers.tasks(), report, on_progress or (lambda _: None), rules or Rules())
    first = 0
    for tasks in stages:
        if report.failures:
            break
        window.run(tasks, first)
        first += len(tasks)
    report.seconds = time.perf_counter() - window.started
    if window.tasks.note:
        report.notes.append(f"Workers: {window.tasks.note}")
    return report


@dataclass(slots=True)
class _Submitted:
    """A block that was submitted, or will be."""

    number: int
    task: BlockTask
    attempt: int
    # Number of workers that died while they had it.
    deaths: int = 0


@dataclass(slots=True)
class _Window:
    """The blocks of a stage that are submitted, and those that wait for another attempt."""

    tasks: Tasks
    report: RunReport
    on_progress: Callable[[RunReport], None]
    rules: Rules
    started: float = field(default_factory=time.perf_counter)
    run_id: str = field(default_factory=lambda: uuid4().hex)
    # Batches that were submitted, by key.
    submitted: dict[str, list[_Submitted]] = field(default_factory=dict)
    # Tasks that run at once.
    threads: int = 1
    # Blocks of the stage that were not submitted yet.
    left: int = 0
    # Blocks of the stage that were not finished yet.
    unfinished: int = 0
    # Moving average of the seconds of a block.
    block_s: float = math.inf
    # Heap of blocks to repeat, with the time and the number.
    waiting: list[tuple[float, int, _Submitted]] = field(default_factory=list)
    # Blocks whose workers died.
    suspects: deque[_Submitted] = field(default_factory=deque)

    def run(self, tasks: Sequence[BlockTask], first: int) -> None:
        """Run a stage."""
        self._check_missing()  # earlier calls may have had a higher limit
        todo = None if self.rules.todo is None else self.rules.todo[first : first + len(tasks)]
        self.left = self.unfinished = len(tasks) if todo is None else int(np.count_nonzero(todo))
        numbers = range(len(tasks)) if todo is None else _true_in(todo)
        fresh = (_Submitted(first + index, tasks[index], 1) for index in numbers)
        try:
            while True:
                self._look()
                for batch in islice(self._batches(fresh), self._room()):
                    self._submit(batch)
                if self.submitted:
                    if self.tasks.wait():
                        self._take()
                    self.rules.check()
                elif self.waiting:
                    time.sleep(max(0.0, self.waiting[0][0] - time.monotonic()))
                else:
                    return
        except BaseException:
            with suppress(Exception):  # the client is closed
                self.tasks.cancel()
            raise

    @property
    def size(self) -> int:
        """Number of tasks that may be submitted at a time."""
        if self.block_s == math.inf:  # tasks of one block, until the first has ended
            return max(4, self.threads)
        return max(4, (WINDOW_OF_LONG if self.batch_s > BATCH_S else WINDOW_PER_THREAD) * self.threads)

    @property
    def batch_s(self) -> float:
        """Seconds of work in a task: driver and scheduler have so many tasks in a second, whatever the threads."""
        tasks_per_s: float = config.get("run.tasks_per_s")
        return max(BATCH_S, self.threads / tasks_per_s)

    def _room(self) -> int:
        """Return the number of tasks to submit now."""
        return min(SUBMIT_AT_ONCE, max(0, self.size - len(self.submitted)))

    def _look(self) -> None:
        """Look after the workers, and show which of them are silent."""
        report = self.report
        self.threads = self.tasks.look(WorkDone(
            report.done - report.before, self.unfinished, report.counts.requests, report.counts.throttled
        ))  # fmt: skip
        if self.tasks.silent != self.report.silent:
            self.report.silent = self.tasks.silent
            self.show()

    def show(self) -> None:
        """Call the progress callback."""
        self.report.seconds = time.perf_counter() - self.started
        self.on_progress(self.report)

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
            most = min(most, int(self.batch_s / self.block_s)) if self.block_s else most
            batch = list(islice(fresh, max(1, most)))
            self.left -= len(batch)
            if not batch:
                return
            yield batch

    def _may_suspect(self) -> bool:
        """Return True if another block whose workers died may be submitted: these run few at a time, on few workers."""
        under_way = sum(batch[0].deaths > 0 for batch in self.submitted.values())
        return under_way < max(1, self.threads // 4)

    def _submit(self, batch: list[_Submitted]) -> None:
        # The part of a key before the first dash names its group, which dask's scheduler keeps for ever: it has no
        # number.
        # The id distinguishes runs of the same array on one cluster.
        work, *block_words = batch[0].task.name.rsplit(maxsplit=3)
        tries = f"attempt {batch[0].attempt}" + (f" after {batch[0].deaths} deaths" if batch[0].deaths else "")
        key = f"{work}-{' '.join(block_words)}, block {batch[0].number}, {tries}, {self.run_id}"
        blocks = [(self.rules.wrap(block.task, block.number), block.number, block.attempt) for block in batch]
        self.submitted[key] = batch
        self.tasks.submit(key, run_batch, blocks, self.rules.records, self.rules.max_requests)

    def _take(self) -> None:
        taken = self.tasks.take()
        if taken is None:
            return
        key, result = taken
        batch = self.submitted.pop(key)
        # If a batch was lost with its worker, each of its blocks is repeated alone, since one of them may be the cause.
        of_blocks = result if isinstance(result, list) else [result] * len(batch)
        for block, of_block in zip(batch, of_blocks, strict=False):
            if isinstance(of_block, BlockResult):
                self._done(block, of_block)
            elif isinstance(of_block, BlockError):
                self._failed(block, of_block)
            elif isinstance(of_block, WorkersDied):
                self._lost(block, of_block)
            else:
                self._failed(block, BlockError(f"{type(of_block).__name__}: {of_block}", "", "passing"))
            self.show()

    def _done(self, block: _Submitted, result: BlockResult) -> None:
        report = self.report
        report.done += 1
        self.unfinished -= 1
        # The first block sets the average. It may be slow, since it opens volumes and stores.
        self.block_s = result.seconds if self.block_s == math.inf else 0.8 * self.block_s + 0.2 * result.seconds
        report.written_bytes += result.written_bytes
        report.counts.add(result.counts)
        report.counts_of.setdefault(block.task.volume, ReadCounts()).add(result.counts)
        self.rules.on_found(block.number, block.task, result.found)
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

    def _lost(self, block: _Submitted, lost: WorkersDied) -> None:
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
        self.unfinished -= 1
        if len(self.report.failed) < FAILURES_KEPT:
            self.report.failed.append(FailedBlock(block.task.name, reason))
        self.rules.on_failure(block.number, block.task, reason, block.attempt)


def _true_in(mask: NDArray[np.bool_]) -> Iterator[int]:
    """Yield the indices of a mask where it is True; ten million of them would fill half a gigabyte."""
    for start in range(0, len(mask), LOOK_AHEAD):
        yield from (start + np.flatnonzero(mask[start : start + LOOK_AHEAD])).tolist()


def check_missing(report: RunReport, most: float | None) -> None:
    """Raise `TooManyMissingError` if more than `most` storage chunks are missing."""
    counts = report.counts
    if most is None or counts.missing <= most:
        return
    unsaid = f" or are refused (HTTP 403 is the answer to both for {counts.refused_or_absent:,} of them)"
    # No key is known if the records of earlier calls are incomplete.
    first = f"; the first: {counts.missing_keys[0]}" if counts.missing_keys else ""
    raise TooManyMissingError(
        f"{counts.missing:,} storage chunks of the source do not exist{unsaid if counts.refused_or_absent else ''}, "
        f"and max_missing (--max-missing) allows {most:,.0f}{first}. Finished blocks are kept; to resume, allow more."
    )
