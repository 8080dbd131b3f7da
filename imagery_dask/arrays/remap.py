"""Map stored ids to requested ids, block by block.

Root ids are looked up on source voxels, before resizing multiplies them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.arrays.lost_chunks import lost_chunks_refused
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.model.labels import LabelRule
from imagery_dask.sources import (
    Layout,
    Once,
    SourceHandle,
    active_counts,
    has_objects,
    look_up_roots,
    near_roots,
    roots_from_leaves,
)

__all__ = ["apply_rule", "ids_of", "read_objects", "relabel", "relabel_block"]


def read_objects(
    handle: SourceHandle,
    box: VoxelGrid,
    rule: LabelRule | None,
    layout: Layout,
    once: Once | None = None,
    out: Array | None = None,
) -> Array:
    """Read a box of voxels and apply a rule to their ids.

    Parameters
    ----------
    handle : SourceHandle
        Level to read.
    box : VoxelGrid
        Voxels of that level, absolute.
    rule : LabelRule or None
        How stored ids are mapped; None leaves the voxels unchanged.
    layout : {"F", "C"}
        Memory order of the result.
    once : Once, optional
        The array that the box is of: supervoxels without a root are logged once for it, unless they are counted.
    out : numpy.ndarray, shape (x, y, z, channel), optional
        Takes the ids, without a rule, or for one that `takes_stored_roots`.

    Returns
    -------
    numpy.ndarray, shape (x, y, z, channel)
        Voxels, ids, int64 ids or a bool mask; nothing is read where graph chunks are known to hold no listed object.

    Raises
    ------
    MissingChunkError
        A chunk of a version store is lost.
    """
    if rule is None:
        return handle.read(box, layout, out=out)
    query, once = rule.query, _unless_counted(once)
    if query is None:
        return apply_rule(handle.read(box, layout), rule)
    if rule.keep is not None and not _holds(handle, box, query, rule):
        return _finished(np.zeros((*box.shape, 1), np.uint64, layout), rule)

    def look_up(stored: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return ids_of(stored, query, rule, once)

    relabel = near_roots(query, look_up) if rule.keep is None else look_up
    unstored = lost_chunks_refused(handle, query)
    return _finished(handle.read(box, layout, relabel, out, unstored), rule)


def apply_rule(block: Array, rule: LabelRule, once: Once | None = None) -> Array:
    """Apply a rule to a block of stored ids, which may be changed in place.

    Parameters
    ----------
    block : numpy.ndarray of integers
        Ids as stored.
    rule : LabelRule
        How they are mapped.

    Returns
    -------
    numpy.ndarray
        Ids, int64 ids or a bool mask.
    """
    if rule.query is not None:
        query = rule.query
        return _finished(kernels.replace_ids(block, lambda stored: ids_of(stored, query, rule, once)), rule)
    return _finished(block if rule.keep is None else kernels.keep_ids(block, rule.keep), rule)


def relabel_block(ids: Array, rule: LabelRule) -> Array:
    """Return a block of a lazy array, mapped as by `relabel`."""
    return relabel(ids, rule, Once.of(rule))


def relabel(ids: Array, rule: LabelRule, once: Once | None = None) -> Array:
    """Return a new array of stored ids, of any shape and integer type, mapped by a rule."""
    own = np.array(ids, dtype=np.uint64 if rule.query is not None else None, order="C", ndmin=1)
    return apply_rule(own, rule, _unless_counted(once or Once())).reshape(np.shape(ids))


def ids_of(
    supervoxels: NDArray[np.uint64], query: RootQuery, rule: LabelRule, once: Once | None = None
) -> NDArray[np.uint64]:
    """Map distinct, ascending supervoxels by a rule with a query."""
    if rule.keep is None:
        return look_up_roots(query, supervoxels, once)
    of_roots = replace(query, stop_layer=None)
    if rule.leaves_within is not None:
        roots = roots_from_leaves(of_roots, rule.keep, rule.leaves_within, supervoxels)
    else:
        roots = look_up_roots(of_roots, supervoxels, once) if rule.keep else np.zeros_like(supervoxels)
    kept = np.isin(roots, np.array(rule.keep, dtype=np.uint64)) & (roots != 0)
    roots[~kept] = 0
    if query.stop_layer is not None:
        roots[kept] = look_up_roots(query, supervoxels[kept], once)
    return roots


def _holds(handle: SourceHandle, box: VoxelGrid, query: RootQuery, rule: LabelRule) -> bool:
    """Return False if a box holds none of the objects of a rule, so that it is 0 whatever is stored."""
    inside = box.intersection(handle.mip.grid)
    return has_objects(replace(query, stop_layer=None), rule.keep or (), rule.leaves_within, inside)


def _unless_counted(once: Once | None) -> Once | None:
    """Return None where supervoxels without a root are counted, and told in a report."""
    return once if active_counts() is None else None


def _finished(ids: Array, rule: LabelRule) -> Array:
    """Compare or convert mapped ids as the rule says."""
    if rule.mask_of is not None:
        return kernels.is_id(ids, rule.mask_of)
    return kernels.to_int64(ids) if rule.as_int64 else ids
