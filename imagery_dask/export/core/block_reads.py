"""What a task does to get the voxels of its block: read a cutout, compute a dask array, or take what it holds.

Workers import this module to unpickle their tasks. It imports no dask.array, which costs a second of CPU per process:
a block of a cutout needs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imagery_dask.annotations import Array
from imagery_dask.geometry.grid import Region, parts_of, start_of, stop_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.volumes.encoded_block import Block, EncodedBlock

if TYPE_CHECKING:
    import dask.array as da

    from imagery_dask.arrays.cutout_array import CutoutArray
    from imagery_dask.export.core.inputs import Volume

__all__ = ["ComputeBlock", "HeldBlock", "ReadCutout", "steps_of"]


@dataclass(frozen=True, slots=True)
class ReadCutout:
    """Read a region of a cutout; nothing of dask is involved."""

    source: CutoutArray
    region: Region

    def __call__(self) -> Array:
        """Voxels of the region."""
        cutout = self.source.cutout
        offset = start_of(self.region)
        block = self.source.read(cutout.target.crop(offset, stop_of(self.region) - offset))
        return block if cutout.channels > 1 else block[..., 0]

    def parts(self, shape: Vec3[int], encoded: bool = False) -> Iterator[tuple[Region, Block]]:
        """Yield the voxels of parts of the region of a shape, x fastest, and which they are; they may be read-only.

        With `encoded`, parts that are one storage chunk of the source are yielded as they are stored.
        """
        cutout, regions = self.source.cutout, list(parts_of(self.region, shape))
        targets = [cutout.target.crop(start_of(part), stop_of(part) - start_of(part)) for part in regions]
        for part, block in zip(regions, self.source.read_parts(targets, encoded), strict=True):
            if isinstance(block, EncodedBlock) or cutout.channels > 1:
                yield part, block
            else:
                yield part, block[..., 0]


@dataclass(frozen=True, slots=True)
class ComputeBlock:
    """Compute a small dask array inside the task that holds it."""

    part: da.Array

    def __call__(self) -> Array:
        """Voxels of the array."""
        from imagery_dask.arrays.guards import no_limit

        with no_limit():
            return np.asarray(self.part.compute(scheduler="synchronous"))


@dataclass(frozen=True, slots=True)
class HeldBlock:
    """Voxels that the caller had in memory, of one block."""

    voxels: Array

    def __call__(self) -> Array:
        """Voxels of the block."""
        return self.voxels


def steps_of(volumes: Sequence[Volume]) -> str:
    """Name the steps of a task that writes a block: ``"read+remap+resize+write"``, or fewer of them.

    Root ids are looked up for one of them (remap), or one is resampled to another resolution (resize), or to the next
    level (downsample).
    """
    cutouts = [volume.source.cutout for volume in volumes if volume.source is not None]
    steps = {
        "read": True,
        "remap": any(cutout.query is not None for cutout in cutouts),
        "downsample": any(cutout.downsampled for cutout in cutouts),
        "resize": any(
            cutout.target.resolution_nm != cutout.mip.grid.resolution_nm for cutout in cutouts if not cutout.downsampled
        ),
        "write": True,
    }
    return "+".join(step for step, is_done in steps.items() if is_done)
