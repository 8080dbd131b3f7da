"""The client's `save_*` methods: cutouts, or given arrays, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
from numpy.typing import ArrayLike

from imagery_dask.arrays.lazy import lazy_array
from imagery_dask.arrays.masks import SegmentationMasks
from imagery_dask.client.parameters import describe
from imagery_dask.client.settings import ClientSettings
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.labels import LabelRequest, RootIds
from imagery_dask.model.moments import Moment
from imagery_dask.render.save import check_masks, check_write_options, save_image_slices, save_masks

__all__ = ["SavesPictures"]

Colormap = Mapping[int, Sequence[int]]


class SavesPictures:
    """Mixin of `ImageryClient`: PNG files of cutouts."""

    _settings: ClientSettings

    @describe
    def save_imagery(
        self,
        filename_prefix: str,
        bounds: ArrayLike | None = None,
        mip: int | None = None,
        precomputed_image: object = None,
        slice_axis: int = 2,
        bbox_size: ArrayLike | None = None,
        image_size: ArrayLike | None = None,
        resolution: ArrayLike | None = None,
        scale_to_bounds: bool | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write imagery as PNG files, one per slice; the whole volume is never in memory at once.

        Files are ``{prefix}_imagery.png``, or ``{prefix}_slice_{i}_imagery.png`` for several slices.

        Parameters
        ----------
        {parameters}
        precomputed_image : numpy.ndarray or dask.array.Array, optional
            Imagery to write instead of a cutout, with axes x, y, z.
        """
        check_write_options(kwargs)
        if precomputed_image is None:
            cutout = self._settings.image_cutout(
                _needed(bounds), 0, bbox_size=bbox_size, image_size=image_size, mip=mip, resolution=resolution,
                scale_to_bounds=scale_to_bounds,
            )  # fmt: skip
            precomputed_image = _picture(cutout)
        save_image_slices(filename_prefix, "imagery", precomputed_image, slice_axis, "imagery", verbose, **kwargs)

    @describe
    def save_segmentation_masks(
        self,
        filename_prefix: str,
        bounds: ArrayLike | None = None,
        mip: int | None = None,
        root_ids: RootIds = "all",
        precomputed_masks: Mapping[int, Any] | None = None,
        segmentation_colormap: Colormap | None = None,
        slice_axis: int = 2,
        include_null_root: bool = False,
        bbox_size: ArrayLike | None = None,
        image_size: ArrayLike | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        scale_to_bounds: bool | None = None,
        verbose: bool = False,
        **kwargs: object,
    ) -> None:
        """Write the mask of each object as PNG files, transparent outside the object.

        Files are ``{prefix}_root_id_{id}.png``, or ``{prefix}_slice_{i}_root_id_{id}.png`` for several slices.

        Parameters
        ----------
        {parameters}
        precomputed_masks : mapping of int to array, optional
            Masks (numpy or dask) by root id to write instead of those of a cutout, with axes x, y, z.
        """
        check_write_options(kwargs)
        if precomputed_masks is None:
            cutout = self._settings.labels_cutout(
                _needed(bounds), LabelRequest(root_ids, timestamp=timestamp), bbox_size=bbox_size,
                image_size=image_size, mip=mip, resolution=resolution, scale_to_bounds=scale_to_bounds,
            )  # fmt: skip
            precomputed_masks = SegmentationMasks(cutout, include_null_root)
        save_masks(filename_prefix, precomputed_masks, slice_axis, segmentation_colormap or {}, verbose, **kwargs)

    @describe
    def save_image_and_segmentation_masks(
        self,
        filename_prefix: str,
        bounds: ArrayLike | None = None,
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        root_ids: RootIds = "all",
        include_null_root: bool = False,
        segmentation_colormap: Colormap | None = None,
        resize: bool = True,
        precomputed_data: tuple[Any, Mapping[int, Any]] | None = None,
        slice_axis: int = 2,
        bbox_size: ArrayLike | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        scale_to_bounds: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write imagery and the mask of each object, aligned, as PNG files.

        Files are named as by `save_imagery` and `save_segmentation_masks`.

        Parameters
        ----------
        {parameters}
        precomputed_data : tuple of array and mapping, optional
            Imagery, and masks by root id, to write instead of those of a cutout.
        """
        check_write_options(kwargs, "verbose")
        if precomputed_data is None:
            cutout, labels = self._settings.pair(
                _needed(bounds), (image_mip, segmentation_mip), LabelRequest(root_ids, timestamp=timestamp),
                resize=resize, order=0, bbox_size=bbox_size, resolution=resolution, scale_to_bounds=scale_to_bounds,
            )  # fmt: skip
            precomputed_data = _picture(cutout), SegmentationMasks(labels, include_null_root)
        image, masks = precomputed_data
        check_masks(masks, slice_axis, segmentation_colormap or {})
        self.save_imagery(filename_prefix, precomputed_image=image, slice_axis=slice_axis, **kwargs)
        self.save_segmentation_masks(
            filename_prefix, precomputed_masks=masks, slice_axis=slice_axis,
            segmentation_colormap=segmentation_colormap, **kwargs,
        )  # fmt: skip


def _picture(cutout: Cutout) -> da.Array:
    """Return imagery for pictures; with several channels no axis is squeezed, so that the last axis is the channels."""
    image = lazy_array(cutout, squeeze=cutout.channels == 1)
    return image if image.ndim > 1 else lazy_array(cutout, squeeze=False)  # a row of voxels is a picture of height 1


def _needed(bounds: ArrayLike | None) -> ArrayLike:
    if bounds is None:
        raise ValueError("bounds is None: give bounds, or the data to write (precomputed_...).")
    return bounds
