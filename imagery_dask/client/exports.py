"""The client's `plan_export`: estimates of an export before it runs."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from imagery_dask.export.planning import SAMPLES
from imagery_dask.model.arguments import check_region_names
from imagery_dask.model.labels import RootIds
from imagery_dask.model.moments import Moment
from imagery_dask.validate import choice

if TYPE_CHECKING:
    import xarray as xr

    from imagery_dask.client.settings import ClientSettings
    from imagery_dask.export.planning.estimate import PlannedExport

__all__ = ["PlansExports"]

# Kind of export for each format name, and the options that the name implies.
FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "zarr": ("zarr", {}),
    "precomputed": ("precomputed", {}),
    "png": ("png", {"format": "png"}),
    "tiff": ("png", {"format": "tiff"}),
}


class PlansExports:
    """Mixin of `ImageryClient`: plans of exports."""

    _settings: ClientSettings

    @abstractmethod
    def dataset(self, bounds: ArrayLike, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Return imagery and segmentation on one grid (see `ImageryClient.dataset`)."""

    def plan_export(
        self,
        bounds: ArrayLike | Mapping[str, ArrayLike],
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

        The numbers of blocks, requests and objects are exact. Bytes, memory and time are extrapolated from a few sample
        blocks, which are written to a temporary folder. Nothing is written to `url`.

        Parameters
        ----------
        bounds : array-like, shape (2, 3), or mapping of str to such
            Lower corner (inclusive) and upper corner (exclusive), x, y, z in voxels of `resolution`. Several bounds by
            name are one plan and one run, with a group or folder in `url` for each name; a dynamic segmentation shows
            one moment in all of them.
        url : str or path
            Target of the export; for "png" and "tiff", the prefix of the file names, or the folder of several bounds.
        format : {"zarr", "precomputed", "png", "tiff"}
            What to plan: `to_zarr`, `to_precomputed`, or `to_png` with that file format.
        image_mip, segmentation_mip, root_ids, resolution, timestamp
            As in `dataset`. The exported voxels are those of the finer of the two mips.
        workers : int, optional
            Number of single-threaded workers to estimate for. By default one per core of this machine.
        worker_memory : int, optional
            Memory of each worker in bytes. By default an equal part of this machine's memory.
        block_mib : float, optional
            Size of the blocks in MiB.
        samples : int
            Number of sample blocks per volume.
        **options
            Further arguments of the writer, such as ``chunks``, ``levels``, ``codec``.

        Returns
        -------
        PlannedExport
            Prints as a table, in a notebook with a row for each of several bounds. ``save(path)`` writes a file for
            ``imagery-dask export --plan``; ``run(cluster=...)`` runs the export.

        Raises
        ------
        ValueError
            When a block does not fit into a worker, or an argument is invalid.
        AccessRefusedError, OSError
            When the target cannot be written, or the source cannot be read.
        """
        name, implied = FORMATS[choice("format", format, tuple(FORMATS))]
        from imagery_dask.export.planning.estimate import plan_export
        from imagery_dask.export.registry import KINDS

        kind = KINDS[name]
        format_options = kind.options(**implied, **options)
        named = bounds if isinstance(bounds, Mapping) else {"": bounds}
        if isinstance(bounds, Mapping):
            check_region_names(list(bounds))
            if timestamp is None and self._settings.dynamic.moment is None:
                timestamp = int(time.time())
        made = {
            name: self.dataset(
                box, image_mip=image_mip, segmentation_mip=segmentation_mip, root_ids=root_ids, resolution=resolution,
                timestamp=timestamp, scale_to_bounds=False,
            )
            for name, box in named.items()
        }  # fmt: skip
        data = made if isinstance(bounds, Mapping) else made[""]
        return plan_export(
            kind.make(data, url, format_options), workers=workers, worker_memory=worker_memory, block_mib=block_mib,
            samples=samples,
        )  # fmt: skip
