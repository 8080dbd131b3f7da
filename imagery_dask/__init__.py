"""Lazy cutouts and cluster-scale exports of connectomics imagery and segmentation.

`ImageryClient` cuts imagery and segmentation out of precomputed volumes as lazy dask arrays; `to_zarr` writes any dask
array or xarray object as OME-Zarr over a dask cluster, `to_png` as pictures of slices.
"""

from imagery_dask.client import ImageryClient
from imagery_dask.export.images.to_png import to_png
from imagery_dask.export.precomputed.to_precomputed import to_precomputed
from imagery_dask.export.verify import verify_export
from imagery_dask.export.zarr.to_zarr import to_zarr
from imagery_dask.model.arguments import bounds_from_center
from imagery_dask.render.overlays import composite_overlay
from imagery_dask.render.save import save_image_slices

__all__ = [
    "ImageryClient",
    "bounds_from_center",
    "composite_overlay",
    "save_image_slices",
    "to_png",
    "to_precomputed",
    "to_zarr",
    "verify_export",
]
