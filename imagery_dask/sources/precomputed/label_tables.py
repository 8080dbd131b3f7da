"""Labels of compressed_segmentation chunks, read and replaced without decoding the voxels.

A chunk in this encoding holds, for each small block of voxels, a table of the block's labels, and for each voxel an
index into the table. The tables of a chunk of two million voxels have some ten thousand entries, so that finding and
replacing its distinct labels costs a hundredth of what it costs on voxels.

Format: https://github.com/google/neuroglancer/tree/master/src/sliceview/compressed_segmentation
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imagery_dask.geometry.grid import XYZ
from imagery_dask.geometry.vec import Vec3

__all__ = ["LabelTables"]

ENCODED_BITS = (0, 1, 2, 4, 8, 16, 32)
OFFSET_BITS = 24


class LabelTables:
    """Label tables of a chunk with one channel of uint64.

    Parameters
    ----------
    words : numpy.ndarray of uint32, shape (n,)
        The chunk.
    at : numpy.ndarray of int64, shape (m,)
        Positions of the labels' lower words; the higher words follow them.
    """

    def __init__(self, words: NDArray[np.uint32], at: NDArray[np.int64]) -> None:
        self._words, self._at = words, at

    @classmethod
    def parse(cls, content: bytes, shape: XYZ, block_size: XYZ) -> LabelTables | None:
        """Find the tables of a chunk.

        Parameters
        ----------
        content : bytes
            The chunk, without the transport's compression.
        shape : tuple of int
            Voxels of the chunk along x, y, z.
        block_size : tuple of int
            Voxels of the encoding's blocks along x, y, z.

        Returns
        -------
        LabelTables or None
            None if the ends of tables cannot be determined: the format stores no lengths and allows tables to overlap.
            The usual encoders write tables that do not overlap.
        """
        words: NDArray[np.uint32] = np.frombuffer(content[: len(content) // 4 * 4], "<u4")
        blocks = int(Vec3.of(shape).ceil_div(block_size).prod())  # the info may give numpy integers
        base = int(words[0]) if len(words) else 0
        if blocks == 0 or base == 0 or base + 2 * blocks > len(words):
            return None
        headers = words[base : base + 2 * blocks].reshape(-1, 2).astype(np.int64)
        bits, tables = headers[:, 0] >> OFFSET_BITS, headers[:, 0] % (1 << OFFSET_BITS) + base
        packed = bits > 0  # blocks of one label have no indices, and the offset in their header is meaningless
        if not np.isin(bits, ENCODED_BITS).all():
            return None
        indices = headers[packed, 1] + base
        sizes = -(-bits[packed] * int(np.prod(block_size)) // 32)
        # A table ends where the next table or indices begin, or where the chunk ends.
        starts, entry_of = np.unique(tables, return_inverse=True)
        edges = np.unique(np.concatenate([starts, indices, [len(words)]]))
        lengths = edges[np.minimum(np.searchsorted(edges, starts, side="right"), len(edges) - 1)] - starts
        most = np.zeros(len(starts), np.int64)
        np.maximum.at(most, entry_of, 2 << np.minimum(bits, 40))  # in words: two for each label
        after = np.append(starts, len(words))[np.searchsorted(starts, indices)]
        apart = bool((indices + sizes <= after).all()) and int(starts[0]) >= base + 2 * blocks
        if not apart or (lengths < 2).any() or (lengths % 2).any() or (lengths > most).any():
            return None
        counts = lengths // 2
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(words, np.repeat(starts, counts) + 2 * within)

    def labels(self) -> NDArray[np.uint64]:
        """Return the labels of all tables, in the order of the file."""
        low, high = self._words[self._at], self._words[self._at + 1]
        return low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))

    def replaced(self, labels: NDArray[np.uint64]) -> bytes:
        """Return the chunk with other labels, of the same number and in the same order."""
        words = self._words.copy()
        words[self._at] = labels.astype(np.uint32)  # the lower half: a cast of unsigned integers wraps
        words[self._at + 1] = (labels >> np.uint64(32)).astype(np.uint32)
        return words.tobytes()
