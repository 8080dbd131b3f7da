"""How many requests may be in flight to a server, from how long it takes to answer."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

__all__ = ["FEWEST", "MOST", "Link", "link_of"]

FEWEST, MOST = 8, 256
# Requests in flight before the first answer.
AT_FIRST = 16
# Seconds of this process for a request and its chunk: as many are in flight as it handles while one is answered.
WORK_S = 0.00025
# An answer that took longer moves what is known of the latency by this part: bursts of a busy server are not its link.
SHARE_OF_SLOWER = 0.1
# Received bytes that may be on their way at once, if every file is as large as it may be.
BYTES_IN_FLIGHT = 2**30


class Link:
    """What this process knows of the way to a server. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency_s: float | None = None
        self._ceiling, self._lowered, self._users = float(MOST), 0.0, 0

    @property
    def in_flight(self) -> int:
        """Requests that may be in flight now, of all reads of this process together."""
        wanted = AT_FIRST if self._latency_s is None else math.ceil(self._latency_s / WORK_S)
        return max(1, min(int(self._ceiling), max(FEWEST, wanted)))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Count a read, which has its share of the requests in flight."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1

    def share(self, size: int) -> int:
        """Return how many requests for files of up to `size` bytes one of the reads may have in flight."""
        return max(1, min(self.in_flight // max(1, self._users), BYTES_IN_FLIGHT // max(1, size)))

    def answered(self, seconds: float, is_exact: bool = True) -> None:
        """Take note of the time up to an answer; it is not exact if the answer has waited for this process."""
        with self._lock:
            known = self._latency_s
            if known is None or seconds < known:
                self._latency_s = seconds
            elif is_exact:
                self._latency_s = known + SHARE_OF_SLOWER * (seconds - known)
            self._ceiling = min(float(MOST), self._ceiling + 1 / self._ceiling)

    def overloaded(self, sent: float) -> None:
        """Halve the requests in flight, once for those that were in flight together (`time.monotonic` at the start)."""
        with self._lock:
            if sent >= self._lowered:
                self._ceiling, self._lowered = max(1.0, self.in_flight / 2), time.monotonic()


def link_of(server: str) -> Link:
    """Return the link of this process to a server (``scheme://host``)."""
    return _link_of(server, os.getpid())


@lru_cache(maxsize=256)
def _link_of(server: str, process: int) -> Link:
    del process
    return Link()
