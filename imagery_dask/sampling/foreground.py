"""Whether a patch has the wanted share of labelled voxels; a coarse mip is read first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.layer import Layer
from imagery_dask.validate import number

__all__ = ["ForegroundTest", "at_mip", "kept"]

# Voxels that a patch must have along an axis at a coarse mip (or all that it has), to be judged there.
COARSE_VOXELS = 8
# A patch is refused at a coarse mip if its share there is farther than this from what is wanted.
SLACK = 0.1
READ_TOGETHER = 16

Candidate = TypeVar("Candidate")


@dataclass(frozen=True, slots=True)
class ForegroundTest:
    """Test of the share of voxels that are not 0 in a segmentation.

    Parameters
    ----------
    cutout : Cutout
        The segmentation as patches have it.
    coarse : Cutout or None
        The same at a coarse mip; a patch that is clearly outside of the limits there is not read at the finer one.
    least, most : float
        Limits of the share, inclusive.
    """

    cutout: Cutout
    coarse: Cutout | None
    least: float
    most: float

    @classmethod
    def of(cls, share: object, cutout: Cutout, layer: Layer, shape: Vec3[int]) -> ForegroundTest:
        """Return the test for the ``foreground`` argument: a least share, or a least and a largest one."""
        least, most = share if isinstance(share, (tuple, list)) and len(share) == 2 else (share, 1.0)
        least, most = number("foreground", least, 0, 1), number("foreground", most, 0, 1)
        if least > most:
            raise ValueError(f"foreground: the least share must not be above the largest; got {share!r}.")
        patch = VoxelGrid(Vec3(0, 0, 0), shape, cutout.target.resolution_nm)
        coarser = [
            mip.level
            for mip in layer.mips
            if mip.level > cutout.mip.level
            and not mip.is_placeholder
            and shape.minimum(COARSE_VOXELS).all_le(patch.at(mip.grid.resolution_nm).shape)
        ]
        return cls(cutout, at_mip(cutout, layer, max(coarser)) if coarser else None, least, most)

    def __call__(self, patch: VoxelGrid) -> bool:
        """Read a patch, and return True if its share is within the limits."""
        if self.coarse is not None:
            share = _share(self.coarse, patch.at(self.coarse.target.resolution_nm))
            if not self.least - SLACK <= share <= self.most + SLACK:
                return False
        return self.least <= _share(self.cutout, patch) <= self.most


def at_mip(cutout: Cutout, layer: Layer, level: int) -> Cutout:
    """Return a segmentation cutout at another mip, on that mip's grid."""
    mip = layer.mip(level)
    return replace(cutout, mip=mip, target=cutout.target.at(mip.grid.resolution_nm))


def kept(
    candidates: Iterable[Candidate], grid_of: Callable[[Candidate], VoxelGrid], test: ForegroundTest
) -> Iterator[tuple[Candidate, bool]]:
    """Yield candidates in their order, and whether they pass the test; a few are read at a time."""
    candidates = iter(candidates)
    with ThreadPoolExecutor(READ_TOGETHER) as threads:
        while group := list(islice(candidates, READ_TOGETHER)):
            yield from zip(group, threads.map(test, map(grid_of, group)), strict=True)


def _share(cutout: Cutout, box: VoxelGrid) -> float:
    """Return the share of voxels of a box that are not 0."""
    voxels = CutoutArray(cutout).read(box)
    return float(np.count_nonzero(voxels) / voxels.size)
