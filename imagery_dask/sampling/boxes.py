"""Boxes that patches are drawn from: named regions, cut into disjoint splits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.validate import number

__all__ = ["Box", "grid_starts", "named_regions", "random_starts", "split_boxes"]


@dataclass(frozen=True, slots=True)
class Box:
    """A box of voxels in which patches lie wholly.

    Parameters
    ----------
    region : str
        Region that it is a part of.
    split : str
        Split that it belongs to; "" without splits.
    grid : VoxelGrid
        Its voxels.
    """

    region: str
    split: str
    grid: VoxelGrid

    def positions(self, shape: Vec3[int]) -> Vec3[int]:
        """Return the number of positions of a patch along x, y, z."""
        return (self.grid.shape - shape + 1).maximum(0)

    def holds(self, starts: NDArray[np.int64], shape: Vec3[int]) -> NDArray[np.bool_]:
        """Return which patches, by their first voxels (n x 3), lie wholly in the box."""
        inside = (starts >= self.grid.start) & (starts + np.asarray(shape) <= self.grid.stop)
        return np.asarray(inside.all(axis=1))


def named_regions(regions: Any) -> dict[str, Any]:
    """Return bounds by name: of a mapping, of a sequence of bounds (named by their index), or of one box."""
    if isinstance(regions, Mapping):
        named = {str(name): bounds for name, bounds in regions.items()}
    elif np.ndim(regions) == 2:
        named = {"0": regions}
    else:
        named = {str(index): bounds for index, bounds in enumerate(regions)}
    if not named:
        raise ValueError("regions is empty; leave it out to take patches from the whole volume.")
    return named


def split_boxes(
    regions: Mapping[str, VoxelGrid],
    split: Mapping[str, Any] | None,
    axis: int | None,
    shape: Vec3[int],
    voxels_of: Callable[[str, Any], VoxelGrid],
) -> tuple[Box, ...]:
    """Cut regions into the boxes of splits.

    Parameters
    ----------
    regions : mapping of str to VoxelGrid
        The regions.
    split : mapping or None
        Share of each region by the split's name, or bounds of the split: one box or a sequence of boxes.
    axis : int or None
        Axis along which shares are cut; by default that along which most patches fit into a region.
    shape : tuple of 3 int
        Voxels of a patch.
    voxels_of : callable
        Returns the voxels of bounds; its first argument is the name of the split.

    Raises
    ------
    ValueError
        A patch does not fit, a share is no share, or boxes of different splits overlap.
    """
    if split is not None and not split:
        raise ValueError("split is empty; leave it out, or give shares such as {'train': 0.8, 'test': 0.2}.")
    if split is None:
        boxes = [Box(region, "", grid) for region, grid in regions.items()]
    elif all(np.ndim(value) == 0 for value in split.values()):
        boxes = [box for region, grid in regions.items() for box in _cut(region, grid, split, axis, shape)]
    else:
        boxes = list(_within(regions, split, voxels_of))
        boxes = [box for box in boxes if shape.all_le(box.grid.shape)]
        if lost := split.keys() - {box.split for box in boxes}:
            raise ValueError(
                f"No patch of {shape} voxels fits into the part of split {sorted(lost)[0]!r} that is inside regions. "
                "Give larger boxes or a smaller shape."
            )
    for box in boxes:
        if not shape.all_le(box.grid.shape):
            of_split = f" for split {box.split!r}" if box.split else ""
            raise ValueError(
                f"A patch of {shape} voxels does not fit: region {box.region!r} has {box.grid.shape} voxels of "
                f"{box.grid.resolution_nm} nm{of_split}. Give a larger region or share, or a smaller shape."
            )
    _refuse_overlaps(boxes)
    return tuple(boxes)


def _cut(region: str, grid: VoxelGrid, split: Mapping[str, Any], axis: int | None, shape: Vec3[int]) -> Iterator[Box]:
    """Yield consecutive slabs of a region with the splits' shares of it."""
    shares = [number(f"split[{name!r}]", share, 0, 1) for name, share in split.items()]
    if sum(shares) > 1 + 1e-9:
        raise ValueError(f"split: shares are parts of each region and add up to at most 1; got {dict(split)!r}.")
    along = int(np.argmax(np.divide(grid.shape, shape))) if axis is None else axis
    edges = [round(share * grid.shape[along]) for share in itertools.accumulate([0.0, *shares])]
    for name, (first, stop) in zip(split, itertools.pairwise(edges), strict=True):
        offset, size = [0, 0, 0], list(grid.shape)
        offset[along], size[along] = first, stop - first
        yield Box(region, str(name), grid.crop(offset, size))


def _within(
    regions: Mapping[str, VoxelGrid], split: Mapping[str, Any], voxels_of: Callable[[str, Any], VoxelGrid]
) -> Iterator[Box]:
    """Yield the parts of regions that lie in the boxes of splits."""
    for name, value in split.items():
        if np.ndim(value) == 0:
            raise ValueError(f"split[{name!r}] is {value!r}: give shares for all splits, or bounds for all splits.")
        for bounds in named_regions(value).values():
            box = voxels_of(f"split[{name!r}]", bounds)
            for region, grid in regions.items():
                yield Box(region, str(name), grid.intersection(box))


def _refuse_overlaps(boxes: Iterable[Box]) -> None:
    for one, other in itertools.combinations(boxes, 2):
        if one.split != other.split and (both := one.grid.intersection(other.grid)).size:
            raise ValueError(
                f"split: {one.split!r} (region {one.region!r}) and {other.split!r} (region {other.region!r}) share the "
                f"voxels {both.start} to {both.stop}. Give regions and boxes that do not overlap, so that no voxel is "
                "in two splits."
            )


def random_starts(
    boxes: Sequence[Box], shape: Vec3[int], random: np.random.Generator
) -> Iterator[tuple[int, Vec3[int]]]:
    """Yield boxes, by index, and first voxels of patches in them without end; every position is equally likely."""
    positions = [box.positions(shape) for box in boxes]
    counts = np.array([places.prod() for places in positions], dtype=np.float64)
    while True:
        index = int(random.choice(len(boxes), p=counts / counts.sum()))
        yield index, boxes[index].grid.start + positions[index].map(lambda count: int(random.integers(count)))


def grid_starts(box: Box, shape: Vec3[int], stride: Vec3[int]) -> Iterator[Vec3[int]]:
    """Yield first voxels of the patches of a grid that begins where a box does, x fastest."""
    along_x, along_y, along_z = box.positions(shape).map(lambda count, step: range(0, count, step), stride)
    for z, y, x in itertools.product(along_z, along_y, along_x):
        yield box.grid.start + Vec3(x, y, z)
