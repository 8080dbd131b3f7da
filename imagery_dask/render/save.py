"""Save slices of an array as PNG files, holding at most one slab of blocks in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil

from imagery_dask import kernels
from imagery_dask.annotations import Array, Keywords
from imagery_dask.arrays.masks import SegmentationMasks
from imagery_dask.render.pages import encode_page, mask_page
from imagery_dask.render.palettes import mask_color
from imagery_dask.validate import axis, choice, expanded_path

__all__ = ["check_masks", "check_write_options", "save_image_slices", "save_masks"]

Pixels = Array
SLAB_BYTES = 256 * 2**20
# What imageio's and Pillow's PNG writers take.
WRITE_OPTIONS = {
    "bits", "compress_level", "compress_type", "dictionary", "dpi", "exif", "format", "icc_profile", "mode", "optimize",
    "pnginfo", "transparency",
}  # fmt: skip


def save_image_slices(
    filename_prefix: str,
    filename_suffix: str,
    img: Any,
    slice_axis: int,
    image_type: str,
    verbose: bool = False,
    color: Sequence[int] | None = None,
    **kwargs: object,
) -> None:
    """Save an image, or each slice of a volume, as a PNG file.

    Parameters
    ----------
    filename_prefix, filename_suffix : str
        Files are ``{prefix}_{suffix}.png`` for one slice, ``{prefix}_slice_{i}_{suffix}.png`` for several.
    img : numpy.ndarray or dask.array.Array
        Axes x, y, z (or only two of them), and optionally channels of RGB. Dask arrays are computed a slab at a time.
    slice_axis : {0, 1, 2}
        Axis along which a volume is cut into slices.
    image_type : {"imagery", "mask"}
        ``"imagery"`` writes grey values (8 or 16 bit) or RGB; ``"mask"`` writes RGBA, transparent where `img` is 0.
    verbose : bool
        Print each file's name.
    color : sequence of 3 or 4 int, optional
        RGB or RGBA, 0 to 255, of a mask; white when not given.
    **kwargs
        Passed to ``imageio.imwrite``.

    Raises
    ------
    ValueError, TypeError
        The image type is unknown, the axis does not exist, or PNG cannot hold the data.
    """
    check_write_options(kwargs)
    choice("image_type", image_type, ("imagery", "mask"))
    img = img if isinstance(img, da.Array) else np.asarray(img)
    count = _slice_count(img, slice_axis, image_type)
    if image_type == "imagery":
        _check_imagery(img)
    rgba = mask_color(color)
    for index, pixels in _slices(img, slice_axis, count):
        page = _grey(pixels) if image_type == "imagery" else _mask_page(pixels, rgba)
        content = _content(page, kwargs, flat=image_type == "mask")
        _write(_slice_name(filename_prefix, filename_suffix, index, count), content, verbose, kwargs)


def check_write_options(kwargs: Mapping[str, object], *also: str) -> None:
    """Raise for keyword arguments that no PNG writer takes; Pillow would silently ignore a typo.

    Raises
    ------
    TypeError
        An argument is unknown; the message lists those that exist.
    """
    unknown = sorted(set(kwargs) - WRITE_OPTIONS - set(also))
    if unknown:
        raise TypeError(
            f"Unexpected keyword argument {', '.join(map(repr, unknown))}: neither a parameter of this call nor an "
            f"option of imageio.imwrite for PNG files ({', '.join(sorted(WRITE_OPTIONS))})."
        )


def save_masks(
    filename_prefix: str,
    masks: Mapping[int, Any],
    slice_axis: int,
    colormap: Mapping[int, Sequence[int]],
    verbose: bool = False,
    **kwargs: object,
) -> None:
    """Save the mask of every object, as `save_image_slices` does for one.

    The masks of a cutout are written in one pass over its labels, whatever the number of objects.
    """
    check_write_options(kwargs)
    check_masks(masks, slice_axis, colormap)
    colors = {int(root): mask_color(color) for root, color in colormap.items()}
    if isinstance(masks, SegmentationMasks):
        _save_cutout_masks(filename_prefix, masks, slice_axis, colors, verbose, kwargs)
        return
    for root_id, mask in masks.items():
        color = colors.get(int(root_id))
        suffix = f"root_id_{root_id}"
        save_image_slices(filename_prefix, suffix, mask, slice_axis, "mask", verbose, color, **kwargs)


def check_masks(masks: Mapping[int, Any], slice_axis: int, colormap: Mapping[int, Sequence[int]]) -> None:
    """Raise if masks, an axis or colors cannot be written."""
    for name, value in (("masks", masks), ("segmentation_colormap", colormap)):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} must map root ids to what belongs to them; got a {type(value).__name__}.")
    for color in colormap.values():
        mask_color(color)
    for mask in [masks.labels] if isinstance(masks, SegmentationMasks) else masks.values():
        _slice_count(mask, slice_axis, "mask")


def _save_cutout_masks(
    prefix: str,
    masks: SegmentationMasks,
    slice_axis: int,
    colors: Mapping[int, tuple[int, int, int, int]],
    verbose: bool,
    kwargs: Keywords,
) -> None:
    labels = masks.labels
    count = _slice_count(labels, slice_axis, "mask")
    seen: set[int] = set()
    white = mask_color(None)
    for index, pixels in _slices(labels, slice_axis, count):
        plane = np.asfortranarray(pixels)  # its memory is that of the page, row by row
        shape, places = (plane.shape[1], plane.shape[0]), kernels.places_of(plane)
        empty = _content(np.zeros((*shape, 4), dtype=np.uint8), kwargs, flat=True)
        for root_id in masks.select(set(places) - seen):
            seen.add(root_id)
            # Every object has a file for every slice: write the earlier slices, where this object did not occur.
            for earlier in range(index):
                _write(_slice_name(prefix, f"root_id_{root_id}", earlier, count), empty, verbose, kwargs)
        for root_id in sorted(seen):
            page = empty
            if root_id in places:
                page = _content(mask_page(shape, places[root_id], colors.get(root_id, white)), kwargs, flat=True)
            _write(_slice_name(prefix, f"root_id_{root_id}", index, count), page, verbose, kwargs)
    masks.remember(seen)


def _slice_count(img: Any, slice_axis: int, image_type: str) -> int:
    index = axis("slice_axis", slice_axis, letters=False)
    if img.ndim not in (2, 3, 4) or (img.ndim == 4 and image_type == "mask"):
        raise ValueError(f"Images have axes x, y and z, or two of them; got an array of shape {img.shape}.")
    # An array of two axes is one picture.
    return 1 if img.ndim == 2 else int(img.shape[index])


def _slices(img: Any, axis: int, count: int) -> Iterator[tuple[int, Pixels]]:
    """Yield each slice as an array; whole slabs of blocks are computed so that blocks are read once (see `_slabs`)."""
    if img.ndim == 2:
        yield 0, np.asarray(img.compute() if isinstance(img, da.Array) else img)
        return
    for start, stop in _slabs(img, axis, count):
        slab = img[(slice(None),) * axis + (slice(start, stop),)]
        values = np.asarray(slab.compute() if isinstance(slab, da.Array) else slab)
        for index in range(start, stop):
            # A view; np.take would copy the whole Fortran-ordered slab for each slice.
            yield index, values[(slice(None),) * axis + (index - start,)]


def _slabs(img: Any, axis: int, count: int) -> list[tuple[int, int]]:
    """Return ranges of slices to compute together: as deep as the blocks, if that fits into memory.

    If it does not fit into a quarter of the free memory, blocks are read again for each range.
    """
    if not isinstance(img, da.Array):
        return [(0, count)]
    stops = list(accumulate(int(n) for n in img.chunks[axis]))
    starts = [0, *stops[:-1]]
    per_slice = max(1, int(img.size * img.dtype.itemsize) // max(1, count))
    depth = max(1, _slab_bytes() // per_slice)
    return [
        (first, min(first + depth, stop))
        for start, stop in zip(starts, stops, strict=True)
        for first in range(start, stop, depth)
    ]


def _slab_bytes() -> int:
    return max(SLAB_BYTES, int(psutil.virtual_memory().available) // 4)


def _slice_name(prefix: str, suffix: str, index: int, count: int) -> str:
    return f"{prefix}_{suffix}.png" if count == 1 else f"{prefix}_slice_{index}_{suffix}.png"


def _check_imagery(img: Any) -> None:
    if img.dtype not in (np.uint8, np.uint16, np.bool_):
        raise TypeError(
            f"PNG holds 8 and 16 bit imagery; got {img.dtype}. Scale it first, for example "
            "(255 * (img - low) / (high - low)).astype('uint8')."
        )
    if img.ndim == 4 and not (img.shape[3] in (3, 4) and img.dtype == np.uint8):
        raise TypeError(f"Several channels are written as 8 bit RGB or RGBA; got shape {img.shape} of {img.dtype}.")


def _grey(pixels: Pixels) -> Pixels:
    """Return a page with rows y and columns x; 8 bit grey is written as RGB, as imageryclient does."""
    if pixels.ndim == 3:
        return np.ascontiguousarray(np.swapaxes(pixels, 0, 1))
    if pixels.dtype == np.uint16:
        return np.ascontiguousarray(pixels.T)
    return np.repeat(pixels.astype(np.uint8).T[:, :, np.newaxis], 3, axis=2)


def _mask_page(pixels: Pixels, rgba: tuple[int, int, int, int]) -> Pixels:
    # Four bytes at a time: indexing a palette costs ten times as much.
    page = np.zeros(pixels.T.shape, dtype=np.uint32)
    page[pixels.T != 0] = np.array(rgba, dtype=np.uint8).view(np.uint32)[0]
    return page.view(np.uint8).reshape(*page.shape, 4)


def _content(page: Pixels, kwargs: Keywords, flat: bool = False) -> Pixels | bytes:
    """Return the bytes of a page's file, or the page itself if imageio must write it with the caller's options."""
    return page if kwargs else encode_page(page, flat=flat)


def _write(name: str, page: Pixels | bytes, verbose: bool, kwargs: Keywords) -> None:
    path = expanded_path(name)
    if isinstance(page, bytes):
        Path(path).write_bytes(page)
    else:
        import imageio.v2 as imageio

        imageio.imwrite(path, page, **kwargs)
    if verbose:
        print(f"Saved {name}...")  # noqa: T201  # what imageryclient prints for verbose
