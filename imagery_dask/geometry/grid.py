"""Voxel grids: where voxels are, which voxels a request selects, and which source voxel a target voxel shows.

Everything here is arithmetic on integers and exact fractions; there is no I/O. Axes are always x, y, z.

Two rules determine every voxel:

* **The voxels that a request selects** (`voxel_bounds`) follow ``CloudVolume.download(bbox, mip=...,
  coord_resolution=...)``: corners are truncated to whole numbers, divided by the ratio of the resolutions, and
  truncated (towards zero) again. The arithmetic is exact, and a corner within 10**-6 of a voxel edge is on the edge
  (`voxel_of`), whereas CloudVolume takes 4400 nm for voxel 999 of 4.4 nm.
* **The source voxel that a target voxel shows** (`nearest_index`) is the one that contains the target voxel's centre,
  in nm. It depends on absolute positions alone, so that a region read in pieces gives the same voxels as a region read
  at once::

      source voxels   |     0     |     1     |     2     |        16 nm
      target voxels   |  0  |  1  |  2  |  3  |  4  |  5  |         8 nm
      nearest_index      0     0     1     1     2     2
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from imagery_dask.geometry.vec import Vec3

__all__ = [
    "AXES",
    "XYZ",
    "Region",
    "VoxelGrid",
    "bounds_key",
    "edge_at_or_after",
    "nearest_index",
    "parts_of",
    "ratio",
    "region_between",
    "region_within",
    "source_span",
    "start_of",
    "stop_of",
    "tiles_of",
    "voxel_bounds",
    "voxel_of",
    "voxels_along",
]

XYZ = tuple[int, int, int]
Resolution = tuple[float, float, float]
# Slices along x, y and z, with start and stop and no step. A plain tuple, because dask concatenates indices with ``+``.
Region = tuple[slice, slice, slice]
AXES = ("x", "y", "z")
# Voxels. A coordinate so close to an edge is that edge: it was computed in floats, or a resolution was rounded.
EDGE = Fraction(1, 10**6)
# Ratios of resolutions that were rounded to 16 digits are the fractions of small numbers that they are this close to.
SMALL_DENOMINATOR, ROUNDED = 1000, Fraction(1, 10**12)


@lru_cache(maxsize=1024)
def ratio(numerator_nm: float, denominator_nm: float) -> Fraction:
    """Exact ratio of two resolutions, read as decimal numbers.

    Parameters
    ----------
    numerator_nm, denominator_nm : float
        Voxel sizes. ``4.3`` means 43/10, not the nearest binary fraction, so that 8.6 over 4.3 is exactly 2, and so is
        66.66666666666667 over 33.333333333333336.

    Returns
    -------
    fractions.Fraction
        ``numerator_nm / denominator_nm``.

    Examples
    --------
    >>> ratio(8.6, 4.3)
    Fraction(2, 1)
    """
    exact = Fraction(repr(float(numerator_nm))) / Fraction(repr(float(denominator_nm)))
    simple = exact.limit_denominator(SMALL_DENOMINATOR)
    return simple if abs(simple - exact) <= exact * ROUNDED else exact


def nearest_index(start: int, size: int, step: Fraction) -> NDArray[np.int64]:
    """Index of the source voxel that contains the centre of each target voxel along one axis.

    Parameters
    ----------
    start, size : int
        The target voxels ``start .. start + size - 1``, absolute.
    step : fractions.Fraction
        Target resolution over source resolution.

    Returns
    -------
    numpy.ndarray of int64, shape (size,)
        ``floor((target + 1/2) * step)``, computed in integers.

    Examples
    --------
    >>> nearest_index(0, 6, Fraction(1, 2))
    array([0, 0, 1, 1, 2, 2])
    """
    numerator, denominator = step.numerator, 2 * step.denominator
    if (2 * max(abs(start), abs(start + size)) + 1) * numerator < 2**63 and denominator < 2**63:
        targets = np.arange(start, start + size, dtype=np.int64)
        return np.asarray((2 * targets + 1) * np.int64(numerator) // np.int64(denominator), dtype=np.int64)
    exact = [(2 * target + 1) * numerator // denominator for target in range(start, start + size)]
    return np.array(exact, dtype=np.int64)


def source_span(start: int, stop: int, step: Fraction) -> tuple[int, int]:
    """Return the first source voxel that the target voxels ``[start, stop)`` show, and the one after the last.

    Examples
    --------
    >>> source_span(1, 4, Fraction(1, 2))
    (0, 2)
    """
    first = int(nearest_index(start, 1, step)[0])
    return first, int(nearest_index(stop - 1, 1, step)[0]) + 1 if stop > start else first


def edge_at_or_after(source_edge: int, step: Fraction) -> int:
    """First target voxel whose source voxel is at or after a source edge.

    Parameters
    ----------
    source_edge : int
        A boundary between source voxels, for instance of a storage chunk.
    step : fractions.Fraction
        Target resolution over source resolution.

    Returns
    -------
    int
        The smallest ``t`` with ``nearest_index(t) >= source_edge``.

    Examples
    --------
    >>> edge_at_or_after(64, Fraction(1, 2))
    128
    """
    return math.ceil(Fraction(source_edge) / step - Fraction(1, 2))


def voxel_of(value: float, own_nm: float, voxel_nm: float) -> int:
    """Convert a coordinate to voxels of another resolution: an edge to that edge, anything else as CloudVolume does.

    Parameters
    ----------
    value : float
        Coordinate in voxels of `own_nm`.
    own_nm, voxel_nm : float
        Resolutions, nm per voxel.

    Returns
    -------
    int
        Voxel of `voxel_nm`. Fractions of voxels are dropped (towards zero), before and after the conversion.

    Notes
    -----
    A fraction is kept where it makes the coordinate an edge between voxels that are larger than its unit: 30.8 nm is
    the edge of voxel 7 of 4.4 nm.

    Examples
    --------
    >>> voxel_of(4400, 1.0, 4.4), voxel_of(30.8, 1.0, 4.4), voxel_of(10.9, 8.0, 4.0)
    (1000, 7, 20)
    """
    step = ratio(own_nm, voxel_nm)
    if step == 1 and float(value).is_integer():
        return int(value)
    exact = Fraction(repr(float(value)))
    if step < 1 and exact.denominator != 1:
        edge = _edge_at(exact * step)
        if edge is not None:
            return edge
    return _whole(_whole(exact) * step)


def voxels_along(values: NDArray[np.float64], own_nm: float, voxel_nm: float) -> NDArray[np.int64]:
    """Return `voxel_of` each coordinate of an array, as int64."""
    step = ratio(own_nm, voxel_nm)
    whole = np.rint(values)
    most = max(abs(float(whole.max(initial=0))), abs(float(whole.min(initial=0))))
    # Below 2**31, floats find every coordinate that may be an edge.
    if most * step.numerator >= 2**62 or most * max(float(step), 1.0) >= 2**31 or step.denominator >= 2**31:
        return np.array([voxel_of(value, own_nm, voxel_nm) for value in values.tolist()], dtype=np.int64)
    scaled = values * float(step)
    unclear: NDArray[np.bool_] = (values != whole) & (
        (np.abs(values - whole) < 1e-5) | (np.abs(scaled - np.rint(scaled)) < 1e-5)
    )
    units = np.trunc(values).astype(np.int64)
    voxels = np.abs(units) * step.numerator // step.denominator
    rest = np.abs(units) * step.numerator - voxels * step.denominator
    voxels += np.asarray(step.denominator - rest <= float(EDGE) * step.denominator, dtype=np.int64)
    voxels = np.where(units < 0, -voxels, voxels)
    voxels[unclear] = [voxel_of(value, own_nm, voxel_nm) for value in values[unclear].tolist()]
    return np.asarray(voxels, dtype=np.int64)


def _edge_at(value: int | Fraction) -> int | None:
    nearest = round(value)
    distance: Fraction = abs(Fraction(value) - nearest)
    return nearest if distance <= EDGE else None


def _whole(value: int | Fraction) -> int:
    """Drop the fraction of a number, unless the next whole number is within `EDGE`."""
    edge = _edge_at(value)
    return math.trunc(value) if edge is None else edge


def voxel_bounds(
    lower: Sequence[float], upper: Sequence[float], bounds_nm: Resolution, voxel_nm: Resolution
) -> tuple[Vec3[int], Vec3[int]]:
    """Convert bounds given in one resolution to voxels of another, corner by corner (`voxel_of`).

    Parameters
    ----------
    lower, upper : sequence of 3 numbers
        Corners in voxels of `bounds_nm`, lower inclusive, upper exclusive.
    bounds_nm : tuple of 3 float
        Resolution of the corners, nm per voxel.
    voxel_nm : tuple of 3 float
        Resolution of the result, nm per voxel.

    Returns
    -------
    start, stop : tuple of 3 int
        Half-open voxel box; it can be empty if the bounds are smaller than a voxel.

    Notes
    -----
    The two roundings and their order are those of ``CloudVolumePrecomputed.download`` (cloud-volume 12), so that the
    same request selects the same voxels in both wherever its float arithmetic does not lose a voxel at an edge.
    """
    start, stop = (Vec3.of(corner).map(voxel_of, bounds_nm, voxel_nm) for corner in (lower, upper))
    return start, stop


def bounds_key(start: Sequence[int], stop: Sequence[int]) -> str:
    """Return a voxel box as precomputed chunk names and graph servers write it.

    Examples
    --------
    >>> bounds_key((0, 64, 0), (64, 128, 16))
    '0-64_64-128_0-16'
    """
    (x0, y0, z0), (x1, y1, z1) = start, stop
    return f"{x0}-{x1}_{y0}-{y1}_{z0}-{z1}"


@dataclass(frozen=True, slots=True)
class VoxelGrid:
    """A box of voxels in the world: where it starts, how many voxels, how large each is.

    Parameters
    ----------
    start : tuple of 3 int
        Absolute index of the first voxel along x, y, z; may be negative.
    shape : tuple of 3 int
        Number of voxels along x, y, z.
    resolution_nm : tuple of 3 float
        Size of a voxel along x, y, z in nanometres. Voxel ``i`` spans ``[i, i + 1) * resolution_nm``.

    Raises
    ------
    ValueError
        If the shape is negative, or the resolution is not positive and finite.

    Examples
    --------
    >>> grid = VoxelGrid((10, 10, 0), (4, 4, 2), (8, 8, 40))
    >>> grid.stop
    (14, 14, 2)
    >>> grid.at((16, 16, 40)).start
    (5, 5, 0)
    """

    start: Vec3[int]
    shape: Vec3[int]
    resolution_nm: Vec3[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", _ints(self.start))
        object.__setattr__(self, "shape", _ints(self.shape))
        resolution_nm = tuple(float(value) for value in self.resolution_nm)
        if min(self.shape) < 0:
            raise ValueError(f"A voxel grid's shape cannot be negative; got {self.shape}.")
        if len(resolution_nm) != 3 or not all(0 < value < math.inf for value in resolution_nm):
            raise ValueError(f"A resolution is three positive numbers in nm; got {resolution_nm}.")
        object.__setattr__(self, "resolution_nm", Vec3.of(resolution_nm))

    @classmethod
    def between(cls, start: Sequence[int], stop: Sequence[int], resolution_nm: Resolution) -> VoxelGrid:
        """Grid of the half-open box ``[start, stop)``; empty along an axis whose stop is not after its start."""
        first = _ints(start)
        return cls(first, (_ints(stop) - first).maximum(0), Vec3.of(resolution_nm))

    @property
    def stop(self) -> Vec3[int]:
        """One past the last voxel along x, y, z."""
        return self.start + self.shape

    @property
    def size(self) -> int:
        """Number of voxels, as a Python integer, which does not overflow."""
        return self.shape.prod()

    @property
    def translation_nm(self) -> Vec3[float]:
        """Centre of the first voxel, in nm."""
        return Vec3.of(range(3)).map(self._first_centre_nm)

    def centres_nm(self, axis: int) -> NDArray[np.float64]:
        """Centres of the voxels along an axis, in nm: float64 of shape ``(shape[axis],)``."""
        index = np.arange(self.start[axis], self.stop[axis], dtype=np.int64)
        return np.asarray((index + 0.5) * self.resolution_nm[axis], dtype=np.float64)

    def steps_from(self, source_nm: Resolution) -> Vec3[Fraction]:
        """Size of this grid's voxels in voxels of another resolution, along x, y, z."""
        return self.resolution_nm.map(ratio, source_nm)

    def crop(self, offset: Sequence[int], shape: Sequence[int]) -> VoxelGrid:
        """Part of the grid, `offset` voxels after its start."""
        return VoxelGrid(self.start + _ints(offset), _ints(shape), self.resolution_nm)

    def intersection(self, other: VoxelGrid) -> VoxelGrid:
        """Return the voxels that are in both grids, which must have the same resolution."""
        if self.resolution_nm != other.resolution_nm:
            raise ValueError(
                f"Grids of {self.resolution_nm} and {other.resolution_nm} nm share no voxels; convert with at()."
            )
        start, stop = self.start.maximum(other.start), self.stop.minimum(other.stop)
        return VoxelGrid(start, (stop - start).maximum(0), self.resolution_nm)

    def contains(self, other: VoxelGrid) -> bool:
        """Return True if every voxel of `other`, which must have the same resolution, is in this grid."""
        return other.size == 0 or self.intersection(other) == other

    def at(self, source_nm: Resolution) -> VoxelGrid:
        """Return the smallest box of voxels of another resolution that contains this grid's voxel centres.

        A block with this grid must read this box from the source.
        """
        if source_nm == self.resolution_nm:
            return self
        spans = list(self.start.map(source_span, self.stop, self.steps_from(source_nm)))
        return VoxelGrid.between([first for first, _ in spans], [after for _, after in spans], source_nm)

    def tiles(self, block: Sequence[int]) -> Iterator[VoxelGrid]:
        """Yield blocks of at most `block` voxels that partition the grid, x fastest."""
        for z in range(0, self.shape[2], block[2]):
            for y in range(0, self.shape[1], block[1]):
                for x in range(0, self.shape[0], block[0]):
                    offset = Vec3(x, y, z)
                    yield self.crop(offset, (self.shape - offset).minimum(_ints(block)))

    def _first_centre_nm(self, axis: int) -> float:
        """Centre of the first voxel along an axis, computed in exact fractions."""
        return float((self.start[axis] + Fraction(1, 2)) * ratio(self.resolution_nm[axis], 1.0))


