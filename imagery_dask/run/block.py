"""One block on a worker: the work, its receipt, and what is said of a failure."""

from __future__ import annotations

import errno
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, Protocol

from imagery_dask.errors import AccessRefusedError, MissingChunkError, SourceError
from imagery_dask.records.journal import Records
from imagery_dask.records.ledger import ledger_line
from imagery_dask.records.receipts import receipt
from imagery_dask.sources import ReadCounts, collect_counts, limited_requests
from imagery_dask.sources.counts import KEYS_KEPT

__all__ = ["BlockError", "BlockResult", "BlockTask", "Chain", "Outcome", "Written", "is_full", "run_batch", "run_block"]

# Whether another attempt can help, and whether any other block can go on.
Outcome = Literal["passing", "lasting", "refused", "full"]
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Written:
    """What a block has put into its store.

    Parameters
    ----------
    voxels, size : int
        How many, and how many bytes they are, uncompressed.
    digest : bytes
        Hash of it, 16 bytes.
    """

    voxels: int
    size: int
    digest: bytes


class BlockTask(Protocol):
    """One block's work: read, compute, write. Picklable, small, and safe to repeat."""

    @property
    def name(self) -> str:
        """Readable name: what is done, of what, and in three words which block it is, ``z3 y1 x7``."""
        ...

    @property
    def volume(self) -> str:
        """Name of what is written, which its counts are kept for."""
        ...

    def __call__(self) -> Written:
        """Do the work."""
        ...

    def stored(self) -> bytes:
        """Hash of what is in the store now."""
        ...

    def expected(self) -> bytes:
        """Hash of what the source gives now; nothing is written."""
        ...


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What a worker says of a block that it finished."""

    written_bytes: int
    counts: ReadCounts
    seconds: float


@dataclass(frozen=True, slots=True)
class BlockError:
    """What a worker says of a block that failed."""

    reason: str
    message: str
    outcome: Outcome


def run_block(task: BlockTask, number: int, attempt: int, records: Records | None) -> BlockResult | BlockError:
    """Do a block and write its receipt, once its bytes are in the store."""
    started = time.perf_counter()
    try:
        with collect_counts() as counts:
            written = task()
        seconds = time.perf_counter() - started
        if records is not None:
            line = ledger_line(number, task.name, task.volume, counts)
            if line is not None:
                records.append("ledger", line)
            records.append(
                "receipts",
                receipt(number, written.digest, written.voxels, written.size, counts, attempt, seconds),
            )
    except Exception as error:
        # A value, not an exception: dask would log a traceback for each, and could not pickle some.
        return BlockError(f"{type(error).__name__}: {error}", str(error), outcome_of(error))
    few = replace(counts, missing_keys=counts.first(KEYS_KEPT))
    return BlockResult(written.size, few, seconds)


def is_full(error: BaseException) -> bool:
    """Say whether an error means that no space is left where it was to be written."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    # Rust (zarrs, obstore) has it as text, in errors of types of its own.
    return any(f"os error {number}" in str(error) for number in FULL)


def run_batch(
    blocks: Sequence[tuple[BlockTask, int, int]], records: Records | None, max_requests: int | None = None
) -> list[BlockResult | BlockError]:
    """Do some blocks, each with its number and attempt, one after another; what ends the run ends the batch."""
    results: list[BlockResult | BlockError] = []
    with limited_requests(max_requests):
        for task, number, attempt in blocks:
            results.append(run_block(task, number, attempt, records))
            if isinstance(results[-1], BlockError) and results[-1].outcome in ("refused", "full"):
                break
    return results


def outcome_of(error: Exception) -> Outcome:
    """Say what a failure means for another attempt."""
    if isinstance(error, AccessRefusedError):
        return "refused"
    if is_full(error):
        return "full"
    if isinstance(error, MissingChunkError) or (isinstance(error, SourceError) and error.lasting):
        return "lasting"
    return "passing" if isinstance(error, (SourceError, OSError)) else "lasting"


class Chain(Sequence[Any]):
    """Some sequences as one, of which nothing is held.

    Parameters
    ----------
    parts : sequence of sequences
        What follows each other.

    Examples
    --------
    >>> Chain([range(3), range(10, 12)])[3]
    10
    """

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts = parts
        self._first = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(f"There is no {number}; there are {len(self)}.")
        at = bisect_right(self._first, number) - 1
        return self._parts[at][number - self._first[at]]
