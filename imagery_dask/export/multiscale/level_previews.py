"""Thumbnails of the planes of a volume that was exported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from imagery_dask.annotations import Array
from imagery_dask.export.core.plans import StageBlocks
from imagery_dask.export.core.preview import SIDE, Preview, evenly_spaced, thumbnail, window_for
from imagery_dask.export.multiscale.levels import LevelStore, VolumeLevels
from imagery_dask.geometry.pyramid import Level
from imagery_dask.render.overlays import overlay_page
from imagery_dask.render.pages import Window, imagery_page
from imagery_dask.sources.files.failures import brief

__all__ = ["level_previews"]

# Voxels of a plane that are read for a thumbnail: the middle of a larger plane.
MOST_READ = 1024


def level_previews(
    export: VolumeLevels, stores: Sequence[LevelStore], whole: Collection[StageBlocks]
) -> Iterator[Preview]:
    """Return planes of a volume that was written.

    Parameters
    ----------
    export : VolumeLevels
        The volume and its levels.
    stores : sequence of LevelStore
        Where each level is.
    whole : collection of StageBlocks
        Parts of the plan whose blocks are all written; of the others only level 0 is shown.
    """
    volume = export.volumes[0]
    complete = {(part.volume, part.level) for part in whole}
    stages = [stage for stage in export.stages if stage.first == 0 or (volume.name, stage.first) in complete]
    number = _chosen([(n, export.levels[n]) for stage in stages for n in range(stage.first, stage.last + 1)])
    x, y, z = export.levels[number].shape
    across = (_middle(x), _middle(y))
    part = "" if (across[0].stop - across[0].start, across[1].stop - across[1].start) == (x, y) else ", its middle"
    read: list[tuple[str, Array | None, str]] = []
    for at in evenly_spaced(z):
        caption = f"{volume.name}, level {number}, z {at} of {z}{part}"
        try:
            block = stores[number].read((*across, slice(at, at + 1)))
            read.append((caption, block[:, :, 0], ""))
        except Exception as error:  # a report has no picture then
            read.append((caption, None, brief(error)))
    labels = volume.labels and not volume.channels
    window = None if labels else window_for([plane for _, plane, _ in read if plane is not None])
    for caption, plane, why in read:
        yield (
            Preview(caption, None, why) if plane is None else Preview(caption, thumbnail(_page(plane, labels, window)))
        )


def _chosen(levels: Sequence[tuple[int, Level]]) -> int:
    """Coarsest level that fills a picture, or the first."""
    return max([number for number, level in levels if max(level.shape[:2]) >= SIDE], default=0)


def _middle(size: int) -> slice:
    start = max(0, (size - MOST_READ) // 2)
    return slice(start, min(size, start + MOST_READ))


def _page(plane: Array, labels: bool, window: Window | None) -> Array:
    step = -(-max(plane.shape[:2]) // SIDE)
    plane = plane[::step, ::step]
    if labels and plane.dtype.kind in "iu":
        return overlay_page(plane, alpha=1.0)
    if plane.ndim == 3 and not (plane.dtype == np.uint8 and plane.shape[2] in (3, 4)):
        plane = plane[..., 0]
    return imagery_page(plane, window)
