"""The levels of a volume with their chunks: what writers of volumes have in common before they write."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from imagery_dask.export.core.inputs import Volume, source_levels
from imagery_dask.export.multiscale.level_layout import LevelLayout, checked_shards, default_chunks, lay_out
from imagery_dask.export.multiscale.levels import VolumeLevels
from imagery_dask.geometry.grid import XYZ
from imagery_dask.geometry.pyramid import Level, Levels, pyramid
from imagery_dask.geometry.vec import Vec3

__all__ = ["Multiscale", "multiscale_of"]


@dataclass(frozen=True, slots=True)
class Multiscale:
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


def multiscale_of(volume: Volume, levels: Levels, chunks: XYZ | None, shards: Any = None) -> Multiscale:
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
        return Multiscale(VolumeLevels((volume,), geometry, stages), layouts)
    volumes = source_levels(volume)
    geometry = tuple(Level(one.shape, Vec3(1, 1, 1), one.resolution_nm, one.translation_nm) for one in volumes)
    laid_out = [lay_out([level], chunks, shards, volume.voxel_bytes) for level in geometry]
    stages = tuple(replace(stage, first=index, last=index) for index, (_, (stage,)) in enumerate(laid_out))
    return Multiscale(VolumeLevels(volumes, geometry, stages), tuple(layout for (layout,), _ in laid_out))
