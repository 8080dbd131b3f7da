"""Run a block on a worker: its task, its receipt, and the classification of its errors."""

from __future__ import annotations

import errno
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, Protocol

from imagery_dask.errors import AccessRefusedError, MissingChunkError, SourceError, SourceGoneError
from imagery_dask.records.receipts import receipt
from imagery_dask.records.runs import Records, ledger_line
from imagery_dask.run.workers import is_wanted
from imagery_dask.sources import ReadCounts, collect_counts, limited_requests
from imagery_dask.sources.requests.counts import KEYS_KEPT
from imagery_dask.storage.atomic_files import only_while
from imagery_dask.urls import redacted

__all__ = ["BlockError", "BlockResult", "BlockTask", "Chain", "Outcome", "Written", "is_full", "run_batch", "run_block"]

# Consequence of an error: the block is repeated ("passing") or given up ("lasting"), or the run ends, since the source
# refuses access ("refused") or has vanished, also after repeats ("gone"), or the target has no space left ("full").
Outcome = Literal["passing", "lasting", "refused", "gone", "full"]
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Written:
    """What a task wrote.

    Parameters
    ----------
    voxels : int
        Number of voxels.
    size : int
        Their uncompressed size in bytes.
    digest : bytes
        Hash of the written data, 16 bytes.
    found : object
        What a task that looks at stored voxels tells the caller of the run: small and picklable.
    """

    voxels: int
    size: int
    digest: bytes
    found: Any = None


class BlockTask(Protocol):
    """The work of a block: read, compute, write. Picklable, small, and safe to repeat."""

    @property
    def name(self) -> str:
        """Name for reports and dashboards: the work, the layer, and the block in three words, ``z3 y1 x7``."""
        ...

    @property
    def volume(self) -> str:
        """Name of the layer, for which counts are kept."""
        ...

    @property
    def hashes_files(self) -> bool:
        """Whether hashes are of files; otherwise of what is in them, such as voxels."""
        ...

    def __call__(self) -> Written:
        """Read, compute and write the block."""
        ...

    def stored(self) -> bytes:
        """Return the hash of the block as it is in the store."""
        ...

    def expected(self) -> bytes:
        """Return the hash of the block as it would be written now, without writing it."""
        ...


@dataclass(frozen=True, slots=True)
class BlockResult:
    """Result of a block that was written."""

    written_bytes: int
    counts: ReadCounts
    seconds: float
    found: Any = None


@dataclass(frozen=True, slots=True)
class BlockError:
    """Result of a block that failed."""

    reason: str
    message: str
    outcome: Outcome


def run_block(task: BlockTask, number: int, attempt: int, records: Records | None) -> BlockResult | BlockError:
    """Run the task of a block, and write its receipt when its bytes are in the store (`Records.flush`)."""
    started = time.perf_counter()
    if records is not None and records.removed:
        # The driver was stopped, or killed; the store at the URL is that of another run now.
        reason = "The export was replaced by another one."
        return BlockError(reason, reason, "lasting")
    try:
        # A block may be under way for minutes while another run replaces the store.
        with collect_counts() as counts, only_while(lambda: records is None or not records.removed):
            written = task()
        seconds = time.perf_counter() - started
        if records is not None:
            line = ledger_line(number, task.name, task.volume, counts)
            if line is not None:
                records.append("ledger", line)
            records.append(
                "receipts",
                receipt(number, written.digest, written.voxels, written.size, counts, attempt, seconds),
                at_once=False,
            )
    except Exception as error:
        # Return a value: dask would log a traceback for each exception, and some cannot be pickled.
        return _error_of(error)
    shown = replace(counts, missing_keys=counts.first(KEYS_KEPT), refused_or_absent_keys=[])
    return BlockResult(written.size, shown, seconds, written.found)


def is_full(error: BaseException) -> bool:
    """Return True if an error means that no space is left on the disk or in the quota."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    # Rust libraries (zarrs, obstore) raise errors of their own types, with the number in the text.
    return any(f"os error {number}" in str(error) for number in FULL)


def run_batch(
    blocks: Sequence[tuple[BlockTask, int, int]], records: Records | None, max_requests: int | None = None
) -> list[BlockResult | BlockError]:
    """Run blocks, given as (task, number, attempt), one after another; stop when the run ends."""
    results: list[BlockResult | BlockError] = []
    with limited_requests(max_requests):
        for task, number, attempt in blocks:
            if results and not is_wanted():
                reason = "The task was cancelled."
                results += [BlockError(reason, reason, "passing")] * (len(blocks) - len(results))
                break
            results.append(run_block(task, number, attempt, records))
            if isinstance(results[-1], BlockError) and results[-1].outcome in ("refused", "full"):
                break
    try:
        if records is not None:
            records.flush("receipts")
    except Exception as error:  # a block without a receipt is not done
        failed = _error_of(error)
        return [failed if isinstance(result, BlockResult) else result for result in results]
    return results


def _error_of(error: Exception) -> BlockError:
    return BlockError(redacted(f"{type(error).__name__}: {error}"), redacted(str(error)), outcome_of(error))


def outcome_of(error: Exception) -> Outcome:
    """Return the consequence of an error."""
    if isinstance(error, AccessRefusedError):
        return "refused"
    if is_full(error):
        return "full"
    if isinstance(error, SourceGoneError):
        return "gone"
    if isinstance(error, MissingChunkError) or (isinstance(error, SourceError) and error.lasting):
        return "lasting"
    return "passing" if isinstance(error, (SourceError, OSError)) else "lasting"


class Chain(Sequence[Any]):
    """Concatenation of sequences, which holds no items of its own.

    Parameters
    ----------
    parts : sequence of sequences
        The sequences, in order.

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
            raise IndexError(f"Index {number} is not in 0..{len(self) - 1}.")
        part = bisect_right(self._first, number) - 1
        return self._parts[part][number - self._first[part]]
