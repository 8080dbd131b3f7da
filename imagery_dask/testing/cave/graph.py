"""A chunked graph with a history: the supervoxels of each object at any time.

A node of layer 2 has the supervoxels of an object in one chunk, nodes of higher layers have its parts in larger and
larger chunks, and its root is in the last layer. As in PyChunkedGraph, a node is made in a layer only if it joins
two or more nodes (the layers between are skipped), nodes never change, and an edit makes new nodes where objects
changed, up to new roots. An edit changes the parents of the nodes that it keeps.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from imagery_dask.testing.cave.graph_layout import GraphLayout, Ids
from imagery_dask.testing.cave.history import RootHistory, to_ms

__all__ = ["ChunkedGraph", "GraphError"]

_NONE: tuple[int, ...] = ()


class GraphError(ValueError):
    """An edit or a query that the graph cannot answer."""


class ChunkedGraph:
    """A chunked graph, which several threads may query while another thread edits it.

    Parameters
    ----------
    layout : GraphLayout
        The chunks and the bits of ids.
    supervoxels, objects : numpy.ndarray
        uint64 (n,): ids of layer 1, ascending and distinct, and their initial objects.
    created : float
        Time of the graph's creation, in unix seconds. All times are kept in milliseconds, rounded down.

    Attributes
    ----------
    layout
        As given.
    supervoxels
        As given; pieces have taken the place of supervoxels that were split.
    history : RootHistory
        Edits of the graph.
    """

    def __init__(self, layout: GraphLayout, supervoxels: Ids, objects: Ids, created: float) -> None:
        self.layout = layout
        self.supervoxels = supervoxels
        self.history = RootHistory()
        self._lock = threading.RLock()
        self._children: dict[int, tuple[int, ...]] = {}
        self._segments: dict[int, int] = defaultdict(int)  # last segment used in each chunk
        self._links: tuple[list[int], list[int], list[int]] = ([], [], [])  # child, milliseconds, parent
        self._eras: list[int] = []  # times of changes, in milliseconds, ascending
        self._tables: dict[tuple[int, int], tuple[Ids, Ids]] = {}
        self._former: list[int] = []  # supervoxels that were split
        self._grow(supervoxels, objects, to_ms(created))

    # -- queries

    def roots(self, ids: npt.ArrayLike, timestamp: float | None = None, stop_layer: int | None = None) -> Ids:
        """Look up the nodes above ids, as the service's ``roots_binary`` does.

        Parameters
        ----------
        ids : array_like
            Supervoxels, or nodes of any layer, in any shape.
        timestamp : float, optional
            Unix seconds; by default now. An edit is visible at exactly its own time.
        stop_layer : int, optional
            Look up the lowest ancestors in this layer or above; by default the roots.

        Returns
        -------
        numpy.ndarray
            uint64. Ids of the stop layer or above map to themselves, even if they do not exist. If none of
            the other ids has a parent, because the graph did not exist yet or they are unknown, all ids map
            to themselves; if some have one, those that have none map to 0.

        Raises
        ------
        GraphError
            If the layer does not exist.
        """
        stop = self.layout.n_layers if stop_layer is None else stop_layer
        if not 0 < stop <= self.layout.n_layers:
            raise GraphError(f"stop_layer is {stop}; it must be from 1 to {self.layout.n_layers}")
        asked = np.asarray(ids, np.uint64)
        below, above = self._table(self._era(timestamp), stop)
        if not len(below):
            return asked.copy()
        at = np.minimum(np.searchsorted(below, asked), len(below) - 1)
        known = below[at] == asked
        if not known.any():
            return asked.copy()
        rest = np.where(self.layout.layers(asked) >= stop, asked, np.uint64(0))
        return np.where(known, above[at], rest)

    def leaves(self, node: int, bounds: npt.ArrayLike | None = None, stop_layer: int = 1) -> Ids:
        """Find the nodes of a layer below a node.

        Parameters
        ----------
        node : int
            A node of any layer and age; a node that does not exist has no leaves.
        bounds : array_like, optional
            Only nodes whose chunks intersect the chunks touched by these bounds: see `GraphLayout.are_within`.
        stop_layer : int
            Layer of the result: supervoxels by default. Branches that skip the layer are left out, as in the
            service.

        Returns
        -------
        numpy.ndarray
            uint64, ascending.
        """
        reached, level = [], [node] if stop_layer > 1 or self._layer(node) > 1 else []
        while level:
            reached += [n for n in level if self._layer(n) == stop_layer]
            level = [child for n in level if self._layer(n) > stop_layer for child in self.children(n)]
        ids = np.sort(np.asarray(reached, np.uint64))
        return ids if bounds is None else ids[self.layout.are_within(ids, bounds)]

    def children(self, node: int) -> tuple[int, ...]:
        """Return a node's children; a supervoxel or an unknown node has none."""
        return self._children.get(int(node), _NONE)

    def level2_children(self, chunk_id: int, timestamp: float | None = None) -> dict[int, tuple[int, ...]]:
        """Find the layer-2 nodes that a chunk had at a time and before, with their supervoxels.

        Parameters
        ----------
        chunk_id : int
            A layer-2 id with any segment.
        timestamp : float, optional
            Unix seconds; by default now.

        Returns
        -------
        dict
            Nodes made up to that time, including those replaced by edits, as in the service.

        Raises
        ------
        GraphError
            If the id is not of layer 2.
        """
        if self._layer(chunk_id) != 2:
            raise GraphError(f"only chunks of layer 2 can be read; {chunk_id} is of layer {self._layer(chunk_id)}")
        chunk, ms = int(self.layout.chunk_ids(chunk_id)), to_ms(timestamp)
        with self._lock:
            nodes = [chunk + n for n in range(1, self._segments.get(chunk, 0) + 1)]
            return {node: self._children[node] for node in nodes if self.history.created[node] <= ms}

    def exist(self, ids: Sequence[int], timestamp: float | None = None) -> list[bool]:
        """Return True for ids, of any layer, that existed at a time (unix seconds; by default now)."""
        ms, born = to_ms(timestamp), self.history.created
        known = np.isin(np.asarray(ids, np.uint64), self._supervoxels_ever())
        return [born.get(int(node), self._eras[0] if sv else ms + 1) <= ms for node, sv in zip(ids, known, strict=True)]

    @property
    def created(self) -> float:
        """Time of the graph's creation, in unix seconds."""
        return self._eras[0] / 1000

    @property
    def edited(self) -> float:
        """Time of the last edit, in unix seconds."""
        return self._eras[-1] / 1000

    # -- edits

    def merge(self, first: int, second: int, timestamp: float | None = None) -> int:
        """Merge two objects.

        Parameters
        ----------
        first, second : int
            Two current roots.
        timestamp : float, optional
            Time of the edit, in unix seconds, after all previous edits; by default now, or a millisecond after the
            last edit.

        Returns
        -------
        int
            The new root.

        Raises
        ------
        GraphError
            If the roots are the same, unknown or outdated, or the time is not after the last edit.
        """
        with self._lock:
            ms = self._check_edit([first, second], timestamp)
            parts = [self._level2(first), self._level2(second)]
            shared = sorted(parts[0].keys() & parts[1].keys())
            both = [[sv for part in parts for sv in self._children[part[chunk]]] for chunk in shared]
            joined = {chunk: self._add(2, chunk, svs, ms) for chunk, svs in zip(shared, both, strict=True)}
            if not shared:
                self._renew(parts, ms)
            nodes = parts[0] | parts[1] | joined
            return self._finish(ms, [first, second], [list(nodes.values())])[0]

    def split(self, root: int, supervoxels: npt.ArrayLike, timestamp: float | None = None) -> tuple[int, int]:
        """Split an object in two.

        Parameters
        ----------
        root : int
            A current root.
        supervoxels : array_like
            Supervoxels of the root that become a new object.
        timestamp : float, optional
            As in `merge`.

        Returns
        -------
        tuple of int
            The new root of the given supervoxels, and the new root of the others.

        Raises
        ------
        GraphError
            As in `merge`, and if the supervoxels are none or all of the root's, or belong to another root.
        """
        with self._lock:
            ms = self._check_edit([root], timestamp)
            given, own = set(np.asarray(supervoxels, np.uint64).tolist()), set(self.leaves(root).tolist())
            if not given or not given < own:
                raise GraphError(f"a split needs some of the {len(own)} supervoxels of {root}, and no others")
            parts: list[dict[int, int]] = [{}, {}]
            for chunk, node in self._level2(root).items():
                inside = [sv for sv in self._children[node] if sv in given]
                outside = [sv for sv in self._children[node] if sv not in given]
                for part, mine, others in zip(parts, (inside, outside), (outside, inside), strict=True):
                    if mine:
                        part[chunk] = self._add(2, chunk, mine, ms) if others else node
            if not parts[0].keys() & parts[1].keys():
                self._renew(parts, ms)
            roots = self._finish(ms, [root], [list(part.values()) for part in parts])
            return roots[0], roots[1]

    def split_supervoxel(self, supervoxel: int, pieces: int) -> Ids:
        """Replace a supervoxel by new ones in its chunk, which have its parents at all times; no root changes.

        As in the service, its pieces take its place among the children of its parents, also of former ones, and the
        supervoxel itself keeps its parents: its root is the last that it had.

        Parameters
        ----------
        supervoxel : int
            A supervoxel that was not split before.
        pieces : int
            Number of new supervoxels, two or more.

        Returns
        -------
        numpy.ndarray
            uint64 (pieces,): the new supervoxels; their segments are higher than all in the chunk.

        Raises
        ------
        GraphError
            If the supervoxel is unknown or was split, or there are fewer than two pieces.
        """
        with self._lock:
            old = int(supervoxel)
            if pieces < 2 or old not in self.supervoxels.tolist():
                raise GraphError(f"{old} cannot be split into {pieces}: two or more pieces of a current supervoxel are")
            chunk = self.layout.chunk_ids(old)
            known = self._supervoxels_ever()
            last = known[self.layout.chunk_ids(known) == chunk].max()
            new: Ids = last + np.arange(1, pieces + 1, dtype=np.uint64)
            rows: list[tuple[int, int, int]] = []  # in order of time, as before
            for child, ms, parent in zip(*self._links, strict=True):
                rows.append((child, ms, parent))
                if child == old:
                    rows += [(piece, ms, parent) for piece in new.tolist()]
                    others = [sv for sv in self._children[parent] if sv != old]
                    self._children[parent] = tuple(sorted({*others, *new.tolist()}))
            child_list, ms_list, parent_list = (list(column) for column in zip(*rows, strict=True))
            self._links = child_list, ms_list, parent_list
            self.supervoxels = np.sort(np.append(self.supervoxels[self.supervoxels != np.uint64(old)], new))
            self._former.append(old)
            self._tables.clear()
            return new

    # -- building

    def _grow(self, supervoxels: Ids, objects: Ids, ms: int) -> None:
        chunk_ids = self.layout.chunk_ids(supervoxels) + (np.uint64(1) << np.uint64(56))  # of layer 2
        members: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for name, chunk, sv in zip(objects.tolist(), chunk_ids.tolist(), supervoxels.tolist(), strict=True):
            members[name][chunk].append(sv)
        for chunks in members.values():
            self._assemble([self._add(2, chunk, svs, ms) for chunk, svs in chunks.items()], ms, {})
        self._eras.append(ms)

    def _add(self, layer: int, chunk: int | Sequence[int], children: Iterable[int], ms: int) -> int:
        """Make a node in a chunk, which is given by its id or by its position in the layer."""
        if not isinstance(chunk, int):
            chunk = int(self.layout.encode(layer, chunk, 0))
        self._segments[chunk] += 1
        node = chunk + self._segments[chunk]
        below = tuple(sorted(children))
        self._children[node] = below
        self.history.created[node] = ms
        for column, values in zip(self._links, (below, [ms] * len(below), [node] * len(below)), strict=True):
            column.extend(values)
        return node

    def _assemble(self, nodes: list[int], ms: int, kept: Mapping[tuple[int, ...], int]) -> int:
        """Make an object's nodes above layer 2, reusing those with the same children; return its root."""
        for layer in range(3, self.layout.n_layers):
            ids = np.asarray(nodes, np.uint64)
            shift = layer - self.layout.layers(ids)
            chunks = self.layout.chunks(ids) >> shift[:, None]
            groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for chunk, node in zip(map(tuple, chunks.tolist()), nodes, strict=True):
                groups[chunk].append(node)
            nodes = [
                group[0] if len(group) == 1 else kept.get(tuple(sorted(group))) or self._add(layer, chunk, group, ms)
                for chunk, group in groups.items()
            ]
        return self._add(self.layout.n_layers, (0, 0, 0), nodes, ms)

    def _finish(self, ms: int, old: list[int], objects: list[list[int]]) -> list[int]:
        inner = [node for root in old for node in self._descendants(root)]
        kept = {self._children[node]: node for node in inner}
        new = [self._assemble(nodes, ms, kept) for nodes in objects]
        self.history.record(ms, old, new)
        self._eras.append(ms)  # last, so that queries see no incomplete edit
        return new

    def _renew(self, parts: list[dict[int, int]], ms: int) -> None:
        """Replace the closest nodes of two parts that share no chunk, as if an edge between them had changed."""
        chunks = [list(part) for part in parts]
        places = [self.layout.chunks(ids) for ids in chunks]
        distance, nearest = cKDTree(places[0]).query(places[1])
        end = int(np.argmin(distance))
        for part, chunk in zip(parts, (chunks[0][nearest[end]], chunks[1][end]), strict=True):
            part[chunk] = self._add(2, chunk, self._children[part[chunk]], ms)

    def _check_edit(self, roots: list[int], timestamp: float | None) -> int:
        ms = max(to_ms(None), self._eras[-1] + 1) if timestamp is None else to_ms(timestamp)
        if ms <= self._eras[-1]:
            raise GraphError(f"edits must be in order: {ms} ms is not after the last edit, at {self._eras[-1]} ms")
        latest = self.history.are_latest(roots, ms / 1000)
        if len(set(roots)) < len(roots) or not latest.all() or (self.layout.layers(roots) < self.layout.n_layers).any():
            raise GraphError(f"an edit needs distinct roots that are up to date, not {roots}")
        return ms

    # -- lookups

    def _supervoxels_ever(self) -> Ids:
        return np.append(self.supervoxels, np.array(self._former, np.uint64))

    def _era(self, timestamp: float | None) -> int:
        """Return the number of changes of the graph up to a time."""
        return bisect_right(self._eras, to_ms(timestamp))

    def _table(self, era: int, stop: int) -> tuple[Ids, Ids]:
        """Return all ids below a layer that had a parent, ascending, and their lowest ancestors at or above it."""
        with self._lock:
            if (era, stop) not in self._tables:
                self._tables[era, stop] = self._make_table(era, stop)
            return self._tables[era, stop]

    def _make_table(self, era: int, stop: int) -> tuple[Ids, Ids]:
        if era == 0:
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        count = bisect_right(self._links[1], self._eras[era - 1])
        child, parent = (np.asarray(self._links[column][:count], np.uint64) for column in (0, 2))
        below, last = np.unique(child[::-1], return_index=True)  # links are in order of time, so that the last wins
        above = parent[::-1][last]
        wanted = self.layout.layers(below) < stop
        climbed = above.copy()
        while (low := self.layout.layers(climbed) < stop).any():
            climbed[low] = above[np.searchsorted(below, climbed[low])]
        return below[wanted], climbed[wanted]

    def _descendants(self, node: int) -> list[int]:
        """Return the nodes between a root and its layer 2."""
        inner, level = [], list(self.children(node))
        while level := [n for n in level if self._layer(n) > 2]:
            inner += level
            level = [child for n in level for child in self.children(n)]
        return inner

    def _level2(self, root: int) -> dict[int, int]:
        """Return the layer-2 nodes of a root, one for each chunk, by the id of the chunk."""
        nodes = self.leaves(root, stop_layer=2)
        return dict(zip(self.layout.chunk_ids(nodes).tolist(), nodes.tolist(), strict=True))

    def _layer(self, node: int) -> int:
        return int(node) >> 56
