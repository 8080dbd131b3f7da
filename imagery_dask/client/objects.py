"""The client's queries for ids: objects in a region, objects at points, roots of supervoxels."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imagery_dask.arrays.lazy import lazy_array
from imagery_dask.arrays.masks import count_ids
from imagery_dask.arrays.points import stored_ids_at, voxels_of
from imagery_dask.arrays.remap import relabel, relabel_block
from imagery_dask.client.parameters import describe
from imagery_dask.client.settings import ClientSettings
from imagery_dask.model.labels import LabelRequest, RootIds
from imagery_dask.model.moments import Moment
from imagery_dask.validate import numbers

__all__ = ["FindsObjects"]


class FindsObjects:
    """Mixin of `ImageryClient`: queries for ids."""

    _settings: ClientSettings

    @describe
    def unique_roots(
        self,
        bounds: ArrayLike,
        root_ids: RootIds = "all",
        include_null_root: bool = False,
        bbox_size: ArrayLike | None = None,
        image_size: ArrayLike | None = None,
        mip: int | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        *,
        stop_layer: int | None = None,
    ) -> dict[int, int]:
        """Return the objects in a region and their sizes; this reads the region once.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        dict of int to int
            Number of voxels by root id, in voxels of the mip that is read; ids in ascending order.
        """
        cutout = self._settings.labels_cutout(
            bounds, LabelRequest(root_ids, False, timestamp, stop_layer), bbox_size=bbox_size, image_size=image_size,
            mip=mip, resolution=resolution, scale_to_bounds=False,
        )  # fmt: skip
        return {root: n for root, n in count_ids(lazy_array(cutout)).items() if root or include_null_root}

    @describe
    def root_at(
        self,
        points: ArrayLike,
        mip: int | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        *,
        stop_layer: int | None = None,
    ) -> NDArray[np.uint64]:
        """Return the root id at each point; a storage chunk that contains several points is read once.

        Parameters
        ----------
        points : array-like of numbers, shape (n, 3) or (3,)
            Points x, y, z in voxels of `resolution`.
        {parameters}

        Returns
        -------
        numpy.ndarray, shape (n,) or ()
            Root ids, in the segmentation's dtype; 0 where there is no object, and outside the volume.

        Raises
        ------
        TypeError, ValueError
            When `points` are not finite numbers of that shape.
        """
        xyz = _points(points)
        settings, layer = self._settings, self._settings.segmentation_layer()
        rule = settings.rule(LabelRequest("all", False, timestamp, stop_layer))
        level = layer.mip(settings.segmentation_mip if mip is None else mip)
        voxels = voxels_of(xyz.reshape(-1, 3), settings.resolution_or(resolution), level.grid.resolution_nm)
        settings.tell_outside(level.grid, voxels)
        stored = stored_ids_at(layer, level.level, voxels, settings.missing, rule.supervoxels_at)
        ids = relabel(stored, rule)
        return ids.reshape(xyz.shape[:-1])

    @describe
    def remap(self, supervoxels: object, timestamp: Moment = None, *, stop_layer: int | None = None) -> Any:
        """Return the root ids of supervoxels at a timestamp.

        Parameters
        ----------
        supervoxels : array-like of integers or dask.array.Array
            Supervoxel ids, of any shape.
        {parameters}

        Returns
        -------
        numpy.ndarray or dask.array.Array of uint64
            Root ids, in the shape of `supervoxels`; lazy for a dask array. 0 for 0 and for ids without a root.

        Raises
        ------
        TypeError
            When `supervoxels` are not integers.
        ValueError
            When the segmentation is flat, or a supervoxel id is negative.
        """
        rule = self._settings.rule(LabelRequest("all", False, timestamp, stop_layer))
        if rule.query is None:
            raise ValueError("remap needs a dynamic segmentation (graphene://...); this client's segmentation is flat.")
        if isinstance(supervoxels, da.Array):
            _check_ids(supervoxels.dtype)
            return supervoxels.map_blocks(
                relabel_block, rule, dtype=np.uint64, meta=np.empty((0,) * supervoxels.ndim, np.uint64)
            )
        ids = np.asarray(supervoxels)
        _check_ids(ids.dtype, empty=ids.size == 0)
        if ids.dtype.kind == "i" and (ids < 0).any():
            raise ValueError(f"supervoxels must be ids from 0 to 2**64 - 1; got {int(ids.min())}.")
        return relabel(ids, rule)


def _points(points: ArrayLike) -> NDArray[np.float64]:
    xyz = numbers("points", points, "x, y, z of one point, or of n points (n x 3)")
    if xyz.ndim not in (1, 2) or xyz.shape[-1] != 3 or not np.isfinite(xyz).all():
        raise ValueError(f"points must be finite x, y, z of one point, or of n points (n x 3); got {points!r}.")
    return xyz


def _check_ids(dtype: np.dtype[Any], empty: bool = False) -> None:
    if dtype.kind not in "ui" and not empty:
        raise TypeError(
            f"supervoxels must be integers; got {dtype}. Ids exceed 2**53: a float has already rounded them."
        )
