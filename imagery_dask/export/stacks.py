"""The levels of a volume with their chunks: what writers of volumes have in common before they write."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from imagery_dask.export.inputs import Volume, source_levels
from imagery_dask.export.layout import LevelLayout, checked_shards, default_chunks, lay_out
from imagery_dask.export.levels import VolumeLevels
from imagery_dask.grid import XYZ
from imagery_dask.pyramid import Level, Levels, pyramid

__all__ = ["Stack", "block_bytes_of", "stack_of"]

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Stack:
    """The levels of a volume, with their chunks.

    Parameters
    ----------
    export : VolumeLevels
        What is computed.
    layouts : tuple of LevelLayout
        Chunks and shards of each level.
    """

    export: VolumeLevels
    layouts: tuple[LevelLayout, ...]

    @property
    def volume(self) -> Volume:
        """What level 0 is made of."""
        return self.export.volumes[0]


def stack_of(volume: Volume, levels: Levels, chunks: XYZ | None, shards: Any = None) -> Stack:
    """Lay out the levels of a volume.

    Raises
    ------
    ValueError
        For shards that are not whole chunks, and levels of a source that has none.
    """
    chunks = chunks or default_chunks(volume.array.dtype.itemsize)
    shards = checked_shards(shards, chunks)
    if levels != "source":
        geometry = pyramid(volume.shape, volume.resolution_nm, volume.translation_nm, levels)
        layouts, stages = lay_out(geometry, chunks, shards, volume.voxel_bytes)
        return Stack(VolumeLevels((volume,), geometry, stages), layouts)
    volumes = source_levels(volume)
    geometry = tuple(Level(each.shape, (1, 1, 1), each.resolution_nm, each.translation_nm) for each in volumes)
    laid_out = [lay_out([level], chunks, shards, volume.voxel_bytes) for level in geometry]
    stages = tuple(replace(stage, first=index, last=index) for index, (_, (stage,)) in enumerate(laid_out))
    return Stack(VolumeLevels(volumes, geometry, stages), tuple(layout for (layout,), _ in laid_out))


def block_bytes_of(block_mib: float | None) -> int | None:
    """Size of blocks in bytes.

    Raises
    ------
    ValueError
        For what is no size.
    """
    if block_mib is None:
        return None
    if isinstance(block_mib, bool) or not isinstance(block_mib, (int, float)) or not 0 < block_mib < math.inf:
        raise ValueError(f"block_mib must be a number above 0; got {block_mib!r}.")
    return max(1, int(block_mib * MIB))
