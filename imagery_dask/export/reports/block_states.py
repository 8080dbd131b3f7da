"""What the records of a run say of each block, and of when the run worked: arrays of a million blocks, in a second."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.export.core.run_states import DAMAGED
from imagery_dask.records.journal import Records

__all__ = ["STATES", "Burst", "Outcomes", "bursts_of", "outcomes_of", "recent_rate"]

# Each hides those before it, where one colour or word has to do for several blocks.
STATES = ("done", "repeated", "zero roots", "missing chunks", "not done", "failed", "damaged")
DONE, REPEATED, ZERO_ROOTS, MISSING, NOT_DONE, FAILED, BROKEN = range(len(STATES))

# Longer than a run waits between blocks: nobody was at work.
PAUSE_S = 60.0
# What is called the rate now.
RECENT_S = 300.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the blocks of a run so far.

    Parameters
    ----------
    receipts : ndarray of RECEIPT
        Last receipt of each block that is done.
    failed : dict of int to dict
        Last failure of each block that has no receipt, by block.
    damaged : tuple of int
        Blocks that `verify` found damaged.
    states : ndarray of uint8
        By number of a block, which of `STATES` it is in.
    """

    receipts: NDArray[Any]
    failed: dict[int, dict[str, Any]]
    damaged: tuple[int, ...]
    states: NDArray[np.uint8]

    @property
    def repeats(self) -> int:
        """Attempts at blocks that were repeated."""
        attempts = int((self.receipts["attempts"].astype(np.int64) - 1).clip(0).sum())
        return attempts + sum(max(0, int(line.get("attempts", 1)) - 1) for line in self.failed.values())

    @property
    def counts(self) -> dict[str, int]:
        """Number of blocks in each of `STATES`."""
        return dict(zip(STATES, np.bincount(self.states, minlength=len(STATES)).tolist(), strict=True))

    def total(self, name: str) -> int:
        """Sum of a field of the receipts."""
        return int(self.receipts[name].sum(dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class Burst:
    """A time in which blocks were worked on without a pause, s since 1970."""

    start: float
    stop: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.stop - self.start


def outcomes_of(records: Records, blocks: int) -> Outcomes:
    """Read what became of the blocks of a run of so many."""
    receipts = records.receipts()
    receipts = receipts[receipts["block"] < blocks]
    done = np.zeros(blocks, bool)
    done[_numbers(receipts)] = True
    failed = _failures(records.lines("failed"), done)
    broken = records.get(DAMAGED)
    damaged = () if broken is None else tuple(sorted({int(block) for block in broken["blocks"]}))
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
    return Outcomes(receipts, failed, damaged, states)


def bursts_of(receipts: NDArray[Any]) -> list[Burst]:
    """Find times of work, oldest first: blocks of one overlap, or follow each other within a minute."""
    if not len(receipts):
        return []
    by_time = receipts[np.argsort(receipts["finished"], kind="stable")]
    stops = by_time["finished"]
    # When the first of this block and all that finished later was begun.
    begun = np.minimum.accumulate((stops - by_time["seconds"])[::-1])[::-1]
    first = np.concatenate([[0], np.flatnonzero(begun[1:] - stops[:-1] > PAUSE_S) + 1])
    last = np.concatenate([first[1:] - 1, [len(stops) - 1]])
    return [Burst(float(begun[a]), float(stops[b])) for a, b in zip(first, last, strict=True)]


def recent_rate(receipts: NDArray[Any], now: float | None = None) -> tuple[float, float] | None:
    """Blocks and bytes per second over the last minutes of the last time of work.

    Parameters
    ----------
    receipts : ndarray of RECEIPT
        Receipts of a run.
    now : float, optional
        The moment that counts as the end, of a run that goes on.

    Returns
    -------
    tuple of float or None
        None where nothing was done, or where a run that goes on has not finished a block since its last pause.
    """
    bursts = bursts_of(receipts)
    if not bursts:
        return None
    last = bursts[-1]
    stop = last.stop if now is None else max(now, last.stop)
    start = max(last.start, last.stop - RECENT_S)
    of_late = receipts[receipts["finished"] > start]
    if stop - last.stop > PAUSE_S + 2 * float(of_late["seconds"].max(initial=0)):
        return None
    seconds = max(stop - start, 1e-3)
    return len(of_late) / seconds, int(of_late["written_bytes"].sum(dtype=np.uint64)) / seconds


def _failures(lines: Iterable[dict[str, Any]], done: NDArray[np.bool_]) -> dict[int, dict[str, Any]]:
    """Last failure of each block that is not done."""
    last: dict[int, dict[str, Any]] = {}
    for line in lines:
        block = int(line["block"])
        if block >= len(done) or done[block]:
            continue
        if block not in last or float(line.get("when", 0)) >= float(last[block].get("when", 0)):
            last[block] = line
    return dict(sorted(last.items()))


def _numbers(receipts: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(receipts["block"].astype(np.int64))
