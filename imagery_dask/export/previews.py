"""Small pictures of what an export has written, read back from where it lies: to see at a glance what is wrong."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagery_dask.export.levels import LevelStore, VolumeLevels
from imagery_dask.export.overlays import overlay_page
from imagery_dask.export.pages import Window, encode_page, imagery_page, page_of
from imagery_dask.export.plans import Part
from imagery_dask.export.slice_names import SliceNames, plane_axes
from imagery_dask.files import Files
from imagery_dask.grid import AXES
from imagery_dask.pyramid import Level
from imagery_dask.sources.failures import brief

__all__ = ["Preview", "level_previews", "slice_previews"]

COUNT = 4
# Pixels of a picture, and voxels of a plane that are read for it: of a larger one, its middle.
SIDE = 256
MOST_READ = 1024
MOST_PIXELS = 2**26
SHARE = (0.1, 99.9)


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture, or why there is none.

    Parameters
    ----------
    caption : str
        Of what it is.
    png : bytes or None
        File of at most 256 rows and columns.
    why : str
        What stood in the way.
    """

    caption: str
    png: bytes | None = None
    why: str = ""


def level_previews(export: VolumeLevels, stores: Sequence[LevelStore], whole: Collection[Part]) -> Iterator[Preview]:
    """Give planes of a volume that was written.

    Parameters
    ----------
    export : VolumeLevels
        The volume and its levels.
    stores : sequence of LevelStore
        Where each level is.
    whole : collection of Part
        Parts of the plan whose blocks are all done: levels of others but the first have nothing to show.
    """
    volume = export.volumes[0]
    there = {(part.volume, part.level) for part in whole}
    stages = [stage for stage in export.stages if stage.first == 0 or (volume.name, stage.first) in there]
    number = _chosen([(n, export.levels[n]) for stage in stages for n in range(stage.first, stage.last + 1)])
    x, y, z = export.levels[number].shape
    across = (_middle(x), _middle(y))
    part = "" if (across[0].stop - across[0].start, across[1].stop - across[1].start) == (x, y) else ", its middle"
    read: list[tuple[str, NDArray[Any] | None, str]] = []
    for at in _positions(z):
        caption = f"{volume.name}, level {number}, z {at} of {z}{part}"
        try:
            block = stores[number].read((*across, slice(at, at + 1)))
            read.append((caption, block[:, :, 0], ""))
        except Exception as error:  # a report has no picture then
            read.append((caption, None, brief(error)))
    labels = volume.labels and not volume.channels
    window = None if labels else _window([plane for _, plane, _ in read if plane is not None])
    for caption, plane, why in read:
        yield Preview(caption, None, why) if plane is None else Preview(caption, _small(_page(plane, labels, window)))


def slice_previews(
    files: Files, names: SliceNames, kinds: Sequence[str], edges: Sequence[Sequence[int]]
) -> Iterator[Preview]:
    """Give pictures of an export of slices; of masks, those of the first objects; of tiles, the middle ones.

    Parameters
    ----------
    files, names : Files, SliceNames
        Where they are, and what they are called.
    kinds : sequence of str
        What each slice has a file of.
    edges : sequence of 3 sequences of int
        Edges of slabs and tiles.
    """
    columns, rows = plane_axes(names.axis)
    origin = (_middle_edge(edges[columns]), _middle_edge(edges[rows]))
    count = names.shape[names.axis]
    for number, at in enumerate(_positions(count)):
        if not kinds:
            return
        kind = kinds[min(number, len(kinds) - 1)]
        name = names.name(kind, at, origin)
        caption = f"{name} ({AXES[names.axis]} {at} of {count})"
        try:
            content = files.get(name)
            if content is None:
                yield Preview(caption, None, "it is not there")
                continue
            yield Preview(caption, _small(_shown(_decoded(content), kind)))
        except Exception as error:
            yield Preview(caption, None, brief(error))


def _chosen(levels: Sequence[tuple[int, Level]]) -> int:
    """Coarsest level that fills a picture, or the first."""
    return max([number for number, level in levels if max(level.shape[:2]) >= SIDE], default=0)


def _positions(count: int) -> list[int]:
    """Evenly spaced indices."""
    return sorted({(2 * index + 1) * count // (2 * COUNT) for index in range(COUNT)})


def _middle(size: int) -> slice:
    start = max(0, (size - MOST_READ) // 2)
    return slice(start, min(size, start + MOST_READ))


def _middle_edge(edges: Sequence[int]) -> int:
    return int(edges[(len(edges) - 2) // 2])


def _window(planes: Sequence[NDArray[Any]]) -> Window | None:
    """Range from black to white that suits all planes; None for 8 bit and for masks, which are shown as they are."""
    if not planes or planes[0].dtype in (np.uint8, np.bool_):
        return None
    voxels = np.concatenate([plane[np.isfinite(plane)].ravel() for plane in planes])
    if not len(voxels):
        return Window(0, 1)
    low, high = (float(value) for value in np.percentile(voxels, SHARE))
    return Window(low, high if low < high else low + max(1.0, abs(low)))


def _page(plane: NDArray[Any], labels: bool, window: Window | None) -> NDArray[Any]:
    step = -(-max(plane.shape[:2]) // SIDE)
    plane = plane[::step, ::step]
    if labels and plane.dtype.kind in "iu":
        return overlay_page(plane, alpha=1.0)
    if plane.ndim == 3 and not (plane.dtype == np.uint8 and plane.shape[2] in (3, 4)):
        plane = plane[..., 0]
    return imagery_page(plane, window)


def _shown(page: NDArray[Any], kind: str) -> NDArray[Any]:
    """Page of a file as it can be looked at: values of labels have colors."""
    if kind == "labels":
        values: NDArray[Any] = page.astype(np.uint32)
        if page.ndim == 3:
            values = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
        return overlay_page(values.T, alpha=1.0)
    if page.dtype == np.uint8:
        return page
    return page_of(_windowed(page.T))


def _windowed(plane: NDArray[Any]) -> NDArray[Any]:
    window = _window([plane])
    return plane.astype(np.uint8) * np.uint8(255) if window is None else window.apply(plane)


def _decoded(content: bytes) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is looked at here
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"it has {picture.width:,} x {picture.height:,} pixels, too many for a small picture")
            step = -(-max(picture.size) // SIDE)
            page = np.asarray(picture)[::step, ::step]
    return page if page.dtype in (np.uint8, np.bool_) else page.astype(np.uint16)


def _small(page: NDArray[Any]) -> bytes:
    step = -(-max(page.shape[:2]) // SIDE)
    return encode_page(np.ascontiguousarray(page[::step, ::step]), flat=False)
