"""Thumbnails of an export for its report, read back from the store: what the two kinds of previews share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagery_dask.annotations import Array
from imagery_dask.render.pages import Window, encode_page

__all__ = ["SIDE", "Preview", "evenly_spaced", "thumbnail", "window_for"]

COUNT = 4
# Rows and columns of a thumbnail at most.
SIDE = 256
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


def evenly_spaced(count: int) -> list[int]:
    """Return up to four evenly spaced indices below `count`."""
    return sorted({(2 * index + 1) * count // (2 * COUNT) for index in range(COUNT)})


def window_for(planes: Sequence[Array]) -> Window | None:
    """Range from black to white that suits all planes; None for 8 bit and for masks, which are shown as they are."""
    if not planes or planes[0].dtype in (np.uint8, np.bool_):
        return None
    voxels = np.concatenate([plane[np.isfinite(plane)].ravel() for plane in planes])
    if not len(voxels):
        return Window(0, 1)
    low, high = (float(value) for value in np.percentile(voxels, SHARE))
    return Window(low, high if low < high else low + max(1.0, abs(low)))


def thumbnail(page: Array) -> bytes:
    """Encode a picture as PNG, thinned to at most 256 rows and columns."""
    step = -(-max(page.shape[:2]) // SIDE)
    return encode_page(np.ascontiguousarray(page[::step, ::step]), flat=False)
