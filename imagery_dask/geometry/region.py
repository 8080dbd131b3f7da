"""Regions: three slices, along x, y and z, that select a box of an array.

Start and stop are non-negative integers, and there is no step. Regions are plain tuples, not `Vec3`, because dask
concatenates indices with ``+``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from imagery_dask.geometry.vec import Vec3

__all__ = ["Region", "region_between", "region_within", "start_of", "stop_of", "tiles_of"]

Region = tuple[slice, slice, slice]


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


def region_within(part: Sequence[slice], outer: Sequence[slice]) -> Region:
    """Return the slices that select `part` from an array that holds `outer`.

    Examples
    --------
    >>> region_within(region_between((8, 8, 8), (16, 16, 16)), region_between((8, 0, 4), (32, 32, 32)))
    (slice(0, 8, None), slice(8, 16, None), slice(4, 12, None))
    """
    first = start_of(outer)
    return region_between(start_of(part) - first, stop_of(part) - first)
