"""Lazy cutouts and cluster-scale exports of connectomics imagery and segmentation.

`ImageryClient` returns cutouts of precomputed imagery and segmentation as lazy dask arrays. `to_zarr`,
`to_precomputed` and `to_png` write any dask array or xarray object as OME-Zarr, as Neuroglancer precomputed volumes or
as one picture per slice, block by block on a dask cluster.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask import composite as composite
    from imagery_dask import demo as demo
    from imagery_dask import sampling as sampling
    from imagery_dask.checking.check_volume import verify_volume
    from imagery_dask.client import ImageryClient
    from imagery_dask.composite import stack_images
    from imagery_dask.export.downsampling.downsample import downsample
    from imagery_dask.export.images.to_png import to_png
    from imagery_dask.export.multiscale.compact_ids import root_ids_of
    from imagery_dask.export.precomputed.to_precomputed import to_precomputed
    from imagery_dask.export.verify import verify_export
    from imagery_dask.export.zarr.to_zarr import to_zarr
    from imagery_dask.model.arguments import bounds_from_center
    from imagery_dask.render.overlays import composite_overlay
    from imagery_dask.render.save import save_image_slices
    from imagery_dask.versions.add_version import add_version, plan_version, remove_version
    from imagery_dask.versions.create_store import create_versions
    from imagery_dask.versions.opened_versions import open_versions
    from imagery_dask.versions.verify_store import verify_versions
    from imagery_dask.viewer.links import bounds_from_neuroglancer
    from imagery_dask.xarrays.opened import open_export
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.checking.check_volume": ["verify_volume"],
            "imagery_dask.client": ["ImageryClient"],
            "imagery_dask.composite": ["stack_images"],
            "imagery_dask.export.downsampling.downsample": ["downsample"],
            "imagery_dask.export.images.to_png": ["to_png"],
            "imagery_dask.export.multiscale.compact_ids": ["root_ids_of"],
            "imagery_dask.export.precomputed.to_precomputed": ["to_precomputed"],
            "imagery_dask.export.verify": ["verify_export"],
            "imagery_dask.export.zarr.to_zarr": ["to_zarr"],
            "imagery_dask.model.arguments": ["bounds_from_center"],
            "imagery_dask.render.overlays": ["composite_overlay"],
            "imagery_dask.render.save": ["save_image_slices"],
            "imagery_dask.versions.opened_versions": ["open_versions"],
            "imagery_dask.versions.add_version": ["add_version", "plan_version", "remove_version"],
            "imagery_dask.versions.create_store": ["create_versions"],
            "imagery_dask.versions.verify_store": ["verify_versions"],
            "imagery_dask.viewer.links": ["bounds_from_neuroglancer"],
            "imagery_dask.xarrays.opened": ["open_export"],
        },
        modules=["composite", "demo", "sampling"],
    )

__all__ = [
    "ImageryClient",
    "add_version",
    "bounds_from_center",
    "bounds_from_neuroglancer",
    "composite_overlay",
    "create_versions",
    "downsample",
    "open_export",
    "open_versions",
    "plan_version",
    "remove_version",
    "root_ids_of",
    "save_image_slices",
    "stack_images",
    "to_png",
    "to_precomputed",
    "to_zarr",
    "verify_export",
    "verify_versions",
    "verify_volume",
]
