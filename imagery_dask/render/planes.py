"""One plane of a volume, computed, upright, and where it is in nm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np

from imagery_dask.annotations import Array
from imagery_dask.geometry.grid import AXES, VoxelGrid

__all__ = ["Plane", "cut_plane", "plane_axes", "voxel_at"]

# Voxels. Quotients of nm are this far from the exact ones at most.
EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Plane:
    """A plane of voxels, and where it is.

    Parameters
    ----------
    across : {0, 1, 2}
        Axis along which the volume is cut.
    at : int
        Voxel along `across`, from the start of the grid.
    image : numpy.ndarray, shape (right, down) or (right, down, 3), or None
        Imagery.
    labels : numpy.ndarray of integers, shape (right, down), or None
        Ids.
    grid : VoxelGrid
        The volume.
    """

    across: int
    at: int
    image: Array | None
    labels: Array | None
    grid: VoxelGrid

    @property
    def axes(self) -> tuple[int, int]:
        """Axes to the right and down."""
        return plane_axes(self.across)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Edges of the picture in nm: left, right, bottom, top."""
        right, down = self.axes
        low, high = (self.grid.resolution_nm * end for end in (self.grid.start, self.grid.stop))
        return (low[right], high[right], high[down], low[down])

    @property
    def square_labels(self) -> Array:
        """Ids on pixels that are about square, so that outlines are equally wide along both axes."""
        assert self.labels is not None
        sides = [self.grid.resolution_nm[axis] for axis in self.axes]
        across, down = (max(1, round(side / min(sides))) for side in sides)
        return self.labels.repeat(across, axis=0).repeat(down, axis=1)

    def title(self, voxel_nm: Sequence[float]) -> str:
        """Name the plane, in voxels of a resolution and nm."""
        nm = (self.grid.start[self.across] + self.at + 0.5) * self.grid.resolution_nm[self.across]
        return f"{AXES[self.across]} = {voxel_at(nm, voxel_nm[self.across]):,} ({nm:,.0f} nm)"


def plane_axes(across: int) -> tuple[int, int]:
    """Return the axes to the right and down: y goes down where it is shown, as in Neuroglancer."""
    right, down = {0: (2, 1), 1: (0, 2), 2: (0, 1)}[across]
    return right, down


def voxel_at(nm: float, voxel_nm: float) -> int:
    """Return the voxel that a position along an axis is in.

    Examples
    --------
    >>> voxel_at(340.0, 20.0), voxel_at(8.6 * 3, 4.3)
    (17, 6)
    """
    return math.floor(nm / voxel_nm + EDGE)


def cut_plane(image: Any, labels: Any, grid: VoxelGrid, across: int, at: int) -> Plane:
    """Return a plane of a volume, computed.

    Parameters
    ----------
    image : array or None
        Imagery, numpy or dask, with axes x, y, z and optionally channels: three are red, green and blue; of other
        numbers, the first is shown.
    labels : array of integers or None
        Ids, with axes x, y, z.
    grid : VoxelGrid
        Where the voxels of both are.
    across : {0, 1, 2}
        Axis along which the volume is cut.
    at : int
        Voxel along it, from the start of the grid.

    Raises
    ------
    ValueError
        If the arrays have other shapes than the grid, there is none, or there is no such plane.
    """
    for name, array in (("image", image), ("labels", labels)):
        if array is not None and tuple(array.shape[:3]) != grid.shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}, and the grid {tuple(grid.shape)} voxels.")
    if image is None and labels is None:
        raise ValueError("There is neither image nor labels to draw.")
    if not 0 <= at < grid.shape[across]:
        raise ValueError(f"planes are indices from 0 to {grid.shape[across] - 1} along {AXES[across]}; got {at}.")
    place = (slice(None),) * across + (at,)
    voxels: list[Any] = list(dask.compute(*(None if array is None else array[place] for array in (image, labels))))
    if across == 0:
        voxels = [None if plane is None else np.swapaxes(plane, 0, 1) for plane in voxels]
    grey, ids = voxels
    if grey is not None and grey.ndim == 3 and grey.shape[2] != 3:
        grey = grey[..., 0]
    return Plane(across, at, grey, ids, grid)
