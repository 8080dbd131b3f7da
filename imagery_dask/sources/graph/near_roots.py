"""Roots of near supervoxels, as those of a storage chunk are: taken by subtraction from a part of a stored table.

A part has the roots of all ids between two, and is kept beside the chunk: its neighbouring planes are not searched for
their distinct ids. Ids that a part does not tell are looked up alone; so are all, where they are not near.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.errors import SourceError
from imagery_dask.model.chunkedgraph import SUPERVOXEL_LAYER, RootQuery
from imagery_dask.sources.graph.root_tables import IdTable, column_of_layer, id_table
from imagery_dask.sources.volumes.chunk_cache import ChunkCache

__all__ = ["NearRoots", "near_roots"]

Ids = NDArray[np.uint64]

# Ids between the first and the last one of a part: 2 MiB, as much as a storage chunk.
MOST_IDS = 2**18


class NearRoots:
    """Replaces the supervoxels of storage chunks by their roots in a stored table.

    Parameters
    ----------
    url : str
        Cloud path of the table.
    stop_layer : int or None
        Layer of the ids to return; None for root ids.
    look_up : callable
        Returns the roots of distinct, ascending supervoxels that the table does not tell, or raises.
    """

    def __init__(self, url: str, stop_layer: int | None, look_up: Callable[[Ids], Ids]) -> None:
        self._table, self._column, self._look_up = id_table(url), column_of_layer(stop_layer), look_up

    def __call__(self, supervoxels: Ids) -> Ids:
        """Return the roots of distinct, ascending supervoxels."""
        return self._look_up(supervoxels)

    def replaced(self, supervoxels: Ids, chunk: Hashable, cache: ChunkCache | None) -> Ids:
        """Return the roots of voxels of a storage chunk, in their shape.

        Parameters
        ----------
        supervoxels : numpy.ndarray of uint64
            Voxels.
        chunk : hashable
            Names the storage chunk.
        cache : ChunkCache or None
            Keeps the part of the table for other voxels of the chunk.
        """
        key = (self._table.kept_as, self._column, chunk)
        part = None if cache is None else cache.get(key)
        roots = None if part is None else self._taken(part, supervoxels)
        if roots is None and (part := self._part_near(supervoxels)) is not None:
            if cache is not None:
                cache.put(key, part)
            roots = self._taken(part, supervoxels)
        return kernels.replace_ids(supervoxels.copy(order="K"), self) if roots is None else roots

    def _taken(self, part: Array, supervoxels: Ids) -> Ids | None:
        """Return the roots of supervoxels from a part of the table; None if ids lie outside of it.

        Ids that it does not tell are looked up.
        """
        places = supervoxels - part[0]
        # Ids before the part, and 0, are taken for its first entry; those behind it for its last.
        roots = np.asarray(part[1:].take(places.view(np.int64).T, mode="clip").T)
        if np.count_nonzero(roots) == np.count_nonzero(supervoxels):
            return roots
        untold = (roots == 0) & (supervoxels != 0)
        if (places[untold] - np.uint64(1) >= np.uint64(len(part) - 3)).any():
            return None
        ids, at = np.unique(supervoxels[untold], return_inverse=True)
        roots[untold] = self._look_up(ids)[at]
        return roots

    def _part_near(self, supervoxels: Ids) -> Array | None:
        """Return the part of the table with near ids; None if there is none, or the table was replaced since."""
        try:
            return _part(self._table, self._column, supervoxels)
        except SourceError:  # which the lookup raises again, unless it finds the table that is there now
            return None


def near_roots(query: RootQuery, look_up: Callable[[Ids], Ids]) -> Callable[[Ids], Ids]:
    """Return what replaces the supervoxels of storage chunks by the roots of a query with a stored table.

    `look_up` itself is returned for supervoxels, and for a table that does not open, of which it tells.
    """
    if query.stored is None or query.layer == SUPERVOXEL_LAYER:
        return look_up
    try:
        return NearRoots(query.stored, query.stop_layer, look_up)
    except SourceError:
        return look_up


def _part(table: IdTable, column: str, supervoxels: Ids) -> Array | None:
    """Return the part of a table with near ids, and half as many before and behind; None if they are not near.

    The number before the first id, and the roots from that number to the one behind the last id: 0, as of ids that have
    no row or no root.
    """
    if not supervoxels.size or supervoxels.dtype != np.uint64 or column not in table.columns:
        return None
    first = int((supervoxels - np.uint64(1)).min()) + 1  # without 0, which becomes the largest number
    last = int(supervoxels.max())
    if not 0 <= last - first < MOST_IDS:
        return None
    margin = min(last - first + 1, MOST_IDS - (last - first)) // 2
    ids, roots = table.rows_near(first, last, margin, column)
    if not len(ids):
        return None
    first, last = min(first, int(ids[0])), max(last, int(ids[-1]))
    part = np.zeros(last - first + 4, np.uint64)
    part[0] = first - 1
    part[(ids - np.uint64(first)).astype(np.int64) + 2] = roots
    return part
