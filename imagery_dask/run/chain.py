"""Sequences one after another, as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

__all__ = ["Chain"]


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
