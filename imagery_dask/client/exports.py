"""Planning exports from a client."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, Literal

import xarray as xr
from numpy.typing import ArrayLike

from imagery_dask.export.planning.estimate import SAMPLES, PlannedExport, plan_export
from imagery_dask.export.registry import KINDS
from imagery_dask.model.labels import RootIds
from imagery_dask.model.moments import Moment
from imagery_dask.validate import choice

__all__ = ["PlansExports"]

# Writer, and the argument of it that the name of a format is.
FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "zarr": ("zarr", {}),
    "precomputed": ("precomputed", {}),
    "png": ("png", {"format": "png"}),
    "tiff": ("png", {"format": "tiff"}),
}


class PlansExports:
    """Plans of exports of what a client has."""

    @abstractmethod
    def dataset(self, bounds: ArrayLike, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Give imagery and segmentation on one grid."""

    def plan_export(
        self,
        bounds: ArrayLike,
        url: str | os.PathLike[str],
        *,
        format: Literal["zarr", "precomputed", "png", "tiff"] = "zarr",
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        root_ids: RootIds = "all",
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        workers: int | None = None,
        worker_memory: int | None = None,
        block_mib: float | None = None,
        samples: int = SAMPLES,
        **options: Any,
    ) -> PlannedExport:
        """Say what an export of a region would take, before anything is spent.

        Blocks, requests and objects follow from the plan and are exact; bytes, memory and time are measured on a few
        blocks, which are done for real into a folder that is removed. Nothing is written to `url`.

        Parameters
        ----------
        bounds : array-like
            Two corners (2 x 3), upper exclusive.
        url : str or path
            Where the export would be written; for slices their prefix.
        format : {"zarr", "precomputed", "png", "tiff"}
            Whose writer: `to_zarr`, `to_precomputed`, `to_png` with files of the one or the other kind.
        image_mip, segmentation_mip, root_ids, resolution, timestamp
            As in `dataset`. The region has the voxels of the finer of the two mips.
        workers : int, optional
            Workers of one thread each to estimate for; one per core by default.
        worker_memory : int, optional
            Bytes that each of them has; by default this machine's, shared between them.
        block_mib : float, optional
            Size of blocks in MiB.
        samples : int
            Blocks of each volume to measure.
        **options
            Further arguments of the writer, such as ``chunks``, ``levels``, ``codec``.

        Returns
        -------
        PlannedExport
            Prints as a table; ``save(path)`` writes what ``imagery-dask export --plan`` reads, ``run(cluster=...)``
            runs it.

        Raises
        ------
        ValueError
            A block does not fit into a worker, or arguments cannot be.
        AccessRefusedError, OSError
            The target cannot be written, or the source cannot be read.
        """
        kind, more = FORMATS[choice("format", format, tuple(FORMATS))]
        data = self.dataset(
            bounds, image_mip=image_mip, segmentation_mip=segmentation_mip, root_ids=root_ids, resolution=resolution,
            timestamp=timestamp, scale_to_bounds=False,
        )  # fmt: skip
        export = KINDS[kind](data, url, **more, **options)
        return plan_export(
            export, workers=workers, worker_memory=worker_memory, block_mib=block_mib,
            samples=samples,
        )  # fmt: skip
