"""Chunks of a version store that are lost: they are not stored, although its tables have supervoxels there.

Zarr stores no chunk whose voxels are all 0, so that a lost file looks like an empty one. The table of supervoxels tells
them apart, because it has the number of voxels and the box of each. They are compared with the box of a whole shard, if
that does not exist, since a chunk of it may have nothing but the middles of supervoxels. Of a coarser level, the voxels
that it was made of tell. Both are read only if a chunk is not stored, and what was found is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.errors import MissingChunkError
from imagery_dask.geometry.grid import AXES, VoxelGrid
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.model.graph_ids import id_ranges
from imagery_dask.model.layer import Layer
from imagery_dask.sources import SourceHandle, open_volume
from imagery_dask.sources.graph.root_tables import Columns, id_table
from imagery_dask.sources.graph.table_footers import SUPERVOXEL
from imagery_dask.sources.volumes.stored_volume import UnstoredChunk
from imagery_dask.urls import redacted

__all__ = ["lost_chunks_refused"]

Counts = NDArray[np.int64]

VOXELS = "voxels"
STARTS, STOPS = (tuple(f"{axis}_{end}" for axis in AXES) for end in ("start", "stop"))
# Boxes whose contents are remembered, of all stores.
BOXES_KEPT = 2**14
ALL_IDS = np.zeros(1, np.uint64), np.full(1, 2**64 - 1, np.uint64)


def lost_chunks_refused(handle: SourceHandle, query: RootQuery) -> Callable[[Sequence[UnstoredChunk]], None] | None:
    """Return what raises `MissingChunkError` if chunks of a level are lost, by their boxes; None without a table.

    Parameters
    ----------
    handle : SourceHandle
        The level.
    query : RootQuery
        Its `stored` table lies in a folder beside the table of supervoxels.
    """
    return None if query.stored is None else partial(_refuse_lost, handle, query)


def _refuse_lost(handle: SourceHandle, query: RootQuery, unstored: Sequence[UnstoredChunk]) -> None:
    opened = id_table(str(query.stored)).kept_as
    # A chunk of a coarser level is compared with its voxels; those of a shard are more than fit into memory.
    boxes = {chunk.box if handle.mip.level else chunk.absent: chunk for chunk in unstored}
    for box, chunk in boxes.items():
        what = _lost_from(box, handle, query, opened)
        if what is not None:
            raise _lost(chunk, _store_of(query), what)


@lru_cache(maxsize=BOXES_KEPT)
def _lost_from(box: VoxelGrid, handle: SourceHandle, query: RootQuery, opened: object) -> str | None:
    """Return what must be in a box of which nothing is stored; None if nothing need be in it.

    `opened` is of the open table of the version: another one, once that is replaced, as it is when supervoxels change.
    """
    del opened
    layer = open_volume(handle.path).layer
    place = _below(box, layer.mips[0].grid)
    ids = id_ranges(query.graph, place) or ALL_IDS
    # That table is open; most chunks that are not stored are in graph chunks without supervoxels.
    if next(id_table(str(query.stored)).rows_within(*ids), None) is None:
        return None
    for rows in id_table(f"{_store_of(query)}/supervoxels.parquet").rows_within(*ids, [VOXELS, *STARTS, *STOPS]):
        least, is_near = _least_voxels(rows, place)
        if handle.mip.level == 0 and least.any():
            return f"voxels of {rows[SUPERVOXEL][least.argmax()]}"
        if handle.mip.level > 0 and is_near:
            return f"voxels at level {handle.mip.level - 1}" if _has_voxels(handle, layer, query, box) else None
    return None


def _least_voxels(rows: Columns, place: VoxelGrid) -> tuple[Counts, bool]:
    """Return how many voxels of each supervoxel must be in a box; and whether the box of any crosses it.

    As many must be as do not fit into the rest of the supervoxel's box; and one, if a whole face of that box, which is
    tight, is in this one.
    """
    starts, stops = (np.stack([rows[name] for name in names], axis=1) for names in (STARTS, STOPS))
    low, high = np.array(place.start), np.array(place.stop)
    shared = np.maximum(np.minimum(stops, high) - np.maximum(starts, low), 0).prod(axis=1)
    before, after = starts < low, stops > high
    has_face = (shared > 0) & ((before | after).sum(axis=1) <= 1) & ~(before & after).any(axis=1)
    rest = (stops - starts).prod(axis=1) - shared
    return np.maximum(rows[VOXELS].astype(np.int64) - rest, has_face), bool(shared.any())


def _has_voxels(handle: SourceHandle, layer: Layer, query: RootQuery, box: VoxelGrid) -> bool:
    """Return True if a box of a coarser level has voxels that are not 0, as the level tells that it was made of."""
    below = layer.mips[handle.mip.level - 1]
    finer = replace(handle, mip=below)
    unstored = lost_chunks_refused(finer, query)
    voxels = finer.read(_below(box, below.grid), unstored=unstored)[..., 0]
    step = box.steps_from(below.grid.resolution_nm).map(int)
    return bool(kernels.downsample(np.require(voxels, requirements="W"), step, labels=True).any())


def _below(box: VoxelGrid, level: VoxelGrid) -> VoxelGrid:
    """Return the voxels of a finer level that a box is made of."""
    step = box.steps_from(level.resolution_nm).map(int)
    return VoxelGrid.between(box.start * step, box.stop * step, level.resolution_nm).intersection(level)


def _store_of(query: RootQuery) -> str:
    return str(query.stored).rpartition("/roots/")[0]


def _lost(chunk: UnstoredChunk, store: str, what: str) -> MissingChunkError:
    place = redacted(store.removeprefix("file://"))
    return MissingChunkError(
        f"{redacted(chunk.key)} is not stored, and reads as 0, but the store has {what} in its file, which is lost. "
        f"'imagery-dask versions verify {place}' finds other losses. Restore the file from a copy, or write it again: "
        f"'imagery-dask verify {place}/volume.zarr', then 'imagery-dask export --plan {place}/volume.zarr --repair'."
    )
