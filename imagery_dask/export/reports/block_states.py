"""Read the state of each block, and the times of work, from the records of a run; vectorised for millions of blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.export.core.run_states import damaged_in
from imagery_dask.records.runs import Records, refused_or_absent_in, time_of

__all__ = ["STATES", "Burst", "Outcomes", "bursts_of", "outcomes_of", "recent_rate"]

# In ascending order: where one colour stands for several blocks, it is that of the last state among them.
STATES = ("done", "repeated", "zero roots", "missing chunks", "not done", "failed", "damaged")
DONE, REPEATED, ZERO_ROOTS, MISSING, NOT_DONE, FAILED, BROKEN = range(len(STATES))

# A longer time without a block is a pause between calls.
PAUSE_S = 60.0
# The current rate is that of the last so many seconds.
RECENT_S = 300.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """State of the blocks of a run.

    Parameters
    ----------
    receipts : ndarray of RECEIPT
        Last receipt of each block that is done.
    failed : dict of int to dict
        Last failure of each block that has no receipt, by block.
    damaged : tuple of int
        Blocks that `verify` found damaged.
    states : ndarray of uint8
        Index into `STATES` for each block.
    refused_or_absent : int
        Missing chunks of which the server does not say if it refuses them.
    """

    receipts: Array
    failed: dict[int, JsonObject]
    damaged: tuple[int, ...]
    states: NDArray[np.uint8]
    refused_or_absent: int

    @property
    def repeats(self) -> int:
        """Number of repeated attempts at blocks."""
        attempts = int((self.receipts["attempts"].astype(np.int64) - 1).clip(0).sum())
        return attempts + sum(max(0, int(line.get("attempts", 1)) - 1) for line in self.failed.values())

    @property
    def counts(self) -> dict[str, int]:
        """Number of blocks in each of `STATES`."""
        return dict(zip(STATES, np.bincount(self.states, minlength=len(STATES)).tolist(), strict=True))

    def total(self, name: str) -> int:
        """Return the sum of a field of the receipts."""
        return int(self.receipts[name].sum(dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class Burst:
    """Time in which blocks were processed without a pause, in seconds since 1970."""

    start: float
    stop: float

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.stop - self.start


def outcomes_of(records: Records, blocks: int) -> Outcomes:
    """Read the state of all blocks of a run from its records."""
    receipts = records.receipts(blocks)
    done = np.zeros(blocks, bool)
    done[_numbers(receipts)] = True
    failed = _failures(records.lines("failed"), done)
    damaged = tuple(sorted(set(damaged_in(records)["blocks"])))
    damaged = tuple(block for block in damaged if block < blocks)
    states = np.full(blocks, NOT_DONE, np.uint8)
    states[done] = DONE
    for state, some in (
        (REPEATED, receipts["attempts"] > 1),
        (ZERO_ROOTS, receipts["zero_roots"] > 0),
        (MISSING, receipts["missing"] > 0),
    ):
        states[_numbers(receipts[some])] = state
    states[list(failed)] = FAILED
    states[list(damaged)] = BROKEN
    unsaid = int(refused_or_absent_in(records, receipts).sum())
    return Outcomes(receipts, failed, damaged, states, unsaid)


def bursts_of(receipts: Array) -> list[Burst]:
    """Return times of work, oldest first; pauses between them are longer than a minute."""
    if not len(receipts):
        return []
    order = np.argsort(receipts["finished"], kind="stable")
    stops = receipts["finished"][order]
    # Earliest start among this block and all that finished later.
    begun = np.minimum.accumulate((stops - receipts["seconds"][order])[::-1])[::-1]
    first = np.concatenate([[0], np.flatnonzero(begun[1:] - stops[:-1] > PAUSE_S) + 1])
    last = np.concatenate([first[1:] - 1, [len(stops) - 1]])
    return [Burst(float(begun[a]), float(stops[b])) for a, b in zip(first, last, strict=True)]


def recent_rate(receipts: Array, now: float | None = None) -> tuple[float, float] | None:
    """Return blocks and bytes per second over the last minutes of the last time of work.

    Parameters
    ----------
    receipts : ndarray of RECEIPT
        Receipts of a run.
    now : float, optional
        Current time, for a run in progress.

    Returns
    -------
    tuple of float or None
        None if no block is done, or if a run in progress has not finished a block since its last pause.
    """
    bursts = bursts_of(receipts)
    if not bursts:
        return None
    last = bursts[-1]
    stop = last.stop if now is None else max(now, last.stop)
    start = max(last.start, last.stop - RECENT_S)
    recent = receipts[receipts["finished"] > start]
    if stop - last.stop > PAUSE_S + 2 * float(recent["seconds"].max(initial=0)):
        return None
    seconds = max(stop - start, 1e-3)
    return len(recent) / seconds, int(recent["written_bytes"].sum(dtype=np.uint64)) / seconds


def _failures(lines: Iterable[JsonObject], done: NDArray[np.bool_]) -> dict[int, JsonObject]:
    """Return the last failure of each block that is not done."""
    last: dict[int, JsonObject] = {}
    for line in lines:
        block = line.get("block")
        if type(block) is not int or not 0 <= block < len(done) or done[block]:
            continue
        if block not in last or time_of(line) >= time_of(last[block]):
            last[block] = line
    return dict(sorted(last.items()))


def _numbers(receipts: Array) -> NDArray[np.int64]:
    return np.asarray(receipts["block"].astype(np.int64))
