"""Make thumbnails of exported slices, for the report."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from imagery_dask.annotations import Array
from imagery_dask.export.core.preview import SIDE, Preview, evenly_spaced, thumbnail, window_for
from imagery_dask.export.images.slice_files import SliceNames, plane_axes
from imagery_dask.geometry.grid import AXES
from imagery_dask.render.overlays import overlay_page
from imagery_dask.render.pages import page_of
from imagery_dask.sources.files.failures import brief
from imagery_dask.storage.atomic_files import Files

__all__ = ["slice_previews"]

MOST_PIXELS = 2**26


def slice_previews(
    files: Files, names: SliceNames, kinds: Sequence[str], edges: Sequence[Sequence[int]]
) -> Iterator[Preview]:
    """Yield thumbnails of some slices: of the first objects for masks, of the middle tiles for tiles.

    Parameters
    ----------
    files, names : Files, SliceNames
        Folder and names of the files.
    kinds : sequence of str
        Kinds of the files of a slice.
    edges : sequence of 3 sequences of int
        Edges of slabs and tiles.
    """
    columns, rows = plane_axes(names.axis)
    origin = (_middle_edge(edges[columns]), _middle_edge(edges[rows]))
    count = names.shape[names.axis]
    for number, at in enumerate(evenly_spaced(count)):
        if not kinds:
            return
        kind = kinds[min(number, len(kinds) - 1)]
        name = names.name(kind, at, origin)
        caption = f"{name} ({AXES[names.axis]} {at} of {count})"
        try:
            content = files.get(name)
            if content is None:
                yield Preview(caption, None, "the file is missing")
                continue
            yield Preview(caption, thumbnail(_shown(_decoded(content), kind)))
        except Exception as error:
            yield Preview(caption, None, brief(error))


def _middle_edge(edges: Sequence[int]) -> int:
    return int(edges[(len(edges) - 2) // 2])


def _shown(page: Array, kind: str) -> Array:
    """Return a page as it is shown: 8 bit grey or color; values of labels in colors."""
    if kind == "labels":
        values: Array = page.astype(np.uint32)
        if page.ndim == 3:
            values = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
        return overlay_page(values.T, alpha=1.0)
    if page.dtype == np.uint8:
        return page
    return page_of(_windowed(page.T))


def _windowed(plane: Array) -> Array:
    window = window_for([plane])
    return plane.astype(np.uint8) * np.uint8(255) if window is None else window.apply(plane)


def _decoded(content: bytes) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"it has {picture.width:,} x {picture.height:,} pixels, too many for a small picture")
            step = -(-max(picture.size) // SIDE)
            page = np.asarray(picture)[::step, ::step]
    return page if page.dtype in (np.uint8, np.bool_) else page.astype(np.uint16)
