"""Choose threads and the size of blocks from the blocks that a plan has measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imagery_dask.cluster import cores, threads_of_cores
from imagery_dask.config import config
from imagery_dask.export.planning.sampling import Sample
from imagery_dask.humanize import human_bytes, human_time

__all__ = ["Adapted", "adapted_to", "smaller_block", "waiting_of"]

# A block that takes longer is made smaller, to about half of this: a worker that ends loses the block, and the last
# blocks keep the others waiting. Blocks of less than a second share a task (`run.batch_blocks`), so tasks take from 1 s
# to this. Blocks are not made larger than `export.block_bytes`: those of 128 MiB took longer than two of 64.
LONGEST_S = 60.0
# A size below this is not asked for.
SMALLEST_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Adapted:
    """What was chosen from measured blocks.

    Parameters
    ----------
    cores : int
        Cores of this machine that may be used.
    threads : int
        Threads that keep them busy, if they fit into memory.
    waiting : float
        Fraction of its time that a block waits for its source or the disk.
    block_seconds : float
        Mean time of a block in one thread.
    block_bytes : int
        Mean uncompressed size of what a block writes.
    block_requests : float
        Mean number of requests of a block for files of its source.
    slow_block_seconds : float or None
        Mean time of a block of the usual size, if blocks were made smaller because of it.
    """

    cores: int
    threads: int
    waiting: float
    block_seconds: float
    block_bytes: int
    block_requests: float
    slow_block_seconds: float | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Return what was chosen and why, as labels and text."""
        block = f"{human_time(self.block_seconds)} in one thread, {human_bytes(self.block_bytes)}"
        if self.block_requests:
            block += f", {self.block_requests:,.0f} requests to the source"
        if self.slow_block_seconds is not None:
            block += f"; of the usual size it took {human_time(self.slow_block_seconds)}"
        why = f"blocks wait {self.waiting:.0%} of their time for the source or the disk"
        return [("a block", block), ("threads", f"{self.threads} on {self.cores} cores: {why}")]


def adapted_to(samples: Sequence[Sample], slow: Sequence[Sample] = ()) -> Adapted:
    """Return what follows from measured blocks.

    Parameters
    ----------
    samples : sequence of Sample
        Blocks of the plan.
    slow : sequence of Sample
        Blocks of the usual size, if the plan has smaller ones.
    """
    count, waiting, here = len(samples), waiting_of(samples), cores()
    return Adapted(
        cores=here,
        threads=threads_of_cores(here, waiting),
        waiting=waiting,
        block_seconds=_seconds_of(samples),
        block_bytes=sum(sample.written_bytes for sample in samples) // count,
        block_requests=sum(sample.counts.requests for sample in samples) / count,
        slow_block_seconds=_seconds_of(slow) if slow else None,
    )


def waiting_of(samples: Sequence[Sample]) -> float:
    """Return the fraction of their time in which blocks used no core and would have got one, to two digits.

    Time in which other programs had the cores is no waiting, so that a busy machine gets no more threads.
    """
    seconds = sum(sample.seconds - sample.queued_seconds for sample in samples)
    busy = sum(sample.cpu_seconds for sample in samples)
    return round(min(1.0, max(0.0, 1.0 - busy / seconds)), 2) if seconds > 0 else 0.0


def smaller_block(samples: Sequence[Sample]) -> int | None:
    """Return the size that blocks should have, in bytes, if they take too long; None if they do not.

    Volumes have blocks of one size, which the slowest of them decides.
    """
    volumes = {sample.volume for sample in samples}
    slowest = max(([sample for sample in samples if sample.volume == volume] for volume in volumes), key=_seconds_of)
    seconds = _seconds_of(slowest)
    if seconds <= LONGEST_S:
        return None
    size = sum(sample.written_bytes for sample in slowest) / len(slowest)
    wanted = min(size, config.get("export.block_bytes")) * LONGEST_S / 2 / seconds
    return max(SMALLEST_BYTES, int(wanted))


def _seconds_of(samples: Sequence[Sample]) -> float:
    """Return the mean time of a block."""
    return sum(sample.seconds for sample in samples) / len(samples)
