"""Division of objects into supervoxels: pieces within graph chunks, whose ids contain their chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagery_dask.geometry.vec import Vec3
from imagery_dask.testing.cave.graph_layout import GraphLayout, Ids

__all__ = ["Supervoxels", "cut_supervoxels"]


@dataclass(frozen=True, slots=True)
class Supervoxels:
    """Supervoxels of a volume.

    Attributes
    ----------
    volume : numpy.ndarray
        uint64 (x, y, z), Fortran-ordered: the supervoxel of each voxel, 0 for background.
    ids, objects : numpy.ndarray
        uint64 (n,): the supervoxels, ascending, and their objects.
    """

    volume: Ids
    ids: Ids
    objects: Ids


def cut_supervoxels(
    objects: npt.NDArray[np.integer], layout: GraphLayout, pieces: int = 1, seed: int = 0
) -> Supervoxels:
    """Divide each object's part of each graph chunk into one or several supervoxels.

    Parameters
    ----------
    objects : numpy.ndarray
        Labels (x, y, z) of any integer type; 0 is background.
    layout : GraphLayout
        The chunks, over a volume of this shape.
    pieces : int
        Each object's part of a chunk becomes 1 to ``pieces`` supervoxels of about the same size.
    seed : int
        The same seed gives the same supervoxels.

    Returns
    -------
    Supervoxels
        The supervoxels; none of them crosses a chunk.
    """
    # In Fortran order, so that the pieces of a part are slabs, stacked mostly along z.
    labels = np.asarray(objects).ravel(order="F")
    inside = np.flatnonzero(labels)
    names, which = np.unique(labels[inside], return_inverse=True)
    chunk = _chunk_numbers(objects.shape, layout)[inside]
    parts, part = np.unique(chunk * len(names) + which, return_inverse=True)
    rng = np.random.default_rng(seed)
    sizes = np.bincount(part, minlength=len(parts))
    counts = np.minimum(rng.integers(1, pieces, size=len(parts), endpoint=True), sizes)
    order = np.argsort(part, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first = np.cumsum(counts) - counts
    piece = first[part] + rank * counts[part] // sizes[part]
    chunk_of, name_of = np.divmod(np.repeat(parts, counts), max(len(names), 1))
    # Segments are not consecutive, as in real watersheds, but so close that float64 would merge ids.
    position = np.arange(len(chunk_of)) - np.searchsorted(chunk_of, chunk_of)
    ids = layout.encode(1, np.stack(np.unravel_index(chunk_of, layout.n_chunks), axis=-1), 1 + 3 * position)
    volume = np.zeros(labels.shape, np.uint64)
    volume[inside] = ids[piece]
    return Supervoxels(volume.reshape(objects.shape, order="F"), ids, names[name_of].astype(np.uint64))


def _chunk_numbers(shape: tuple[int, ...], layout: GraphLayout) -> npt.NDArray[np.int64]:
    """Return the chunk number of each voxel, in Fortran order; numbers count with x slowest, so that ids ascend."""
    x, y, z = Vec3.of(shape).map(lambda n, size: np.arange(n) // size, layout.chunk_size)
    _, ny, nz = layout.n_chunks
    numbers: npt.NDArray[np.int64] = (x[:, None, None] * ny + y[:, None]) * nz + z
    return numbers.ravel(order="F")
