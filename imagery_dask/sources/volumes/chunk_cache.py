"""Decoded storage chunks that a process keeps for later reads; those that were not used for longest go first.

Nearby planes, masks of other ids and moved views cross the same chunks. Blocks of an export do not use the cache, since
each of their chunks is read once.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable

from imagery_dask.annotations import Array
from imagery_dask.config import config
from imagery_dask.humanize import size_or_zero

__all__ = ["ChunkCache", "chunk_cache", "set_cache_bytes"]

MOST_BYTES = 256 * 2**20
SHARE_OF_MEMORY = 0.05


class ChunkCache:
    """Read-only arrays by key, of a limited total size. Safe to use from many threads.

    Parameters
    ----------
    most : int
        Largest total size of the arrays, bytes. With 0, nothing is kept.
    """

    def __init__(self, most: int) -> None:
        self.bytes = 0
        self._most = most
        self._arrays: OrderedDict[Hashable, Array] = OrderedDict()
        self._lock = threading.Lock()
        self._being_read: dict[Hashable, threading.Event] = {}

    @property
    def most(self) -> int:
        """Largest total size, bytes; a smaller value removes arrays at once."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        with self._lock:
            self._most = most
            self._shrink()

    def get(self, key: Hashable) -> Array | None:
        """Return the array that was kept under a key, or None."""
        with self._lock:
            array = self._arrays.get(key)
            if array is not None:
                self._arrays.move_to_end(key)
            return array

    def put(self, key: Hashable, array: Array) -> None:
        """Keep an array, which must not change any more; one that is larger than the cache is not kept."""
        if array.nbytes > self._most:
            return
        array.flags.writeable = False
        with self._lock:
            before = self._arrays.pop(key, None)
            self.bytes += array.nbytes - (0 if before is None else before.nbytes)
            self._arrays[key] = array
            self._shrink()

    def reserve(self, key: Hashable) -> threading.Event | None:
        """Return None if the caller shall read what belongs to a key, and `release` it; or else when another has."""
        with self._lock:
            event = self._being_read.get(key)
            if event is None and key in self._arrays:  # it has been read since
                event = threading.Event()
                event.set()
            elif event is None:
                self._being_read[key] = threading.Event()
            return event

    def release(self, key: Hashable) -> None:
        """Let those who wait for a key go on, whether it could be read or not."""
        with self._lock:
            event = self._being_read.pop(key, None)
        if event is not None:
            event.set()

    def clear(self) -> None:
        """Remove all arrays."""
        with self._lock:
            self._arrays.clear()
            self.bytes = 0

    def _shrink(self) -> None:
        while self.bytes > self._most:
            _, array = self._arrays.popitem(last=False)
            self.bytes -= array.nbytes


_cache: ChunkCache | None = None
_made = threading.Lock()


def chunk_cache() -> ChunkCache | None:
    """Return the cache of this process, made when it is first used; None if it is turned off."""
    cache = _of_process()
    return cache if cache.most else None


def set_cache_bytes(most: int | str) -> None:
    """Set the size of this process's cache of decoded chunks, bytes or text such as ``1GB``; 0 turns it off."""
    _of_process().most = size_or_zero("cache_bytes", most)


def _of_process() -> ChunkCache:
    global _cache
    with _made:
        if _cache is None:
            _cache = ChunkCache(_default_bytes())
        return _cache


def _default_bytes() -> int:
    import psutil

    given = config.get("cache_bytes")
    if given is not None:
        return size_or_zero("IMAGERY_DASK_CACHE_BYTES (cache_bytes of the configuration)", given)
    return min(MOST_BYTES, int(SHARE_OF_MEMORY * psutil.virtual_memory().total))


def _forget() -> None:
    global _cache, _made
    _cache, _made = None, threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
