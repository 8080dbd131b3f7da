"""Running an export: a bounded window of blocks on a dask cluster, and a report of what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, Protocol
from uuid import uuid4

from distributed import Client, as_completed

from imagery_dask.errors import AccessRefusedError, BlockFailedError
from imagery_dask.sources import ReadCounts, collect_counts

__all__ = ["BlockResult", "BlockTask", "FailedBlock", "RunReport", "run_blocks"]

# Blocks that the scheduler knows of, per thread of the cluster: enough that none waits for the driver.
WINDOW_PER_THREAD = 3
# A block whose worker died is given to another one; failures of the block itself are not repeated here.
FAILURES_KEPT = 1000


class BlockTask(Protocol):
    """One block's work: read, compute, write. Picklable, small, and safe to repeat."""

    @property
    def name(self) -> str:
        """Readable name, shown on the dashboard."""
        ...

    @property
    def volume(self) -> str:
        """Name of what is written, which its counts are kept for."""
        ...

    def __call__(self) -> int:
        """Do the work and return the number of bytes written, uncompressed."""
        ...


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What a worker says of a block that it finished."""

    written_bytes: int
    counts: ReadCounts
    seconds: float


@dataclass(frozen=True, slots=True)
class BlockError:
    """What a worker says of a block that failed, and whether that was because access was refused."""

    reason: str
    message: str
    refused: bool


@dataclass(frozen=True, slots=True)
class FailedBlock:
    """A block that failed, and why."""

    name: str
    reason: str


@dataclass(slots=True)
class RunReport:
    """What became of an export.

    Parameters
    ----------
    blocks : int
        Blocks in all.
    done : int
        Blocks that were written.
    voxels : int
        Voxels in all.
    written_bytes : int
        Bytes of the voxels that were written, uncompressed.
    seconds : float
        Wall time of the blocks.
    counts : ReadCounts
        Storage chunks read and missing, bytes received.
    counts_of : dict of str to ReadCounts
        The same for each volume.
    failed : list of FailedBlock
        The blocks that failed (the first thousand).
    failures : int
        Number of blocks that failed.
    notes : list of str
        What a reader of the report should know, in sentences.
    """

    blocks: int
    done: int = 0
    voxels: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    counts: ReadCounts = field(default_factory=ReadCounts)
    counts_of: dict[str, ReadCounts] = field(default_factory=dict)
    failed: list[FailedBlock] = field(default_factory=list)
    failures: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every block was written."""
        return self.done == self.blocks

    def raise_for_failures(self) -> None:
        """Raise `BlockFailedError` when a block failed."""
        if self.failures:
            first = self.failed[0]
            raise BlockFailedError(
                f"{self.failures} of {self.blocks} blocks failed; {self.done} were written. "
                f"{first.name}: {first.reason}",
                self,
            )

    @property
    def mb_per_s(self) -> float:
        """Voxel bytes written per second of wall time, in units of 10**6 bytes."""
        return self.written_bytes / 1e6 / self.seconds if self.seconds else 0.0


def run_blocks(
    client: Client,
    stages: Iterable[Iterable[BlockTask]],
    blocks: int,
    on_progress: Callable[[RunReport], None] | None = None,
) -> RunReport:
    """Run blocks on a cluster, with no more than a window of them in the scheduler at a time.

    Parameters
    ----------
    client : distributed.Client
        Where to run.
    stages : iterable of iterables of BlockTask
        Blocks, made as they are submitted; never held all at once. A stage begins when the one before it has ended, and
        not at all when a block of that failed: it would read what was not written.
    blocks : int
        How many blocks there are in all stages.
    on_progress : callable, optional
        Called with the report after every block.

    Returns
    -------
    RunReport
        A block that fails is in the report; the others of its stage go on.

    Raises
    ------
    AccessRefusedError
        At once, since every further block would be refused too.
    """
    report = RunReport(blocks)
    started = time.perf_counter()

    def show() -> None:
        report.seconds = time.perf_counter() - started
        if on_progress is not None:
            on_progress(report)

    for tasks in stages:
        if report.failures:
            break
        _run_stage(client, iter(tasks), report, show)
    report.seconds = time.perf_counter() - started
    return report


def _run_stage(client: Client, tasks: Iterator[BlockTask], report: RunReport, show: Callable[[], None]) -> None:
    window = max(4, WINDOW_PER_THREAD * sum(client.nthreads().values()))
    submitted: dict[str, tuple[str, str]] = {}
    numbers = (f"{uuid4().hex[:8]}-{number}" for number in count())

    def submit(task: BlockTask) -> Any:
        # The number keeps a run apart from another of the same array on the same cluster.
        future = client.submit(_run_block, task, key=f"{task.name}-{next(numbers)}", pure=False)
        submitted[future.key] = (task.name, task.volume)
        return future

    running = as_completed(loop=client.loop)
    for task in islice(tasks, window):
        running.add(submit(task))
    try:
        for future in running:
            _record(report, future, *submitted.pop(future.key))
            future.release()
            show()
            for task in islice(tasks, 1):
                running.add(submit(task))
    except BaseException:
        client.cancel(list(running.futures))
        raise


def _run_block(task: BlockTask) -> BlockResult | BlockError:
    started = time.perf_counter()
    try:
        with collect_counts() as counts:
            written = task()
    except Exception as error:
        # A value, not an exception: dask would log a traceback for each, and could not pickle some.
        return BlockError(f"{type(error).__name__}: {error}", str(error), isinstance(error, AccessRefusedError))
    return BlockResult(written, counts, time.perf_counter() - started)


def _record(report: RunReport, future: Any, name: str, volume: str) -> None:
    if future.status == "cancelled":
        result: BlockResult | BlockError = BlockError("CancelledError: the block was cancelled", "", False)
    elif (error := future.exception()) is not None:  # of dask's own: a killed worker, a result that got lost
        result = BlockError(f"{type(error).__name__}: {error}", "", False)
    else:
        result = future.result()
    if isinstance(result, BlockResult):
        report.done += 1
        report.written_bytes += result.written_bytes
        report.counts.add(result.counts)
        report.counts_of.setdefault(volume, ReadCounts()).add(result.counts)
        return
    if result.refused:
        raise AccessRefusedError(result.message)
    report.failures += 1
    if len(report.failed) < FAILURES_KEPT:
        report.failed.append(FailedBlock(name, result.reason))