def _ints(values: Sequence[float]) -> Vec3[int]:
    x, y, z = values
    return Vec3(int(x), int(y), int(z))


# ---------------------------------------- regions: boxes of an array


def region_between(start: Sequence[int], stop: Sequence[int]) -> Region:
    """Return the region ``[start, stop)``.

    Examples
    --------
    >>> region_between((0, 0, 8), (64, 32, 16))
    (slice(0, 64, None), slice(0, 32, None), slice(8, 16, None))
    """
    (x0, y0, z0), (x1, y1, z1) = start, stop
    return (slice(x0, x1), slice(y0, y1), slice(z0, z1))


def start_of(region: Sequence[slice]) -> Vec3[int]:
    """Return the first voxel of a region along x, y, z."""
    x, y, z = region
    return Vec3(x.start, y.start, z.start)


def stop_of(region: Sequence[slice]) -> Vec3[int]:
    """Return one past the last voxel of a region along x, y, z."""
    x, y, z = region
    return Vec3(x.stop, y.stop, z.stop)


def tiles_of(spans: Sequence[Sequence[slice]]) -> Iterator[Region]:
    """Yield the regions of all combinations of slices along x, y and z, x fastest."""
    along_x, along_y, along_z = spans
    return ((x, y, z) for z, y, x in itertools.product(along_z, along_y, along_x))


def parts_of(region: Region, shape: XYZ) -> Iterator[Region]:
    """Yield the parts of a region that have a shape, from its start, x fastest; the last along an axis may be cut.

    Examples
    --------
    >>> [part[0] for part in parts_of(region_between((8, 0, 0), (15, 4, 4)), (4, 4, 4))]
    [slice(8, 12, None), slice(12, 15, None)]
    """

    def cut(part: slice, size: int) -> list[slice]:
        return [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]

    return tiles_of(Vec3.of(region).map(cut, shape))


def region_within(part: Sequence[slice], outer: Sequence[slice]) -> Region:
    """Return the slices that select `part` from an array that holds `outer`.

    Examples
    --------
    >>> region_within(region_between((8, 8, 8), (16, 16, 16)), region_between((8, 0, 4), (32, 32, 32)))
    (slice(0, 8, None), slice(8, 16, None), slice(4, 12, None))
    """
    first = start_of(outer)
    return region_between(start_of(part) - first, stop_of(part) - first)
