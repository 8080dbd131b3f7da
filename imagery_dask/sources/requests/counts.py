"""Count storage chunks, bytes, requests and missing chunks of reads."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KEYS_KEPT",
    "Once",
    "ReadCounts",
    "active_counts",
    "collect_counts",
    "count_request",
    "count_throttled",
    "counting_into",
]

# Number of keys and ids that the sum of many blocks keeps for display, whatever the size of the volume.
KEYS_KEPT = 20
ONCES_KEPT = 1024


@dataclass(slots=True)
class ReadCounts:
    """Counts of one or more reads.

    Parameters
    ----------
    chunks : int
        Storage chunks that were requested.
    stored_bytes : int
        Bytes received, as stored (compressed).
    missing : int
        Storage chunks inside the volume that do not exist and were filled with 0.
    missing_keys : list of str
        Keys of the missing chunks: all of one block, the first few of many blocks (`add`).
    refused_or_absent : int
        Those among the missing chunks that may exist: the server refuses them (HTTP 403), as it does files that do not
        exist.
    refused_or_absent_keys : list of str
        Their keys, as many as of the missing ones.
    not_stored : int
        Chunks that do not exist because the format need not store them (zarr's fill value).
    requests : int
        Requests for files of volumes, or parts of them: info, shard indices, chunks. Reads from disk are included,
        requests to a chunked graph are not.
    retries : int
        Number of these that were repeated, after a failure or because the bytes did not decode.
    throttled : int
        Answers of any server that ask for fewer requests: HTTP 429 and 503.
    root_requests : int
        Requests to a chunked graph.
    ids_sent : int
        Ids in these requests.
    zero_roots : int
        Supervoxels without a root at the requested time, which became 0, counted once for each block.
    zero_root_ids : list of int
        The first few of those.
    """

    chunks: int = 0
    stored_bytes: int = 0
    missing: int = 0
    missing_keys: list[str] = field(default_factory=list)
    refused_or_absent: int = 0
    refused_or_absent_keys: list[str] = field(default_factory=list)
    not_stored: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    root_requests: int = 0
    ids_sent: int = 0
    zero_roots: int = 0
    zero_root_ids: list[int] = field(default_factory=list)

    def first(self, n: int) -> list[str]:
        """Return no more than the first `n` keys of missing chunks, for display."""
        return self.missing_keys[:n]

    def add(self, other: ReadCounts) -> None:
        """Add the counts of another block, keeping only the first few missing keys."""
        self.include(other)
        del self.missing_keys[KEYS_KEPT:], self.refused_or_absent_keys[KEYS_KEPT:]

    def include(self, other: ReadCounts) -> None:
        """Add the counts of another read of the same block, keeping every missing key."""
        self.chunks += other.chunks
        self.stored_bytes += other.stored_bytes
        self.missing += other.missing
        self.missing_keys += other.missing_keys
        self.refused_or_absent += other.refused_or_absent
        self.refused_or_absent_keys += other.refused_or_absent_keys
        self.not_stored += other.not_stored
        self.requests += other.requests
        self.retries += other.retries
        self.throttled += other.throttled
        self.root_requests += other.root_requests
        self.ids_sent += other.ids_sent
        self.zero_roots += other.zero_roots
        self.zero_root_ids = (self.zero_root_ids + other.zero_root_ids)[:KEYS_KEPT]

    def miss(self, key: str, refused_or_absent: bool = False) -> None:
        """Count a missing chunk."""
        self.missing += 1
        self.missing_keys.append(key)
        if refused_or_absent:
            self.refused_or_absent += 1
            self.refused_or_absent_keys.append(key)

    def add_zero_roots(self, supervoxels: NDArray[np.uint64]) -> None:
        """Count supervoxels that have no root."""
        self.zero_roots += len(supervoxels)
        room = KEYS_KEPT - len(self.zero_root_ids)
        self.zero_root_ids += [int(value) for value in supervoxels[:room]]


class Once:
    """Whether it was said of an array that supervoxels have no root."""

    _of_process: ClassVar[dict[Hashable, Once]] = {}

    def __init__(self) -> None:
        self._lock, self._is_done = threading.Lock(), False

    @classmethod
    def of(cls, key: Hashable) -> Once:
        """Return the one that this process has for copies of an array, which arrive with every block."""
        once = cls._of_process.setdefault(key, cls())
        while len(cls._of_process) > ONCES_KEPT:
            del cls._of_process[next(iter(cls._of_process))]
        return once

    def is_first(self) -> bool:
        """Return True the first time."""
        with self._lock:
            first, self._is_done = not self._is_done, True
        return first


# A context variable, because threads that make requests for this one run in a copy of its context.
_collecting: ContextVar[ReadCounts | None] = ContextVar("imagery_dask_counts", default=None)
_requests_lock = threading.Lock()


@contextmanager
def collect_counts() -> Iterator[ReadCounts]:
    """Collect the counts of every read made by this thread inside the block."""
    counts, before = ReadCounts(), active_counts()
    try:
        with counting_into(counts):
            yield counts
    finally:
        if before is not None:
            before.include(counts)


@contextmanager
def counting_into(counts: ReadCounts) -> Iterator[None]:
    """Count the requests made inside the block in `counts` only."""
    token = _collecting.set(counts)
    try:
        yield
    finally:
        _collecting.reset(token)


def active_counts() -> ReadCounts | None:
    """Return the counts that this thread collects, or None."""
    return _collecting.get()


def count_request(repeated: bool) -> None:
    """Count one request for a file; safe in threads that run in a copy of the reader's context."""
    counts = active_counts()
    if counts is not None:
        with _requests_lock:
            counts.requests += 1
            counts.retries += repeated


def count_throttled() -> None:
    """Count one answer that asks for fewer requests; safe in threads, like `count_request`."""
    counts = active_counts()
    if counts is not None:
        with _requests_lock:
            counts.throttled += 1
