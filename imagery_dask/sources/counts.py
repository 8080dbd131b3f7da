"""Counting what reads touch: storage chunks, bytes and, above all, chunks that were not there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["MISSING_KEYS_KEPT", "ReadCounts", "active_counts", "collect_counts"]

MISSING_KEYS_KEPT = 20


@dataclass(slots=True)
class ReadCounts:
    """What was read.

    Parameters
    ----------
    chunks : int
        Storage chunks that were asked for.
    stored_bytes : int
        Bytes received, as stored (compressed).
    missing : int
        Storage chunks inside the volume that do not exist and were filled with 0.
    missing_keys : list of str
        The first few of those.
    root_requests : int
        Requests to a chunked graph.
    ids_sent : int
        Ids in these requests.
    zero_roots : int
        Supervoxels, counted in each block that has them, that had no root at the moment asked for and became 0.
    zero_root_ids : list of int
        The first few of those.
    """

    chunks: int = 0
    stored_bytes: int = 0
    missing: int = 0
    missing_keys: list[str] = field(default_factory=list)
    root_requests: int = 0
    ids_sent: int = 0
    zero_roots: int = 0
    zero_root_ids: list[int] = field(default_factory=list)

    def add(self, other: ReadCounts) -> None:
        """Add another count to this one."""
        self.chunks += other.chunks
        self.stored_bytes += other.stored_bytes
        self.missing += other.missing
        self.missing_keys = (self.missing_keys + other.missing_keys)[:MISSING_KEYS_KEPT]
        self.root_requests += other.root_requests
        self.ids_sent += other.ids_sent
        self.zero_roots += other.zero_roots
        self.zero_root_ids = (self.zero_root_ids + other.zero_root_ids)[:MISSING_KEYS_KEPT]

    def add_zero_roots(self, supervoxels: NDArray[np.uint64]) -> None:
        """Count supervoxels that have no root."""
        self.zero_roots += len(supervoxels)
        room = MISSING_KEYS_KEPT - len(self.zero_root_ids)
        self.zero_root_ids += [int(value) for value in supervoxels[:room]]


_collecting = threading.local()


@contextmanager
def collect_counts() -> Iterator[ReadCounts]:
    """Collect the counts of every read made by this thread inside the block."""
    counts, before = ReadCounts(), active_counts()
    _collecting.counts = counts
    try:
        yield counts
    finally:
        _collecting.counts = before
        if before is not None:
            before.add(counts)


def active_counts() -> ReadCounts | None:
    """Return the counts that this thread collects at the moment, or None."""
    return getattr(_collecting, "counts", None)
