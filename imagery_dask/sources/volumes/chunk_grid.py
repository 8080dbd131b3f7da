"""Storage chunks that a box crosses: their positions in the grid of chunks, and the voxels that they share with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.layer import Mip

__all__ = ["Chunk", "Region", "Span", "crossed"]

# Along x, y, z and the channels.
Region = tuple[slice, slice, slice, slice]


class Span(NamedTuple):
    """A storage chunk along an axis: its position in the grid of chunks, and its voxels, absolute."""

    cell: int
    start: int
    stop: int
    #: Those of its voxels that are in a box, in the array of the box and in that of the chunk.
    there: slice
    here: slice

    @property
    def is_cut(self) -> bool:
        """Whether some of its voxels are not in the box."""
        return bool(self.here.stop - self.here.start != self.stop - self.start)


@dataclass(eq=False, slots=True)
class Chunk:
    """A storage chunk that a box crosses, along x, y, z and the channels."""

    # In plain numbers: a cached plane of 64 chunks takes as long as making them.
    x: Span
    y: Span
    z: Span
    channel: Span

    @property
    def cell(self) -> tuple[int, int, int, int]:
        """Position in the grid of chunks."""
        return self.x.cell, self.y.cell, self.z.cell, self.channel.cell

    @property
    def start(self) -> Vec3[int]:
        """First voxel, absolute."""
        return Vec3(self.x.start, self.y.start, self.z.start)

    @property
    def stop(self) -> Vec3[int]:
        """One past the last voxel, absolute."""
        return Vec3(self.x.stop, self.y.stop, self.z.stop)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Voxels along x, y, z that are in the volume, and channels."""
        return (
            self.x.stop - self.x.start,
            self.y.stop - self.y.start,
            self.z.stop - self.z.start,
            self.channel.stop - self.channel.start,
        )

    @property
    def there(self) -> Region:
        """Those of its voxels that are in the box, in the array of the box."""
        return self.x.there, self.y.there, self.z.there, self.channel.there

    @property
    def here(self) -> Region:
        """Those of its voxels that are in the box, in the array of the chunk."""
        return self.x.here, self.y.here, self.z.here, self.channel.here

    @property
    def is_cut(self) -> bool:
        """Whether some of its voxels are not in the box."""
        return self.x.is_cut or self.y.is_cut or self.z.is_cut


def crossed(box: VoxelGrid, level: Mip, channels: int) -> Iterator[Chunk]:
    """Yield the storage chunks of a level that a box crosses, x fastest, with all their channels."""
    along = map(_spans, box.start, box.stop, level.grid.start, level.grid.stop, level.chunk_shape)
    of_channels = _spans(0, channels, 0, channels, level.chunk_channels or channels)
    spans = itertools.product(of_channels, *reversed(list(along)))
    return (Chunk(x, y, z, channel) for channel, z, y, x in spans)


def _spans(box_start: int, box_stop: int, start: int, stop: int, size: int) -> list[Span]:
    """Return the storage chunks that a box crosses along an axis of a volume, which cuts the last chunk."""
    low, high = max(box_start, start), min(box_stop, stop)
    spans = []
    for cell in range((low - start) // size, (high - 1 - start) // size + 1) if low < high else ():
        first, after = start + cell * size, min(start + (cell + 1) * size, stop)
        own, end = max(first, low), min(after, high)
        spans.append(Span(cell, first, after, slice(own - box_start, end - box_start), slice(own - first, end - first)))
    return spans
