"""A cache of looked-up roots, in sorted arrays that are searched and merged without a loop over ids."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

__all__ = ["RootCache"]

Ids = NDArray[np.uint64]


class RootCache:
    """Mapping from supervoxels to roots for one graph and timestamp, which drops the least recently used ids.

    Two generations approximate the order of use: used ids are in the young generation; when it is full, it replaces the
    old one, whose other ids are dropped. Safe to use from many threads.

    Parameters
    ----------
    capacity : int
        Ids in a generation; the cache holds at most twice as many (16 bytes each).
    """

    CAPACITY = 2_000_000
    MOMENTS_KEPT = 4

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._young = self._old = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    def __len__(self) -> int:
        return len(self._young[0]) + len(self._old[0])

    def get(self, ids: Ids) -> tuple[NDArray[np.bool_], Ids]:
        """Look up ids.

        Parameters
        ----------
        ids : numpy.ndarray of uint64, shape (n,)
            Ascending and distinct.

        Returns
        -------
        known : numpy.ndarray of bool, shape (n,)
            True for ids in the cache.
        roots : numpy.ndarray of uint64, shape (n,)
            Their roots; 0 for the others.
        """
        with self._lock:
            young, old = self._young, self._old
        known, roots = _find(young, ids)
        in_old, old_roots = _find(old, ids)
        again = in_old & ~known
        if again.any():
            roots[again] = old_roots[again]
            known |= again
            self.put(ids[again], roots[again])
        return known, roots

    def put(self, ids: Ids, roots: Ids) -> None:
        """Add the roots of ids (ascending, distinct)."""
        with self._lock:
            self._young = _merge(self._young, (ids, roots))
            if len(self._young[0]) > self._capacity:
                self._old, self._young = self._young, (np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def _find(table: tuple[Ids, Ids], ids: Ids) -> tuple[NDArray[np.bool_], Ids]:
    keys, values = table
    roots = np.zeros(len(ids), np.uint64)
    if len(keys) == 0:
        return np.zeros(len(ids), bool), roots
    at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
    known = keys[at] == ids
    roots[known] = values[at[known]]
    return known, roots


def _merge(first: tuple[Ids, Ids], second: tuple[Ids, Ids]) -> tuple[Ids, Ids]:
    keys = np.concatenate([first[0], second[0]])
    values = np.concatenate([first[1], second[1]])
    order = np.argsort(keys, kind="stable")  # two ascending runs: merged in one pass
    keys, values = keys[order], values[order]
    distinct = np.ones(len(keys), bool)
    distinct[1:] = keys[1:] != keys[:-1]
    return keys[distinct], values[distinct]
