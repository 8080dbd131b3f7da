"""Ids at single voxels; each storage chunk that holds some of them is read once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.geometry.grid import VoxelGrid, voxels_along
from imagery_dask.model.layer import Layer
from imagery_dask.sources import Missing, SourceHandle

__all__ = ["stored_ids_at", "voxels_of"]

CHUNKS_IN_FLIGHT = 16


def voxels_of(points: NDArray[np.float64], points_nm: Sequence[float], voxel_nm: Sequence[float]) -> NDArray[np.int64]:
    """Voxels that points fall into, by the rule of `imagery_dask.geometry.grid.voxel_of`.

    Parameters
    ----------
    points : numpy.ndarray of float64, shape (n, 3)
        x, y, z in voxels of `points_nm`.
    points_nm, voxel_nm : sequence of 3 float
        Resolution of the points, and of the voxels, nm.

    Returns
    -------
    numpy.ndarray of int64, shape (n, 3)
        Absolute voxels.
    """
    along = zip(points.T, points_nm, voxel_nm, strict=True)
    return np.stack([voxels_along(values, own_nm, other_nm) for values, own_nm, other_nm in along], axis=1)


def stored_ids_at(
    layer: Layer, level: int, voxels: NDArray[np.int64], missing: Missing, supervoxels_at: int | None = None
) -> Array:
    """Read the stored ids of voxels; 0 outside the volume.

    Parameters
    ----------
    layer : Layer
        The segmentation.
    level : int
        Its mip.
    voxels : numpy.ndarray of int64, shape (n, 3)
        Absolute voxels of that mip.
    missing : {"fill", "error"}
        What a storage chunk that does not exist becomes.
    supervoxels_at : int, optional
        As of `SourceHandle`.
    """
    mip = layer.mip(level)
    ids = np.zeros(len(voxels), dtype=layer.dtype)
    inside = ((voxels >= mip.grid.start) & (voxels < mip.grid.stop)).all(axis=1)
    cells, members = np.unique(
        (voxels[inside] - mip.grid.start) // np.asarray(mip.chunk_shape), axis=0, return_inverse=True
    )
    order = np.argsort(members.ravel(), kind="stable")
    groups = np.split(np.flatnonzero(inside)[order], np.cumsum(np.bincount(members.ravel(), minlength=len(cells)))[:-1])
    handle = SourceHandle(layer.path, mip, missing, supervoxels_at=supervoxels_at)

    def read(group: NDArray[np.int64]) -> None:
        here = voxels[group]
        low = here.min(axis=0)
        box = VoxelGrid.between(low.tolist(), (here.max(axis=0) + 1).tolist(), mip.grid.resolution_nm)
        ids[group] = handle.read(box)[(*(here - low).T, 0)]

    with ThreadPoolExecutor(CHUNKS_IN_FLIGHT) as threads:
        list(threads.map(read, [group for group in groups if len(group)]))
    return ids
