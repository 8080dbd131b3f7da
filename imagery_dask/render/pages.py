"""Turn a plane of voxels into a page of pixels, and a page into the bytes of a file.

A plane has two of the axes x, y, z, in that order, and optionally channels. The rows of a page are the second of these
axes and the columns the first, as viewers show it, so that the page of a Fortran-ordered plane is a view.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.annotations import Array

__all__ = [
    "Format",
    "Window",
    "contrast",
    "encode_page",
    "imagery_page",
    "label_page",
    "mask_page",
    "page_of",
    "values_of",
]

Format = Literal["png", "tiff"]
Plane = Array
Page = Array

# PNG (third edition), 11.2.1: color type by number of channels.
COLOR_TYPES = {1: 0, 3: 2, 4: 6}
UP_FILTER = 2
# A chunk of a PNG file is shorter than 2**31 bytes.
IDAT_BYTES = 2**30
# Grey values of this many voxels are computed at once, because the floats of a whole plane may not fit into memory.
WINDOW_VOXELS = 2**22
# Imagery of more than 8 bits is shown from the darkest to the brightest voxels but these, percent at each end.
EXTREMES = 0.5


@dataclass(frozen=True, slots=True)
class Window:
    """Linear scale from voxels to grey values: `low` and below become 0, `high` and above the largest grey value.

    Parameters
    ----------
    low, high : float
        Voxel values, low < high.
    bits : {8, 16}
        Depth of the grey values.
    """

    low: float
    high: float
    bits: int = 8

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"A window is two numbers low,high with low < high; got {self.low:g},{self.high:g}.")
        if self.bits not in (8, 16):
            raise ValueError(f"Pictures have 8 or 16 bits; got {self.bits!r}.")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the data type of the grey values."""
        return np.dtype(f"uint{self.bits}")

    def apply(self, voxels: Plane) -> Plane:
        """Return grey values, rounded to the nearest; NaN becomes 0."""
        out = np.empty(voxels.shape, self.dtype, order="F")
        rows = max(1, WINDOW_VOXELS // max(1, math.prod(voxels.shape) // max(1, voxels.shape[1])))
        for first in range(0, voxels.shape[1], rows):
            part = np.s_[:, first : first + rows]
            share = (voxels[part].astype(np.float64) - self.low) / (self.high - self.low)
            share = np.clip(np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
            out[part] = np.rint(share * np.iinfo(self.dtype).max)
        return out


def contrast(planes: Sequence[Array], window: tuple[float, float] | None = None) -> Window | None:
    """Return the window in which imagery is shown; None for 8-bit imagery as it is.

    Parameters
    ----------
    planes : sequence of numpy.ndarray
        The imagery.
    window : tuple of 2 float, optional
        Voxel values that are black and white. By default, for imagery of more than 8 bits, without the darkest and the
        brightest 0.5% of the voxels.
    """
    if window is not None:
        return Window(float(window[0]), float(window[1]))
    if not planes or planes[0].dtype in (np.uint8, np.bool_):
        return None
    values = np.concatenate([plane[np.isfinite(plane)].ravel() for plane in planes])
    low, high = np.percentile(values, [EXTREMES, 100 - EXTREMES]).tolist() if len(values) else (0.0, 1.0)
    return Window(low, high if high > low else low + 1.0)


def page_of(plane: Plane) -> Page:
    """Return the page of a plane, in C order."""
    return np.ascontiguousarray(np.swapaxes(plane, 0, 1))


def imagery_page(plane: Plane, window: Window | None = None) -> Page:
    """Return the page of imagery: 8 and 16 bit values as they are, bool as 0 and 255, or grey values by a window."""
    if window is not None:
        return page_of(window.apply(plane))
    return page_of(plane.view(np.uint8) * np.uint8(255) if plane.dtype == np.bool_ else plane)


def mask_page(shape: tuple[int, int], places: NDArray[np.intp], rgba: Sequence[int]) -> Page:
    """Return the RGBA page of one object, transparent outside it.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns.
    places : numpy.ndarray of int
        Pixels of the object, as flat indices into the page.
    rgba : sequence of 4 int
        Its color, 0 to 255.
    """
    # Four bytes at a time: indexing a palette costs ten times as much.
    page = np.zeros(shape, dtype=np.uint32)
    page.reshape(-1)[places] = np.array(rgba, dtype=np.uint8).view(np.uint32)[0]
    return page.view(np.uint8).reshape(*shape, 4)


def values_of(plane: Plane, ids: Array, complete: bool) -> Array:
    """Return the values 1, 2, ... that ids have in a table; 0 for id 0 and for ids that the table lacks.

    Parameters
    ----------
    plane : numpy.ndarray of integers
        Ids.
    ids : numpy.ndarray of int64 or uint64
        Ids of the table, ascending.
    complete : bool
        Raise if an id of the plane is not in the table.

    Raises
    ------
    ValueError
        An id is not in a complete table; the message names it.
    """
    wide = np.array(plane, dtype=ids.dtype, order="F")
    present = kernels.unique_ids(wide)
    at = np.searchsorted(ids, present)
    known = (at < len(ids)) & (present != 0)
    known[known] = ids[at[known]] == present[known]
    if complete and not (known | (present == 0)).all():
        unknown = int(present[~known & (present != 0)][0])
        raise ValueError(f"Id {unknown} is not in the table of ids: the data has changed since it was made.")
    return kernels.remap(wide, present, np.where(known, at + 1, 0).astype(ids.dtype))


def label_page(values: Array, packed: bool) -> Page:
    """Return a 16-bit grey page of values, or with `packed` an RGB page with value = 65536 R + 256 G + B."""
    page = page_of(values)
    if not packed:
        return page.astype(np.uint16)
    parts = [(page >> page.dtype.type(shift)).astype(np.uint8) for shift in (16, 8, 0)]
    return np.stack(parts, axis=2)


def encode_page(page: Page, form: Format = "png", flat: bool = False) -> bytes:
    """Return the bytes of a file with one page.

    Parameters
    ----------
    page : numpy.ndarray of uint8 or uint16, shape (rows, columns) or (rows, columns, 3 or 4)
        The picture.
    form : {"png", "tiff"}
        Kind of the file.
    flat : bool
        True for pages with large areas of one value, such as labels and masks.
    """
    if form == "tiff":
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(page).save(out, "TIFF", compression="tiff_adobe_deflate")
        return out.getvalue()
    rows, columns = page.shape[:2]
    channels = page.shape[2] if page.ndim == 3 else 1
    header = struct.pack(">IIBBBBB", columns, rows, 8 * page.dtype.itemsize, COLOR_TYPES[channels], 0, 0, 0)
    body = _deflated(_filtered(page), flat)
    parts = [body[first : first + IDAT_BYTES] for first in range(0, len(body), IDAT_BYTES)]
    chunks = [_chunk(b"IHDR", header), *(_chunk(b"IDAT", part) for part in parts), _chunk(b"IEND", b"")]
    return b"".join((b"\x89PNG\r\n\x1a\n", *chunks))


def _filtered(page: Page) -> NDArray[np.uint8]:
    """Return scanlines as differences to the line above: fast in numpy, and small for sections of tissue."""
    big_endian = page.astype(">u2") if page.dtype.itemsize == 2 else page
    lines = np.ascontiguousarray(big_endian).view(np.uint8).reshape(page.shape[0], -1)
    out = np.empty((lines.shape[0], lines.shape[1] + 1), dtype=np.uint8)
    out[:, 0] = UP_FILTER
    out[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=out[1:, 1:])
    return out


def _deflated(lines: Any, flat: bool) -> bytes:
    # libdeflate is four times as fast as PNG libraries on imagery; zlib-ng is eight times as fast on flat pages.
    if flat and imagecodecs.ZLIBNG.available:
        return bytes(imagecodecs.zlibng_encode(lines, level=2))
    return bytes(imagecodecs.deflate_encode(lines, level=1, raw=False))


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", check)))
