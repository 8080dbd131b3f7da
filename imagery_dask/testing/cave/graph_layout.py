"""The grid of a chunked graph, and the bits of its ids.

An id is ``layer (8 bits) | x | y | z | segment``; x, y and z are a chunk's position in a grid that is coarser by 2
along each axis with each layer. As in PyChunkedGraph (``compute_bitmasks``), positions have one bit less with each
layer, but at least one; layers 1 and 2 have the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imagery_dask.geometry.vec import Vec3

__all__ = ["GraphLayout", "Ids"]

Ids = npt.NDArray[np.uint64]
Triple = tuple[int, int, int]

LAYER_BITS = 8
_SHIFT = 64 - LAYER_BITS


@dataclass(frozen=True, slots=True)
class GraphLayout:
    """The grid of a chunked graph.

    Attributes
    ----------
    chunk_size : tuple of int
        Voxels of a chunk of layers 1 and 2 along x, y, z, at the watershed's mip 0.
    voxel_offset : tuple of int
        The watershed's first voxel, at which the first chunk begins.
    n_chunks : tuple of int
        Chunks of layers 1 and 2 along x, y, z.
    n_layers : int
        The layer of the roots; its only chunk covers the volume. Supervoxels are in layer 1.
    spatial_bits : int
        Bits for each coordinate of a chunk of layers 1 and 2.
    """

    chunk_size: Triple
    voxel_offset: Triple
    n_chunks: Triple
    n_layers: int
    spatial_bits: int = 10

    def __post_init__(self) -> None:
        if not 3 <= self.n_layers < 100:
            raise ValueError(f"n_layers is {self.n_layers}; it must be at least 3 and below 100")
        if max(self.n_chunks) > 2 ** min(self.n_layers - 2, self.spatial_bits):
            raise ValueError(
                f"{self.n_chunks} chunks need more than {self.n_layers} layers or {self.spatial_bits} spatial bits"
            )
        if self.n_layers - 2 > self.spatial_bits or 3 * self.spatial_bits > _SHIFT - 8:
            raise ValueError(f"spatial_bits is {self.spatial_bits}; it must be from n_layers - 2 to 16")

    @classmethod
    def for_volume(
        cls,
        shape: Sequence[int],
        chunk_size: Triple,
        voxel_offset: Triple = (0, 0, 0),
        n_layers: int | None = None,
        spatial_bits: int = 10,
    ) -> GraphLayout:
        """Return the layout of a volume of ``shape`` voxels; by default with the fewest possible layers, at least 3."""
        n_chunks = Vec3.of(shape).ceil_div(chunk_size)
        if n_layers is None:
            n_layers = max(3, (max(n_chunks) - 1).bit_length() + 2)
        return cls(chunk_size, voxel_offset, n_chunks, n_layers, spatial_bits)

    def bits(self, layer: int) -> int:
        """Return the bits for each coordinate of a chunk of a layer."""
        return self.spatial_bits if layer <= 2 else max(1, self.n_layers - layer)

    @property
    def bit_masks(self) -> dict[str, int]:
        """``spatial_bit_masks`` of a graph's info: bits for each coordinate, by layer."""
        return {str(layer): self.bits(layer) for layer in range(1, self.n_layers + 1)}

    def encode(self, layer: int, chunks: npt.ArrayLike, segments: npt.ArrayLike) -> Ids:
        """Return the ids of chunk positions, of shape (n, 3) or (3,) for one chunk, and n segments."""
        bits = self.bits(layer)
        x, y, z = np.moveaxis(np.asarray(chunks, np.uint64), -1, 0)
        ids: Ids = np.full(np.broadcast_shapes(x.shape, np.shape(segments)), layer << _SHIFT, np.uint64)
        for n, position in enumerate((x, y, z), 1):
            ids |= position << np.uint64(_SHIFT - n * bits)
        ids |= np.asarray(segments, np.uint64)
        return ids

    def layers(self, ids: Any) -> npt.NDArray[np.int64]:
        """Return the layers of ids."""
        return (np.asarray(ids, np.uint64) >> np.uint64(_SHIFT)).astype(np.int64)

    def chunk_ids(self, ids: Any) -> Ids:
        """Return ids with the segment's bits set to 0."""
        ids = np.asarray(ids, np.uint64)
        segment = self._segment_bits(ids)
        chunks: Ids = ids >> segment << segment
        return chunks

    def chunks(self, ids: Any) -> npt.NDArray[np.int64]:
        """Return chunk positions of ids, each in the grid of its own layer; the ids' shape with an axis of 3 added."""
        ids = np.asarray(ids, np.uint64)
        segment = self._segment_bits(ids)
        bits = (np.uint64(_SHIFT) - segment) // np.uint64(3)
        mask = (np.uint64(1) << bits) - np.uint64(1)
        z = ids >> segment
        return np.stack([z >> bits >> bits & mask, z >> bits & mask, z & mask], axis=-1).astype(np.int64)

    def are_within(self, ids: Ids, bounds: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return True for ids whose chunks intersect the chunks that bounds touch.

        Parameters
        ----------
        ids : numpy.ndarray
            Ids of any layers.
        bounds : array_like
            Lower (inclusive) and upper (exclusive) corner, shape (2, 3), in voxels of mip 0, absolute. They
            are widened to whole chunks of layer 2.

        Returns
        -------
        numpy.ndarray
            bool, of the ids' shape.
        """
        low, high = np.asarray(bounds, np.int64) - self.voxel_offset
        size = np.asarray(self.chunk_size)
        fan_out = 1 << np.maximum(self.layers(ids) - 2, 0)[:, None]
        chunks = self.chunks(ids)
        below = chunks * fan_out < -(-high // size)
        above = (chunks + 1) * fan_out > low // size
        within: npt.NDArray[np.bool_] = (below & above).all(axis=1)
        return within

    def _segment_bits(self, ids: Ids) -> Ids:
        table = [_SHIFT - 3 * self.bits(layer) for layer in range(self.n_layers + 1)]
        return np.asarray(table, np.uint64)[np.minimum(self.layers(ids), self.n_layers)]
