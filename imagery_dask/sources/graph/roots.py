"""Lookup of the roots of supervoxels: at the server, in this process's cache, or in a stored table.

`has_objects` says which blocks need not be read. Two functions find the roots of a block's supervoxels:

* `look_up_roots` sends the block's distinct supervoxels to the server: one request per block; none for a query with a
  stored table.
* `roots_from_leaves` fetches the supervoxels of a few listed roots within the whole cutout, once per process: one
  request per root. It is cheaper for a few objects in many blocks.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.config import config
from imagery_dask.geometry.grid import VoxelGrid, bounds_key
from imagery_dask.model.chunkedgraph import SUPERVOXEL_LAYER, RootQuery
from imagery_dask.model.graph_ids import SupervoxelIds, id_ranges
from imagery_dask.model.moments import describe_moment
from imagery_dask.sources.graph.graph_server import graph_server
from imagery_dask.sources.graph.root_cache import RootCache
from imagery_dask.sources.graph.root_tables import id_table, look_up_stored
from imagery_dask.sources.graph.table_footers import opened_as
from imagery_dask.sources.requests.counts import Once, ReadCounts, active_counts
from imagery_dask.sources.requests.throttle import request_slots

__all__ = ["chunks_of_objects", "has_objects", "look_up_roots", "roots_from_leaves"]

Ids = NDArray[np.uint64]

LEAF_TABLES_KEPT = 16
LEAF_REQUESTS_IN_FLIGHT = 8

_caches: dict[tuple[str, str, int, int | None], RootCache] = {}
_caches_lock = threading.Lock()
_leaves_lock = threading.Lock()
_logger = logging.getLogger("imagery_dask")


def look_up_roots(query: RootQuery, supervoxels: Ids, once: Once | None = None) -> Ids:
    """Return the roots of supervoxels, from this process's cache or the server, or from the table of the query.

    Parameters
    ----------
    query : RootQuery
        Graph and timestamp.
    supervoxels : numpy.ndarray of uint64, shape (n,)
        Distinct ids, ascending.
    once : Once, optional
        The array that the supervoxels are of, if it is to be logged that some have no root.

    Returns
    -------
    numpy.ndarray of uint64, shape (n,)
        0 for 0 and for supervoxels without a root at that time, which are counted in the thread's `collect_counts`.

    Raises
    ------
    AccessRefusedError, ServerError
        If the server refuses access, or does not answer.
    SourceError
        If the table of the query does not have the supervoxels.
    """
    roots = supervoxels.copy()  # 0 and ids of the requested layer map to themselves
    asked = (supervoxels != 0) & (query.graph.layer_of(supervoxels) != query.layer)
    if query.layer == SUPERVOXEL_LAYER or not asked.any():
        return roots
    wanted, counts = supervoxels[asked], ReadCounts()
    if query.stored is None:
        answers = _from_server(query, wanted, counts)
    else:
        answers = look_up_stored(query.stored, wanted, query.stop_layer)
    roots[asked] = answers
    counts.add_zero_roots(wanted[answers == 0])
    collecting = active_counts()
    if collecting is not None:
        collecting.include(counts)
    if counts.zero_roots and once is not None and once.is_first():
        _logger.warning(
            "%d of %d supervoxels have no root at %s, the first is %d: their voxels are 0. Table %s may be younger "
            "than that, or the ids are not of it. This is said of the first such block of an array.", counts.zero_roots,
            len(wanted), describe_moment(query.timestamp), counts.zero_root_ids[0], query.graph.table,
        )  # fmt: skip
    return roots


def roots_from_leaves(query: RootQuery, keep: tuple[int, ...], within: VoxelGrid, supervoxels: Ids) -> Ids:
    """Return the roots of supervoxels that belong to listed roots, 0 for all others.

    Parameters
    ----------
    query : RootQuery
        Graph and timestamp.
    keep : tuple of int
        Root ids.
    within : VoxelGrid
        Box that contains the supervoxels, in voxels of the graph's resolution: the same for every block of a cutout.
    supervoxels : numpy.ndarray of uint64, shape (n,)
        Distinct ids.
    """
    # Under a lock, so that threads that start together fetch a table once.
    with _leaves_lock:
        leaves, owners = _leaf_table(query, keep, within)
    roots = np.zeros_like(supervoxels)
    if len(leaves):
        at = np.minimum(np.searchsorted(leaves, supervoxels), len(leaves) - 1)
        ours = leaves[at] == supervoxels
        roots[ours] = owners[at[ours]]
    return roots


def has_objects(query: RootQuery, keep: tuple[int, ...], within: VoxelGrid | None, box: VoxelGrid) -> bool:
    """Return False if no voxel of a box is of listed roots; this is known of its graph chunks, and no voxel is read.

    Parameters
    ----------
    query : RootQuery
        Graph and timestamp. Without a stored table, and without `within`, the answer is True.
    keep : tuple of int
        Root ids.
    within : VoxelGrid or None
        Box in which the leaves of the roots are known, as of `roots_from_leaves`.
    box : VoxelGrid
        Voxels of any level of the segmentation.
    """
    if not keep:
        return False
    ranges = id_ranges(query.graph, box) if query.stored is not None or within is not None else None
    if ranges is None:
        return True
    starts, stops = ranges
    if within is not None:
        with _leaves_lock:
            leaves, _ = _leaf_table(query, keep, within)
        return bool((leaves.searchsorted(starts) < leaves.searchsorted(stops)).any())
    assert query.stored is not None
    return id_table(query.stored).has_roots(np.array(keep, np.uint64), starts, stops)


def chunks_of_objects(query: RootQuery, keep: tuple[int, ...], within: VoxelGrid | None) -> Ids | None:
    """Return the ids of the graph chunks that hold listed roots, ascending; None where `has_objects` does not know."""
    graph = query.graph
    if graph.chunk_bits is None or (query.stored is None and within is None):
        return None
    if within is not None:
        with _leaves_lock:
            supervoxels, _ = _leaf_table(query, keep, within)
    else:
        supervoxels = _supervoxels_of(str(query.stored), keep, opened_as(str(query.stored)))
    return np.unique(SupervoxelIds(graph.layer_bits, graph.chunk_bits).chunks_of(supervoxels))


@lru_cache(maxsize=1)  # for a plan, and for the report of its run
def _supervoxels_of(url: str, keep: tuple[int, ...], opened: tuple[int, ...]) -> Ids:
    del opened
    return np.concatenate([np.zeros(0, np.uint64), *id_table(url).supervoxels_of(np.array(keep, np.uint64))])


def _from_server(query: RootQuery, supervoxels: Ids, counts: ReadCounts) -> Ids:
    cache = _cache_of(query)
    known, answers = cache.get(supervoxels)
    missing = supervoxels[~known]
    if len(missing):
        answers[~known] = fetched = _fetch(query, missing, counts)
        cache.put(missing, fetched)
    return answers


def _fetch(query: RootQuery, supervoxels: Ids, counts: ReadCounts) -> Ids:
    graph = query.graph
    path = f"/segmentation/api/v1/table/{graph.table}/roots_binary"
    params: dict[str, object] = {"timestamp": query.timestamp}
    if query.stop_layer is not None:
        params["stop_layer"] = query.stop_layer
    answers = []
    slots = request_slots(graph.server, query.max_requests)
    most = config.get("graph.batch_ids")
    for start in range(0, len(supervoxels), most):
        batch = supervoxels[start : start + most]
        with slots:
            answers.append(graph_server(graph.server).post_ids(path, batch, params, valid=_is_answer(query)))
        counts.root_requests += 1
        counts.ids_sent += len(batch)
    roots = np.concatenate(answers)
    # For times before the graph existed, the server returns every id unchanged, which is not a root.
    layers = graph.layer_of(roots)
    roots[(layers < query.layer) | (layers > graph.layers)] = 0
    return roots


def _is_answer(query: RootQuery) -> Any:
    """Return a check of answers: ids of the requested layer or above (the graph skips layers), 0, or the sent ids."""

    def check(sent: Ids, answer: Ids) -> bool:
        layers = query.graph.layer_of(answer)
        fits = (answer == 0) | ((layers >= query.layer) & (layers <= query.graph.layers)) | (answer == sent)
        return bool(fits.all())

    return check


def _cache_of(query: RootQuery) -> RootCache:
    key = (query.graph.server, query.graph.table, query.timestamp, query.stop_layer)
    with _caches_lock:
        cache = _caches.pop(key, None)
        if cache is None:
            cache = RootCache()
        _caches[key] = cache  # the most recently used is the last
        while len(_caches) > RootCache.MOMENTS_KEPT:
            del _caches[next(iter(_caches))]
        return cache


@lru_cache(maxsize=LEAF_TABLES_KEPT)
def _leaf_table(query: RootQuery, keep: tuple[int, ...], within: VoxelGrid) -> tuple[Ids, Ids]:
    """Return the supervoxels of roots within a box, ascending, and the root of each supervoxel."""
    bounds = bounds_key(within.start, within.stop)
    collecting, slots = active_counts(), request_slots(query.graph.server, query.max_requests)
    counts = ReadCounts()

    def leaves_of(root: int) -> Ids:
        path = f"/segmentation/api/v1/table/{query.graph.table}/node/{root}/leaves"
        with slots:
            answer = graph_server(query.graph.server).get_json(path, {"bounds": bounds})
        return np.array([int(value) for value in answer.get("leaf_ids", [])], dtype=np.uint64)

    with ThreadPoolExecutor(LEAF_REQUESTS_IN_FLIGHT) as threads:
        parts = list(threads.map(leaves_of, keep))
    counts.root_requests += len(keep)
    if collecting is not None:
        collecting.include(counts)
    leaves = np.concatenate([np.zeros(0, np.uint64), *parts])
    owners = np.repeat(np.array(keep, dtype=np.uint64), [len(part) for part in parts])
    order = np.argsort(leaves, kind="stable")
    return leaves[order], owners[order]
