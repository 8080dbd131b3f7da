"""The client's figures of a place: planes, contact sheets and orthogonal views, at a mip that suits their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from imagery_dask.arrays.lazy import lazy_array
from imagery_dask.client.parameters import describe
from imagery_dask.client.settings import ClientSettings
from imagery_dask.geometry.grid import VoxelGrid, voxel_bounds
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.arguments import Triple, corners
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.labels import LabelRequest, RootIds
from imagery_dask.model.layer import Layer, Mip
from imagery_dask.model.moments import Moment
from imagery_dask.validate import axis as checked_axis
from imagery_dask.validate import sizes, triple, whole_number

if TYPE_CHECKING:
    from imagery_dask.render.show import Picture

__all__ = ["Place", "ShowsPlaces", "place_of"]

# Voxels along the finest axis of the box around a center.
VIEW = 800
# Voxels of a figure. Finer mips would be scaled down again.
PIXELS = 1_000_000


class ShowsPlaces:
    """Mixin of `ImageryClient`: figures of a place."""

    _settings: ClientSettings

    @describe
    def show(
        self,
        bounds: ArrayLike,
        root_ids: RootIds = "all",
        *,
        axis: int | str = 2,
        n: int = 1,
        bbox_size: ArrayLike | None = None,
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        outline: bool = False,
        alpha: float | None = None,
        window: tuple[float, float] | None = None,
        colors: Mapping[int, Sequence[int]] | None = None,
        legend: bool | None = None,
        scale_bar: bool = True,
        ax: Any = None,
    ) -> Picture | None:
        """Draw a plane, or a contact sheet of several, upright: grey imagery, colored objects, axes in nm.

        Only the planes shown are read, at the finest mips that have no more voxels than the figure has pixels.

        Parameters
        ----------
        {parameters}
        n : int
            Number of planes: those around a center, or spread evenly over bounds; fewer where the mip has fewer.
        ax : matplotlib.axes.Axes, optional
            Where to draw one plane.

        Returns
        -------
        matplotlib.figure.Figure or None
            The figure, which Jupyter shows where a cell ends with it; ``savefig`` writes it to a file. None with `ax`.

        Raises
        ------
        ImportError
            When matplotlib is not installed.
        ValueError, TypeError
            When an argument is invalid. Nothing has been read then.
        """
        from imagery_dask.render.show import Look, show_planes

        across, count = checked_axis("axis", axis, letters=True), whole_number("n", n)
        look = Look(outline=outline, alpha=alpha, window=window, colors=colors, legend=legend, scale_bar=scale_bar)
        if ax is not None and count > 1:
            raise ValueError(f"n={n} planes cannot be drawn into one ax; leave out ax for a contact sheet.")
        place = place_of(
            self._settings, bounds, root_ids, across, count, bbox_size, (image_mip, segmentation_mip), resolution,
            timestamp,
        )  # fmt: skip
        return show_planes(
            place.image, place.labels, place.grid, axis=across, planes=place.planes, look=look,
            voxel_nm=place.voxel_nm, ax=ax,
        )  # fmt: skip

    @describe
    def orthoviews(
        self,
        center: ArrayLike,
        root_ids: RootIds = "all",
        *,
        bbox_size: ArrayLike | None = None,
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        outline: bool = False,
        alpha: float | None = None,
        window: tuple[float, float] | None = None,
        colors: Mapping[int, Sequence[int]] | None = None,
        legend: bool | None = None,
        scale_bar: bool = True,
    ) -> Picture:
        """Draw the three planes through a point, xy, zy and xz, in the proportions that voxels have in nm.

        Parameters
        ----------
        center : array-like of 3 numbers
            Point x, y, z in voxels of `resolution`.
        {parameters}

        Returns
        -------
        matplotlib.figure.Figure
            The figure, as of `show`.

        Raises
        ------
        ImportError, ValueError, TypeError
            As of `show`.
        """
        from imagery_dask.render.show import Look, show_orthoviews

        look = Look(outline=outline, alpha=alpha, window=window, colors=colors, legend=legend, scale_bar=scale_bar)
        triple("center", center)
        place = place_of(
            self._settings, center, root_ids, None, 1, bbox_size, (image_mip, segmentation_mip), resolution, timestamp
        )
        return show_orthoviews(
            place.image, place.labels, place.grid, place.center, look=look, voxel_nm=place.voxel_nm
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """A box around what is looked at.

    Parameters
    ----------
    cutouts : dict of str to Cutout
        ``"image"``, ``"segmentation"``, or both on one grid.
    grid : VoxelGrid
        The box, in voxels of the finer mip.
    planes : list of int
        Planes to show, from the start of the grid.
    center : Vec3 of int
        Voxel in the middle, from the start of the grid.
    voxel_nm : tuple of 3 float
        Resolution in which the caller gave the place.
    """

    cutouts: dict[str, Cutout]
    grid: VoxelGrid
    planes: list[int]
    center: Vec3[int]
    voxel_nm: Triple

    @property
    def image(self) -> Any:
        """The imagery, lazy, or None."""
        return self._array("image")

    @property
    def labels(self) -> Any:
        """The ids, lazy, or None."""
        return self._array("segmentation")

    def _array(self, name: str) -> Any:
        cutout = self.cutouts.get(name)
        return None if cutout is None else lazy_array(cutout, squeeze=False)


def place_of(
    settings: ClientSettings,
    where: ArrayLike,
    root_ids: RootIds,
    across: int | None,
    count: int,
    bbox_size: ArrayLike | None,
    mips: tuple[int | None, int | None],
    resolution: ArrayLike | None,
    timestamp: Moment,
) -> Place:
    """Return what is shown of a center or bounds.

    Parameters
    ----------
    settings : ClientSettings
        The client's.
    where : array-like, shape (3,) or (2, 3)
        A center or bounds, in voxels of `resolution`.
    root_ids : sequence of int, None or "all"
        Objects to show; without any, no segmentation is read.
    across : {0, 1, 2} or None
        Axis along which planes are cut; None for a plane along each.
    count : int
        Number of planes.
    bbox_size : array-like or None
        Size of the box around a center, in voxels of `resolution`. By default a square of `VIEW` voxels along the
        finest axis, as far as the volume goes.
    mips : tuple of 2 int or None
        Levels of imagery and segmentation; by default the finest that have no more than `PIXELS` voxels in all planes.
    resolution : array-like or None
        Resolution of `where`; by default the client's.
    timestamp : datetime, str, number or None
        Time at which a dynamic segmentation is shown.

    Raises
    ------
    ValueError, TypeError
        When arguments are invalid or contradict each other.
    """
    if settings.image is not None and np.size(root_ids) == 0:  # type: ignore[arg-type]
        settings = replace(settings, segmentation=None)
    own = Vec3.of(settings.resolution_or(resolution))
    around = bbox_size is None and np.shape(where) == (3,)
    lower, center, upper = _box(where, bbox_size, own, settings.image or settings.segmentation_layer())
    size_nm, most = (upper - lower) * own, PIXELS // count
    image = _level(settings.image, settings.image_mip, mips[0], size_nm, across, most)
    segmentation = _level(settings.segmentation, settings.segmentation_mip, mips[1], size_nm, across, most)
    grids = [mip.grid for mip in (image, segmentation) if mip is not None]
    # Two layers are on the grid of the finer one.
    volume = grids[-1] if grids[-1].resolution_nm.all_le(grids[0].resolution_nm) else grids[0]
    start, stop = voxel_bounds(lower, upper, own, volume.resolution_nm)
    middle, _ = voxel_bounds(center, center, own, volume.resolution_nm)
    is_inside = volume.start.all_le(middle) and middle.all_lt(volume.stop)
    if across is None and np.shape(where) == (3,) and not is_inside and settings.outside == "error":
        raise ValueError(
            f"The center lies outside the volume: in voxels of {volume.resolution_nm} nm it is {middle}, and the "
            f"volume has {volume.start} to {volume.stop}. Check the resolution in which it is given. "
            "ImageryClient(outside='fill') shows the nearest planes."
        )
    if around and across is not None:
        first = middle[across] - (count - 1) // 2
        if volume.start[across] <= middle[across] < volume.stop[across]:
            first = max(min(first, volume.stop[across] - count), volume.start[across])
        start, stop = _along(start, across, first), _along(stop, across, min(first + count, volume.stop[across]))
    grid = VoxelGrid.between(start, stop.maximum(start + 1), volume.resolution_nm)
    cutouts = settings.present(
        [grid.start, grid.stop], (_number(image), _number(segmentation)),
        LabelRequest(root_ids, False, timestamp), order=0, resolution=grid.resolution_nm, scale_to_bounds=False,
    )  # fmt: skip
    depth = 1 if across is None else grid.shape[across]
    planes = [depth // 2] if count == 1 else np.unique(np.linspace(0, depth - 1, count).round().astype(int)).tolist()
    return Place(cutouts, grid, planes, (middle - grid.start).maximum(0).minimum(grid.shape - 1), own)


def _box(
    where: ArrayLike, bbox_size: ArrayLike | None, own: Vec3[float], layer: Layer
) -> tuple[Vec3[float], Vec3[float], Vec3[float]]:
    """Return the lower corner, the center and the upper corner of the box that is shown, in voxels of `own`."""
    if np.shape(where) != (3,):
        if bbox_size is not None:
            raise ValueError("bbox_size is the size of a box around a center of 3 numbers; leave it out with bounds.")
        lower, upper = (Vec3.of(corner) for corner in corners(where))
        return lower, (lower + upper).map(lambda both: both / 2), upper
    center = Vec3.of(triple("bounds (a center)", where))
    if bbox_size is not None:
        size = Vec3.of(sizes("bbox_size", bbox_size))
        lower = center - size // 2
        return lower, center, lower + size
    half = own.map(lambda nm: VIEW * min(own) / nm / 2)
    lower, upper = center - half, center + half
    # No farther than the volume goes, unless all of it is outside, which is an error.
    volume = layer.mip(layer.first_mip).grid
    low, high = ((end * volume.resolution_nm).map(lambda at, nm: at / nm, own) for end in (volume.start, volume.stop))
    if lower.maximum(low).all_lt(upper.minimum(high)):
        lower, upper = lower.maximum(low), upper.minimum(high)
    return lower, center, upper


def _level(
    layer: Layer | None, default: int, mip: int | None, size_nm: Vec3[float], across: int | None, most: int
) -> Mip | None:  # fmt: skip
    """Return the given mip, or the finest whose planes have no more than `most` voxels; None without a layer."""
    if layer is None:
        return None
    if mip is not None:
        return layer.mip(mip)
    levels = [level for level in layer.mips[default:] if not level.is_placeholder]
    for level in levels:
        shape = size_nm.map(lambda size, nm: max(1.0, size / nm), level.grid.resolution_nm)
        if shape.prod() / (min(shape) if across is None else shape[across]) <= most:
            return level
    return levels[-1]


def _number(mip: Mip | None) -> int | None:
    return None if mip is None else mip.level


def _along(corner: Vec3[int], axis: int, value: int) -> Vec3[int]:
    return Vec3.of(value if at == axis else own for at, own in enumerate(corner))
