"""The contract of `Workers`: what a run of blocks promises, whatever runs them."""

from __future__ import annotations

import errno
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.settings import Configure

from imagery_dask.errors import (
    AccessRefusedError,
    MissingChunkError,
    SourceError,
    SourceGoneError,
    TargetFullError,
    TooManyMissingError,
)
from imagery_dask.records.runs import Records
from imagery_dask.run import Rules, RunReport, Workers, Written, run_blocks
from imagery_dask.run.workers import WorkersDied
from imagery_dask.sources.requests.counts import active_counts
from imagery_dask.sources.requests.throttle import request_slots
from imagery_dask.storage.atomic_files import Files

BLOCKS = 40
THREADS = 2
SERVER = "https://nowhere.test"


class Log:
    """What blocks have done, in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun: list[int] = []
        self.calls: Counter[int] = Counter()
        self.at_once = self.most_at_once = 0

    def begin(self, number: int) -> int:
        """Note that a block begins; return its how many-eth attempt this is."""
        with self.lock:
            self.begun.append(number)
            self.calls[number] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            return self.calls[number]

    def end(self) -> None:
        """Note that a block has ended."""
        with self.lock:
            self.at_once -= 1


# By a number, since tasks are pickled on their way to the workers of a cluster.
LOGS: dict[int, Log] = {}
_numbers = count()


@dataclass(frozen=True)
class Block:
    """A block that acts as its function says."""

    log: int
    number: int
    act: Callable[[int, int], None]

    volume, hashes_files = "image", False

    @property
    def name(self) -> str:
        return f"read+write image z0 y0 x{self.number}"

    def __call__(self) -> Written:
        attempt = LOGS[self.log].begin(self.number)
        try:
            self.act(self.number, attempt)
        finally:
            LOGS[self.log].end()
        return Written(8, 8, bytes(16))

    def stored(self) -> bytes:
        return b""

    def expected(self) -> bytes:
        return b""


class Blocks(Sequence[Any]):
    """Blocks, of which it is noted which were made."""

    def __init__(self, log: int, act: Callable[[int, int], None], count: int = BLOCKS) -> None:
        self._log, self._act, self._count = log, act, count
        self.made: list[int] = []

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        self.made.append(number)
        return Block(self._log, number, self._act)


def nothing(number: int, attempt: int) -> None:
    pass


def fails_at_first(number: int, attempt: int) -> None:
    if number % 4 == 0 and attempt < 3:
        raise SourceError("not now")


def fails_for_ever(number: int, attempt: int) -> None:
    if number == 3:
        raise SourceError("never")
    if number == 5:
        raise MissingChunkError("lasting")


def is_refused(number: int, attempt: int) -> None:
    if number == 3:
        raise AccessRefusedError("no entry")


def is_full(number: int, attempt: int) -> None:
    if number == 3:
        raise OSError(errno.ENOSPC, "No space left on device")


def is_gone(number: int, attempt: int) -> None:
    if number == 3:
        raise SourceGoneError("vanished")


def misses(number: int, attempt: int) -> None:
    counts = active_counts()
    assert counts is not None
    counts.missing += 1
    counts.missing_keys.append(f"chunk-{number}")


def asks(number: int, attempt: int) -> None:
    with request_slots(SERVER):
        with SLOTS.lock:
            SLOTS.at_once += 1
            SLOTS.most_at_once = max(SLOTS.most_at_once, SLOTS.at_once)
        threading.Event().wait(0.002)
        SLOTS.end()


SLOTS = Log()


class WorkersContract(ABC):
    """Tests of one implementation; a subclass makes two workers of this process."""

    @pytest.fixture
    @abstractmethod
    def workers(self) -> Workers:
        """Return workers that run two tasks at once."""

    @pytest.fixture(autouse=True)
    def _single_blocks(self, configure: Configure) -> None:
        # How many blocks share a task depends on the speed of the machine.
        configure("run.batch_blocks", 1)

    @pytest.fixture
    def number(self) -> int:
        number = next(_numbers)
        LOGS[number] = Log()
        return number

    @pytest.fixture
    def log(self, number: int) -> Log:
        return LOGS[number]

    @pytest.fixture
    def records(self, tmp_path: Path) -> Records:
        records = Records(Files.at(tmp_path / "records"), "run")
        records.put("plan.json", {})
        return records

    def test_each_block_runs_once_and_has_a_receipt(
        self, workers: Workers, number: int, log: Log, records: Records
    ) -> None:
        seen: list[int] = []
        rules = Rules(records=records)
        report = run_blocks(
            workers, [Blocks(number, nothing)], RunReport(BLOCKS), lambda report: seen.append(report.done), rules
        )
        assert report.ok
        assert (report.written_bytes, report.repeats, report.failures) == (8 * BLOCKS, 0, 0)
        assert seen == list(range(1, BLOCKS + 1))
        assert sorted(log.begun) == sorted(records.receipts()["block"].tolist()) == list(range(BLOCKS))
        assert log.most_at_once <= THREADS

    def test_only_blocks_that_are_to_be_done_are_made(self, workers: Workers, number: int, log: Log) -> None:
        todo = np.zeros(BLOCKS, bool)
        todo[[2, 30]] = True
        blocks = Blocks(number, nothing)
        run_blocks(workers, [blocks], RunReport(2), rules=Rules(todo=todo))
        assert blocks.made == sorted(log.begun) == [2, 30]

    @pytest.mark.parametrize("blocks_of_a_task", [1, 8])
    def test_a_bounded_number_of_blocks_waits(
        self, workers: Workers, number: int, configure: Configure, blocks_of_a_task: int
    ) -> None:
        configure("run.batch_blocks", blocks_of_a_task)
        blocks, ahead = Blocks(number, nothing, 20 * BLOCKS), []

        def note(report: RunReport) -> None:
            ahead.append(len(blocks.made) - report.done)

        assert run_blocks(workers, [blocks], RunReport(len(blocks)), note).ok
        assert 1 <= max(ahead) <= blocks_of_a_task * max(4, 3 * THREADS)

    def test_failed_attempts_are_repeated(self, workers: Workers, number: int, log: Log) -> None:
        report = run_blocks(workers, [Blocks(number, fails_at_first)], RunReport(BLOCKS))
        assert (report.ok, report.repeats) == (True, 2 * BLOCKS // 4)
        assert log.calls == {block: 3 if block % 4 == 0 else 1 for block in range(BLOCKS)}

    def test_blocks_that_fail_are_set_aside_and_no_later_stage_begins(
        self, workers: Workers, number: int, log: Log, configure: Configure
    ) -> None:
        failed: list[tuple[int, str, int]] = []
        rules = Rules(on_failure=lambda block, task, reason, attempts: failed.append((block, reason, attempts)))
        later = Blocks(number, nothing)
        report = run_blocks(workers, [Blocks(number, fails_for_ever), later], RunReport(2 * BLOCKS), rules=rules)
        assert (report.done, report.failures, report.repeats) == (BLOCKS - 2, 2, 3)
        assert sorted(failed) == [(3, "SourceError: never", 4), (5, "MissingChunkError: lasting", 1)]
        assert (log.calls[3], log.calls[5], later.made) == (4, 1, [])

    def test_a_stage_begins_when_the_one_before_it_has_ended(self, workers: Workers, number: int, log: Log) -> None:
        first, second = Blocks(number, nothing, 20), Blocks(number, nothing, 10)
        done: list[int] = []

        def note(report: RunReport) -> None:
            done.append(report.done)
            assert not second.made or report.done >= 20

        assert run_blocks(workers, [first, second], RunReport(30), note).ok
        assert (done[-1], len(log.begun)) == (30, 30)

    @pytest.mark.parametrize(
        ("act", "error", "message", "attempts"),
        [
            (is_refused, AccessRefusedError, "no entry", 1),
            (is_full, TargetFullError, "No space is left.*run the same command again", 1),
            (is_gone, SourceGoneError, "vanished", 4),
        ],
    )
    def test_errors_that_concern_all_blocks_end_the_run(
        self, workers: Workers, number: int, log: Log, act: Any, error: type[Exception], message: str, attempts: int
    ) -> None:
        blocks = Blocks(number, act, 100 * BLOCKS)
        with pytest.raises(error, match=message):
            run_blocks(workers, [blocks], RunReport(len(blocks)))
        assert log.calls[3] == attempts
        assert attempts > 1 or len(log.begun) < len(blocks)

    def test_too_many_missing_chunks_end_the_run(
        self, workers: Workers, number: int, log: Log, records: Records
    ) -> None:
        blocks, rules = Blocks(number, misses), Rules(records=records, most_missing=4)
        with pytest.raises(TooManyMissingError, match="5 storage chunks .* allows 4; the first: "):
            run_blocks(workers, [blocks], RunReport(BLOCKS), rules=rules)
        assert 5 <= len(log.begun) < BLOCKS

    def test_an_interrupt_drops_what_has_not_begun_and_the_rest_is_done_by_the_next_run(
        self, workers: Workers, number: int, log: Log, records: Records
    ) -> None:
        def interrupt(report: RunReport) -> None:
            if report.done == 7:
                raise KeyboardInterrupt

        blocks, rules = Blocks(number, nothing), Rules(records=records)
        with pytest.raises(KeyboardInterrupt):
            run_blocks(workers, [blocks], RunReport(BLOCKS), interrupt, rules)
        self.settle(log)
        assert 7 <= len(log.begun) <= len(blocks.made) < BLOCKS
        written = records.receipts()["block"].tolist()
        assert sorted(written) == sorted(log.begun)
        todo = np.ones(BLOCKS, bool)
        todo[written] = False
        run_blocks(workers, [blocks], RunReport(BLOCKS), rules=Rules(records=records, todo=todo))
        assert sorted(records.receipts()["block"].tolist()) == sorted(log.begun) == list(range(BLOCKS))

    @abstractmethod
    def settle(self, log: Log) -> None:
        """Wait until no block is under way: those of a cluster may be after a run has ended."""

    def test_the_check_ends_the_run(self, workers: Workers, number: int, log: Log) -> None:
        def check() -> None:
            if len(log.begun) > 5:
                raise RuntimeError("the lease is lost")

        with pytest.raises(RuntimeError, match="lease"):
            run_blocks(workers, [Blocks(number, nothing)], RunReport(BLOCKS), rules=Rules(check=check))
        assert len(log.begun) < BLOCKS

    def test_requests_in_flight_are_limited(self, workers: Workers, number: int) -> None:
        SLOTS.most_at_once = 0
        assert run_blocks(workers, [Blocks(number, asks)], RunReport(BLOCKS), rules=Rules(max_requests=1)).ok
        assert SLOTS.most_at_once == 1

    def test_tasks_return_their_results_and_errors_by_key(self, workers: Workers) -> None:
        tasks = workers.tasks()
        assert tasks.look() == workers.resources().threads == THREADS
        assert tasks.silent == []
        assert not tasks.wait()
        tasks.submit("six, of this test", divmod, 12, 2)
        tasks.submit("error, of this test", divmod, 12, 0)
        taken: dict[str, Any] = {}
        while len(taken) < 2:
            if tasks.wait() and (result := tasks.take()) is not None:
                taken[result[0]] = result[1]
        assert taken["six, of this test"] == (6, 0)
        error = taken["error, of this test"]
        assert isinstance(error, ZeroDivisionError)
        assert not isinstance(error, WorkersDied)

    def test_a_function_is_called_once_in_each_process(self, workers: Workers) -> None:
        assert list(workers.run(divmod, 7, 2).values()) == [(3, 1)]

    def test_a_task_has_memory(self, workers: Workers) -> None:
        assert workers.fit(2**20) >= 2**20
        assert workers.resources().thread_memory >= 2**20
