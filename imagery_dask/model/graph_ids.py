"""The bits of supervoxel ids: their graph chunk, and its position. No I/O.

Ids sort by graph chunk, x slowest::

    | layer | chunk x | chunk y | chunk z | segment |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.chunkedgraph import ID_BITS, SUPERVOXEL_LAYER, ChunkedGraph

__all__ = ["SupervoxelIds", "chunks_crossed", "id_ranges"]

Ids = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class SupervoxelIds:
    """Layout of the ids of layer 1.

    Parameters
    ----------
    layer_bits : int
        Bits that hold the layer.
    chunk_bits : int
        Bits that hold each of the chunk's three coordinates.

    Examples
    --------
    >>> ids = SupervoxelIds(layer_bits=8, chunk_bits=10)
    >>> one = np.array([(1 << 56) + (5 << 46) + 77], np.uint64)
    >>> ids.chunks_of(one) == (1 << 56) + (5 << 46), ids.x_of(one)
    (array([ True]), array([5]))
    """

    layer_bits: int
    chunk_bits: int

    @classmethod
    def from_info(cls, path: str, info: JsonObject) -> SupervoxelIds:
        """Read the parsed ``info`` JSON of a graph.

        Raises
        ------
        SourceError
            The info does not say how many bits hold the position of a chunk.
        """
        graph = info["graph"]
        try:
            ids = cls(int(graph.get("n_bits_for_layer_id", 8)), int(graph["spatial_bit_masks"][str(SUPERVOXEL_LAYER)]))
            if not ids.chunk_bits > 0 or ids.segment_bits < 1:
                raise ValueError(f"spatial_bit_masks: {graph['spatial_bit_masks']!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"The info of {path!r} does not say where ids hold their chunk: {error}.") from error
        return ids

    @property
    def segment_bits(self) -> int:
        """Bits that number the supervoxels of a chunk."""
        return ID_BITS - self.layer_bits - 3 * self.chunk_bits

    def chunks_of(self, ids: Ids) -> Ids:
        """Return the id of the graph chunk of each supervoxel: the supervoxel's, with the segment's bits 0."""
        segment = np.uint64(self.segment_bits)
        return np.asarray(ids >> segment << segment, np.uint64)

    def chunk_id(self, index: Sequence[int]) -> int:
        """Return the id of the graph chunk at a position, x, y, z in chunks."""
        x, y, z = map(int, index)
        bits = self.chunk_bits
        place = (x << 2 * bits) | (y << bits) | z
        return (SUPERVOXEL_LAYER << (ID_BITS - self.layer_bits)) | (place << self.segment_bits)

    def x_of(self, ids: Ids) -> NDArray[np.int64]:
        """Return the position along x of the graph chunk of each supervoxel, in chunks."""
        return self._along(ids, 2)

    def index_of(self, ids: Ids) -> NDArray[np.int64]:
        """Return the position of the graph chunk of each supervoxel, x, y, z in chunks, shape (n, 3)."""
        return np.stack([self._along(ids, places) for places in (2, 1, 0)], axis=1)

    def _along(self, ids: Ids, places: int) -> NDArray[np.int64]:
        at = ids >> np.uint64(self.segment_bits + places * self.chunk_bits) & np.uint64((1 << self.chunk_bits) - 1)
        return at.astype(np.int64)


def id_ranges(graph: ChunkedGraph, box: VoxelGrid) -> tuple[Ids, Ids] | None:
    """Return the ids that supervoxels in a box can have: those of the graph chunks that it crosses.

    Parameters
    ----------
    graph : ChunkedGraph
        Whose supervoxels they are.
    box : VoxelGrid
        Voxels of any level of the segmentation.

    Returns
    -------
    starts, stops : numpy.ndarray of uint64, shape (n,), or None
        First id of each range, and one past its last, ascending. None where it is not known.
    """
    crossed = chunks_crossed(graph, box)
    if crossed is None or graph.chunk_bits is None:
        return None
    first, stop = crossed
    ids = SupervoxelIds(graph.layer_bits, graph.chunk_bits)
    columns = [(x, y) for x in range(first[0], stop[0]) for y in range(first[1], stop[1])]
    starts = np.array([ids.chunk_id((x, y, first[2])) for x, y in columns], np.uint64)
    return starts, starts + np.uint64((stop[2] - first[2]) << ids.segment_bits)


def chunks_crossed(graph: ChunkedGraph, box: VoxelGrid) -> tuple[Vec3[int], Vec3[int]] | None:
    """Return the first graph chunk that a box crosses, and one past the last, along each axis; None if not known."""
    if graph.chunk_bits is None:
        return None
    if box.resolution_nm != graph.resolution_nm:
        # Voxels of coarser levels need not begin where voxels of the graph do.
        box = VoxelGrid.between(box.start - Vec3.of((1, 1, 1)), box.stop + Vec3.of((1, 1, 1)), box.resolution_nm)
        box = box.at(graph.resolution_nm)
    origin, shape = Vec3.of(graph.origin), graph.chunk_shape
    first = (box.start - origin).map(lambda at, size: at // size, shape)
    stop = (box.stop - origin).map(lambda at, size: -(-at // size), shape)
    return (first, stop) if min(first) >= 0 and max(stop) <= 1 << graph.chunk_bits else None
