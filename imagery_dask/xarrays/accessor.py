"""The accessor ``em`` of xarray objects: crop in nm, draw, view and export.

It is registered when this module is imported. The client and `open_export` import it; ``import
imagery_dask.xarrays.accessor`` registers it for xarray objects of other origin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from imagery_dask.geometry.grid import AXES, VoxelGrid
from imagery_dask.model.arguments import corners
from imagery_dask.validate import axis as checked_axis
from imagery_dask.validate import triple, whole_number

if TYPE_CHECKING:
    from imagery_dask.export.core.inputs import Volume
    from imagery_dask.render.show import Picture
    from imagery_dask.run import RunReport
    from imagery_dask.viewer.loopback import View

__all__ = ["EmAccessor"]

T = TypeVar("T", xr.DataArray, xr.Dataset)


class EmAccessor(Generic[T]):
    """Methods of ``array.em`` and ``dataset.em``, for objects with dims x, y, z and voxel centers in nm.

    Parameters
    ----------
    data : xarray.DataArray or xarray.Dataset
        The object. Datasets have the variables ``image`` and ``segmentation``, either or both.
    """

    def __init__(self, data: T) -> None:
        self._data: T = data

    def crop(self, bounds: ArrayLike, *, resolution: ArrayLike | None = None) -> T:
        """Return the part of the data in a box; nothing is read.

        Parameters
        ----------
        bounds : array-like, shape (2, 3)
            Lower corner (inclusive) and upper corner (exclusive), x, y, z in nm.
        resolution : array-like of 3 numbers, optional
            Give `bounds` in voxels of this size instead, nm per voxel (x, y, z), as for a cutout.

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The voxels whose centers lie in the box. Where the box is partly outside of the data, it is cut off.

        Raises
        ------
        ValueError
            If no voxel lies in the box; the message says where the data are.
        """
        step = (1.0, 1.0, 1.0) if resolution is None else triple("resolution", resolution, positive=True)
        lower, upper = (np.multiply(corner, step) for corner in corners(bounds))
        centers = [self._centers(axis) for axis in AXES]
        inside = [
            np.flatnonzero((along >= low) & (along < high))
            for along, low, high in zip(centers, lower, upper, strict=True)
        ]
        if not all(index.size for index in inside):
            first, last = ([float(pick(along)) for along in centers] for pick in (np.min, np.max))
            raise ValueError(
                f"bounds {lower.tolist()} to {upper.tolist()} nm have no voxel of the data, whose voxel centers are "
                f"{first} to {last} nm. Give bounds in nm, or in voxels with resolution=(x, y, z)."
            )
        indexers = {
            axis: slice(int(index[0]), int(index[-1]) + 1)
            for axis, index in zip(AXES, inside, strict=True)
            if axis in self._data.dims
        }
        cropped: T = self._data.isel(indexers)
        return cropped

    def to_zarr(self, url: str | os.PathLike[str], **options: Any) -> RunReport:
        """Write the data as OME-Zarr; see `imagery_dask.to_zarr`.

        Parameters
        ----------
        url : str or path
            Where to write.
        **options
            Keyword arguments of `imagery_dask.to_zarr`, such as ``levels="auto"``.

        Returns
        -------
        RunReport
            Blocks, voxels, bytes, seconds, storage chunks missing.
        """
        from imagery_dask.export.zarr.to_zarr import to_zarr

        return to_zarr(self._data, url, **options)

    def show(
        self,
        axis: int | str = 2,
        n: int = 1,
        *,
        outline: bool = False,
        alpha: float | None = None,
        window: tuple[float, float] | None = None,
        colors: Mapping[int, Sequence[int]] | None = None,
        legend: bool | None = None,
        scale_bar: bool = True,
        ax: Any = None,
    ) -> Picture | None:
        """Draw the middle plane, or a contact sheet of planes spread evenly, upright: grey imagery, colored objects.

        Only the planes shown are read.

        Parameters
        ----------
        axis : {0, 1, 2, "x", "y", "z"}
            Axis along which the data are cut; z by default.
        n : int
            Number of planes; fewer where there are fewer.
        outline, alpha, window, colors, legend, scale_bar, ax
            As of `ImageryClient.show`.

        Returns
        -------
        matplotlib.figure.Figure or None
            The figure; None with `ax`.

        Raises
        ------
        ImportError
            When matplotlib is not installed.
        ValueError, TypeError
            When an argument is invalid, or the data are not imagery and ids on one evenly spaced grid.
        """
        from imagery_dask.export.core.inputs import as_volumes
        from imagery_dask.render.show import Look, show_planes

        across, count = checked_axis("axis", axis, letters=True), whole_number("n", n)
        look = Look(outline=outline, alpha=alpha, window=window, colors=colors, legend=legend, scale_bar=scale_bar)
        volumes = {volume.labels: volume for volume in as_volumes(self._data)}
        first = next(iter(volumes.values()))
        depth = first.shape[across]
        spread = [depth // 2] if count == 1 else np.linspace(0, depth - 1, count).round()
        planes = np.unique(spread).astype(int).tolist()
        image, labels = (None if volume is None else _voxels(volume) for volume in map(volumes.get, (False, True)))
        return show_planes(image, labels, _grid(first), axis=across, planes=planes, look=look, ax=ax)

    def view(self, root_ids: Sequence[int] = (), *, browser: bool = True) -> View:
        """Show the data in Neuroglancer, served from this machine; chunks are read when the viewer asks for them.

        Parameters
        ----------
        root_ids : sequence of int
            Objects to select.
        browser : bool
            Open a browser. Without one on this machine, the address of the page is printed.

        Returns
        -------
        View
            The page; it serves until ``view.stop()`` or the end of the process.
        """
        from imagery_dask.viewer.launch import view_data

        return view_data(self._data, root_ids, browser=browser)

    def _centers(self, axis: str) -> Any:
        if axis not in self._data.coords:
            raise ValueError(
                f"The data have no coordinate {axis!r}: em.crop needs voxel centers in nm along x, y and z, as objects "
                "of a client and of open_export have them."
            )
        return np.atleast_1d(np.asarray(self._data.coords[axis].values, np.float64))


def _voxels(volume: Volume) -> Any:
    return volume.array if volume.held is None else volume.held


def _grid(volume: Volume) -> VoxelGrid:
    """Return where voxels are; data without coordinates begin at 0, in voxels of 1 nm."""
    nm = (1.0, 1.0, 1.0) if volume.resolution_nm is None else volume.resolution_nm
    start = [round(at / step - 0.5) for at, step in zip(volume.translation_nm, nm, strict=True)]
    return VoxelGrid.between(start, [a + n for a, n in zip(start, volume.shape, strict=True)], nm)


xr.register_dataarray_accessor("em")(EmAccessor)
xr.register_dataset_accessor("em")(EmAccessor)
