"""Cut objects into supervoxels: pieces within graph chunks, named by their chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
        uint64 (n,): each supervoxel, ascending, and the object that it is a piece of.
    """

    volume: Ids
    ids: Ids
    objects: Ids


def cut_supervoxels(
    objects: npt.NDArray[np.integer], layout: GraphLayout, pieces: int = 1, seed: int = 0
) -> Supervoxels:
    """Name what each object has in each graph chunk, in one piece or several.

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
        None of which crosses a chunk.
    """
    # In Fortran order, as the layers' files are: the pieces of a part are slabs, stacked mostly along z.
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
    # Scattered within the chunk, as supervoxels of real watersheds are, and close enough for floats to merge.
    position = np.arange(len(chunk_of)) - np.searchsorted(chunk_of, chunk_of)
    ids = layout.encode(1, np.stack(np.unravel_index(chunk_of, layout.n_chunks), axis=-1), 1 + 3 * position)
    volume = np.zeros(labels.shape, np.uint64)
    volume[inside] = ids[piece]
    return Supervoxels(volume.reshape(objects.shape, order="F"), ids, names[name_of].astype(np.uint64))


def _chunk_numbers(shape: tuple[int, ...], layout: GraphLayout) -> npt.NDArray[np.int64]:
    """For each voxel in Fortran order, its chunk's number, x slowest: numbers ascend as ids do."""
    x, y, z = (np.arange(n) // size for n, size in zip(shape, layout.chunk_size, strict=True))
    _, ny, nz = layout.n_chunks
    numbers: npt.NDArray[np.int64] = (x[:, None, None] * ny + y[:, None]) * nz + z
    return numbers.ravel(order="F")
