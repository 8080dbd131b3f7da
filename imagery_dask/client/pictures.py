"""The `save_*` calls of the client: cutouts, or data at hand, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from numpy.typing import ArrayLike

from imagery_dask.export.png import check_write_options, save_image_slices, save_masks
from imagery_dask.parameters import describe
from imagery_dask.request import RootIds

__all__ = ["SavesPictures"]

Colormap = Mapping[int, Sequence[int]]


class SavesPictures:
    """Picture files of cutouts; the part of `ImageryClient` that writes."""

    image_cutout: Any
    split_segmentation_cutout: Any
    image_and_segmentation_cutout: Any

    @describe
    def save_imagery(
        self,
        filename_prefix: str,
        bounds: ArrayLike | None = None,
        mip: int | None = None,
        precomputed_image: Any = None,
        slice_axis: int = 2,
        bbox_size: ArrayLike | None = None,
        image_size: ArrayLike | None = None,
        resolution: ArrayLike | None = None,
        scale_to_bounds: bool | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write imagery as PNG files, one per slice, without holding the volume.

        Files are ``{prefix}_imagery.png``, or ``{prefix}_slice_{i}_imagery.png`` when there are several slices.

        Parameters
        ----------
        {parameters}
        precomputed_image : numpy.ndarray or dask.array.Array, optional
            Imagery to write instead of a cutout.
        """
        check_write_options(kwargs)
        if precomputed_image is None:
            bounds = _needed(bounds)
            precomputed_image = self.image_cutout(bounds, bbox_size, image_size, mip, resolution, scale_to_bounds)
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
        timestamp: datetime | None = None,
        scale_to_bounds: bool | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the mask of every object as PNG files, transparent where the object is not.

        Files are ``{prefix}_root_id_{id}.png``, or ``{prefix}_slice_{i}_root_id_{id}.png`` for several slices.

        Parameters
        ----------
        {parameters}
        precomputed_masks : mapping of int to array, optional
            Masks (numpy or dask) to write instead of a cutout's.
        """
        check_write_options(kwargs)
        if precomputed_masks is None:
            precomputed_masks = self.split_segmentation_cutout(
                _needed(bounds), root_ids, include_null_root, bbox_size, image_size, mip, resolution, timestamp,
                scale_to_bounds,
            )  # fmt: skip
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
        timestamp: datetime | None = None,
        scale_to_bounds: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write imagery and the mask of every object, aligned, as PNG files.

        Parameters
        ----------
        {parameters}
        precomputed_data : tuple of array and mapping, optional
            Imagery and masks to write instead of a cutout's.
        """
        check_write_options(kwargs, "verbose")
        image, masks = precomputed_data or self.image_and_segmentation_cutout(
            _needed(bounds), image_mip, segmentation_mip, root_ids, resize, True, include_null_root, bbox_size,
            resolution, timestamp, scale_to_bounds,
        )  # fmt: skip
        self.save_imagery(filename_prefix, precomputed_image=image, slice_axis=slice_axis, **kwargs)
        self.save_segmentation_masks(
            filename_prefix, precomputed_masks=masks, slice_axis=slice_axis,
            segmentation_colormap=segmentation_colormap, **kwargs,
        )  # fmt: skip


def _needed(bounds: ArrayLike | None) -> ArrayLike:
    if bounds is None:
        raise ValueError("Give bounds to cut out, or data at hand (precomputed_...).")
    return bounds
