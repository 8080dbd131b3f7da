"""Plan exports of what a client reads."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from imagery_dask.export.planning import SAMPLES
from imagery_dask.model.labels import RootIds
from imagery_dask.model.moments import Moment
from imagery_dask.validate import choice

if TYPE_CHECKING:
    import xarray as xr

    from imagery_dask.export.planning.estimate import PlannedExport

__all__ = ["PlansExports"]

# Kind of export, and the options that the name of a format implies.
FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "zarr": ("zarr", {}),
    "precomputed": ("precomputed", {}),
    "png": ("png", {"format": "png"}),
    "tiff": ("png", {"format": "tiff"}),
}


class PlansExports:
    """Adds `plan_export` to a client."""

    @abstractmethod
    def dataset(self, bounds: ArrayLike, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Return imagery and segmentation on one grid."""

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
        **options: object,
    ) -> PlannedExport:
        """Plan the export of a region, and estimate its requests, bytes, memory and time.

        Blocks, requests and objects follow from the plan and are exact. Bytes, memory and time are measured on a few
        blocks, which are written to a temporary folder. Nothing is written to `url`.

        Parameters
        ----------
        bounds : array-like
            Two corners (2 x 3), upper exclusive.
        url : str or path
            Target of the export; for slices their prefix.
        format : {"zarr", "precomputed", "png", "tiff"}
            Format of `to_zarr`, of `to_precomputed`, or of the files of `to_png`.
        image_mip, segmentation_mip, root_ids, resolution, timestamp
            As in `dataset`. The region has the voxels of the finer of the two mips.
        workers : int, optional
            Number of workers to estimate for, with one thread each; by default one per core.
        worker_memory : int, optional
            Memory of each worker in bytes; by default an equal part of this machine's memory.
        block_mib : float, optional
            Size of blocks in MiB.
        samples : int
            Number of blocks of each volume to measure.
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
            A block does not fit into a worker, or an argument is not valid.
        AccessRefusedError, OSError
            The target cannot be written, or the source cannot be read.
        """
        name, more = FORMATS[choice("format", format, tuple(FORMATS))]
        from imagery_dask.export.planning.estimate import plan_export
        from imagery_dask.export.registry import KINDS

        kind = KINDS[name]
        of_format = kind.options(**more, **options)
        data = self.dataset(
            bounds, image_mip=image_mip, segmentation_mip=segmentation_mip, root_ids=root_ids, resolution=resolution,
            timestamp=timestamp, scale_to_bounds=False,
        )  # fmt: skip
        return plan_export(
            kind.export(data, url, of_format), workers=workers, worker_memory=worker_memory, block_mib=block_mib,
            samples=samples,
        )  # fmt: skip
