"""Voxels of objects, drawn at random from a segmentation that is read once, at a coarse mip."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.labels import LabelRule
from imagery_dask.model.layer import Layer
from imagery_dask.sampling.boxes import Box
from imagery_dask.sampling.foreground import at_mip

__all__ = ["VoxelsOfObjects", "centres_in", "mip_to_search"]

# The finest mip at which all boxes have at most this many voxels is searched.
SEARCHED_VOXELS = 2**27
TILE = (256, 256, 64)
READ_TOGETHER = 4


def mip_to_search(cutout: Cutout, layer: Layer, boxes: Sequence[Box]) -> int:
    """Return the mip to search for objects: the finest with few enough voxels, or the coarsest."""
    mips = [mip for mip in layer.mips if mip.level >= cutout.mip.level and not mip.is_placeholder]
    for mip in mips:
        if sum(box.grid.at(mip.grid.resolution_nm).size for box in boxes) <= SEARCHED_VOXELS:
            return mip.level
    return mips[-1].level


class VoxelsOfObjects:
    """A random choice of voxels of each object, from tiles of ids that are seen one after another.

    Each voxel gets a random key, and those with the smallest keys stay, so that all voxels are equally likely.

    Parameters
    ----------
    ids : sequence of int
        Objects, distinct and ascending.
    count : int
        Voxels to keep of each.
    random : numpy.random.Generator
        Source of the keys.
    """

    def __init__(self, ids: Sequence[int], count: int, random: np.random.Generator) -> None:
        self.ids = np.array(ids, dtype=np.uint64)
        self._count, self._random = count, random
        self._keys = [np.empty(0) for _ in ids]
        self._voxels = [np.empty((0, 4), np.int64) for _ in ids]

    def search(self, cutout: Cutout, layer: Layer, level: int, boxes: Sequence[Box]) -> None:
        """Read the boxes at a mip."""
        rule = replace(cutout.labels or LabelRule(), keep=tuple(self.ids.tolist()), leaves_within=None)
        source = CutoutArray(at_mip(replace(cutout, labels=rule), layer, level))
        nm = source.cutout.target.resolution_nm
        tiles = [(index, tile) for index, box in enumerate(boxes) for tile in box.grid.at(nm).tiles(TILE)]
        with ThreadPoolExecutor(READ_TOGETHER) as threads:
            for at in range(0, len(tiles), READ_TOGETHER):  # a bounded number of tiles is held
                group = tiles[at : at + READ_TOGETHER]
                for (index, tile), block in zip(
                    group, threads.map(lambda one: source.read(one[1]), group), strict=True
                ):
                    self._add(index, tile.start, block[..., 0])

    def voxels(self, index: int) -> NDArray[np.int64]:
        """Return box and voxel (x, y, z of the searched mip) of those that were drawn of an object, shape (n, 4)."""
        return self._voxels[index]

    def _add(self, box: int, first: Vec3[int], block: Array) -> None:
        ids = block.astype(np.uint64, copy=False)
        places = np.argwhere(np.isin(ids, self.ids))
        if not len(places):
            return
        owners = np.searchsorted(self.ids, ids[tuple(places.T)])
        keys = self._random.random(len(places))
        voxels = np.column_stack([np.full(len(places), box), places + np.asarray(first)])
        for owner in np.unique(owners):
            own = owners == owner
            joined = np.concatenate([self._keys[owner], keys[own]])
            smallest = np.argsort(joined, kind="stable")[: self._count]
            self._keys[owner] = joined[smallest]
            self._voxels[owner] = np.concatenate([self._voxels[owner], voxels[own]])[smallest]


def centres_in(voxels: NDArray[np.int64], own: VoxelGrid, target: VoxelGrid) -> NDArray[np.int64]:
    """Return the voxels of a target grid that contain the centres of voxels (n x 3) of another resolution."""
    steps = own.steps_from(target.resolution_nm)
    along = zip(voxels.T, steps, strict=True)
    return np.stack([(2 * v + 1) * step.numerator // (2 * step.denominator) for v, step in along], axis=1)
