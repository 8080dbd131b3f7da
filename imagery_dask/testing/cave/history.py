"""The history of the roots of a chunked graph: operations, lineage, and periods in which roots were up to date."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imagery_dask.annotations import JsonObject
from imagery_dask.testing.cave.graph_layout import Ids

__all__ = ["Operation", "RootHistory", "to_ms"]


def to_ms(timestamp: float | None) -> int:
    """Round unix seconds, by default now, down to the milliseconds that the graph's store keeps."""
    # Via microseconds, because a float such as 1704067200.007 is slightly less than the decimal number.
    return round((time.time() if timestamp is None else timestamp) * 1e6) // 1000


class Operation(NamedTuple):
    """An edit: ``new`` roots replaced ``old`` ones at ``ms`` milliseconds of unix time."""

    number: int
    ms: int
    old: tuple[int, ...]
    new: tuple[int, ...]


class RootHistory:
    """The operations on a graph, in order.

    Attributes
    ----------
    created : dict
        Time of creation, in milliseconds of unix time, of each node of layer 2 or above.
    """

    def __init__(self) -> None:
        self.created: dict[int, int] = {}
        self._operations: list[Operation] = []
        self._made_by: dict[int, Operation] = {}
        self._ended_by: dict[int, Operation] = {}

    def record(self, ms: int, old: Sequence[int], new: Sequence[int]) -> None:
        """Add an operation, later than all before it."""
        operation = Operation(len(self._operations) + 1, ms, tuple(old), tuple(new))
        self._made_by |= dict.fromkeys(operation.new, operation)
        self._ended_by |= dict.fromkeys(operation.old, operation)
        self._operations.append(operation)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations, oldest first."""
        return tuple(self._operations)

    def operation_that_made(self, root: int) -> Operation:
        """Return the operation that made a root.

        Raises
        ------
        KeyError
            If the root is unknown, or is older than all operations.
        """
        return self._made_by[root]

    def are_latest(self, nodes: Sequence[int], timestamp: float | None = None) -> npt.NDArray[np.bool_]:
        """Return True for nodes that existed at a time (unix seconds; by default now) and were not replaced yet.

        Only roots are replaced. A node below them is True if it existed, as in the service.
        """
        ms = to_ms(timestamp)
        return np.array([self._is_latest(int(node), ms) for node in nodes], bool)

    def latest(self, root: int, timestamp: float | None = None) -> Ids:
        """Return the roots that replaced a root up to a time, ascending; the root itself if it was up to date."""
        ms, latest, open_ = to_ms(timestamp), set[int](), {int(root)}
        while open_:
            node = open_.pop()
            end = self._ended_by.get(node)
            if end is None or end.ms > ms:
                latest.add(node)
            else:
                open_ |= set(end.new)
        return np.array(sorted(latest), np.uint64)

    def delta(self, past: float, future: float | None = None) -> tuple[list[int], list[int]]:
        """Return the roots that operations from ``past`` to ``future``, both inclusive, replaced and made."""
        window = [op for op in self._operations if to_ms(past) <= op.ms <= to_ms(future)]
        return [old for op in window for old in op.old], [new for op in window for new in op.new]

    def ended(self, root: int, timestamp: float | None = None) -> float:
        """Return the unix seconds up to which a root was up to date, at most `timestamp`."""
        end, until = self._ended_by.get(int(root)), time.time() if timestamp is None else timestamp
        return until if end is None or end.ms > to_ms(until) else end.ms / 1000

    def lineage(self, roots: Sequence[int], past: float = 0.0, future: float | None = None) -> JsonObject:
        """Follow roots through operations, in the node-link form of networkx with the key ``links``.

        Roots older than ``past`` (unix seconds) and, in the forward direction, younger than ``future`` are part of the
        result but are not followed further.

        Raises
        ------
        KeyError
            If one of the roots is unknown.
        """
        nodes: dict[int, JsonObject] = {}
        links: dict[tuple[int, int], None] = {}
        for forward in (False, True):
            open_ = [int(root) for root in roots]
            while open_:
                node = open_.pop()
                nodes[node] = self._describe(node)
                born = self.created[node]
                operation = (self._ended_by if forward else self._made_by).get(node)
                if operation is None or (born > to_ms(future) if forward else born < to_ms(past)):
                    continue
                others = operation.new if forward else operation.old
                links |= dict.fromkeys((node, other) if forward else (other, node) for other in others)
                open_ += [other for other in others if other not in nodes]
        return {
            "directed": True,
            "multigraph": False,
            "graph": {},
            "nodes": list(nodes.values()),
            "links": [{"source": source, "target": target} for source, target in links],
        }

    def _describe(self, node: int) -> JsonObject:
        described: JsonObject = {"id": node, "timestamp": self.created[node] / 1000}
        if node in self._ended_by:
            described["operation_id"] = self._ended_by[node].number
        return described

    def _is_latest(self, node: int, ms: int) -> bool:
        end = self._ended_by.get(node)
        return node in self.created and self.created[node] <= ms and (end is None or end.ms > ms)
