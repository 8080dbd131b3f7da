"""Draw objects in color over imagery: `composite_overlay` for notebooks, `overlay_page` for exports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import dask
import fastremap
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagery_dask.annotations import Array
from imagery_dask.arrays.masks import SegmentationMasks
from imagery_dask.render.canvas import Canvas, Rgba, Style, draw_masks, draw_numbers, over, packed, unpacked
from imagery_dask.render.clashes import colors_apart
from imagery_dask.render.palettes import (
    DEFAULT_H,
    DEFAULT_L,
    DEFAULT_PALETTE,
    DEFAULT_S,
    color_of,
    colors_of,
    discrete_colors,
    mask_color,
)
from imagery_dask.validate import choice
from imagery_dask.validate import root_id as checked_id

__all__ = ["composite_overlay", "overlay", "overlay_halo", "overlay_page"]

Shape = tuple[int, ...]
# Rows that are composited at a time, so that intermediate values stay in the processor's cache.
STRIP = 64


def composite_overlay(
    segs: object,
    colors: object = None,
    alpha: float = 0.2,
    imagery: Any = None,
    outline: bool = False,
    merge_outline: bool = True,
    overlap: bool = True,
    width: int = 10,
    side: str = "out",
    dim: int = 2,
    palette: object = DEFAULT_PALETTE,
    h: float = DEFAULT_H,
    l: float = DEFAULT_L,  # noqa: E741  # the name in imageryclient
    s: float = DEFAULT_S,
) -> Any:
    """Draw objects in color, filled or as outlines, alone or over imagery.

    Parameters
    ----------
    segs : mapping of id to mask, sequence of masks, or array of ids
        What to draw, later objects over earlier ones. Masks and ids have axes x, y or x, y, z and are numpy or dask
        arrays, which are computed. A mask covers the voxels above 0. Every id but 0 of an array of ids is drawn, in
        ascending order. The masks of `split_segmentation_cutout` are computed in one pass over the cutout.
    colors : mapping of id to color, or sequence of colors, optional
        A mapping if `segs` has ids, else a sequence with a color for each mask. A color is red, green and blue
        from 0 to 1 (a fourth number is ignored). By default colors come from `palette`.
    alpha : float
        Opacity of the colors, 0 to 1.
    imagery : numpy.ndarray, dask.array.Array or PIL.Image.Image, optional
        What to draw over: an array of uint8 in the shape of the masks, or an image for masks of x, y.
    outline : bool
        Draw outlines rather than filled objects.
    merge_outline : bool
        Draw no outline where objects touch.
    overlap : bool
        Draw later objects over earlier ones.
    width : int
        Width of outlines in pixels.
    side : {"out", "in"}
        Draw outlines around objects or inside them.
    dim : {0, 1, 2}
        Axis along which a volume is cut into pictures.
    palette : str or sequence
        ``"husl"`` or ``"hls"``, evenly spaced; ``"ids"``, with the color that each id has in every picture
        (`clashes.colors_apart`); anything else is given to seaborn's ``color_palette`` (which must be installed).
    h, l, s : float
        First hue, lightness and saturation of the palettes ``"husl"`` and ``"hls"``, 0 to 1.

    Returns
    -------
    PIL.Image.Image or list of PIL.Image.Image
        An RGBA picture of masks of x, y: rows are y, columns are x. For volumes a list of pictures, one for each index
        along `dim`; columns and rows are the other two axes, in this order.

    Raises
    ------
    ValueError, TypeError
        An argument cannot be drawn. Raised before anything is computed, unless `colors` lacks ids of an array.
    """
    style = _style(alpha, outline, merge_outline, width, side, overlap)
    if isinstance(dim, bool) or not hasattr(dim, "__index__") or dim not in (0, 1, 2):
        raise ValueError(f"dim is 0 (x), 1 (y) or 2 (z); got {dim!r}.")
    objects = _objects(segs, imagery)
    background = None if imagery is None else _checked_imagery(imagery, objects.shape)
    places = [()] if len(objects.shape) == 2 else [(slice(None),) * dim + (at,) for at in range(objects.shape[dim])]
    if colors is None and isinstance(palette, str) and palette == "ids":
        fractions: Any = _colors_of_ids(objects, places)
    elif colors is None:
        fractions = discrete_colors(len(objects.keys), palette, h, l, s)
    else:
        fractions = _colors_in_order(colors, objects)
    # Truncated rather than rounded, as in imageryclient.
    bytes_ = np.array([[int(255 * value) for value in color[:3]] for color in fractions], np.uint8).reshape(-1, 3)
    pixels = packed(bytes_, style.alpha)
    if background is not None and not isinstance(background, Image.Image):
        background = _computed(background)

    def picture(place: tuple[Any, ...]) -> Image.Image:
        page = unpacked(objects.draw(place, pixels, style))
        return Image.fromarray(page if background is None else over(_rgba(background, place), page))

    pictures = [picture(place) for place in places]
    return pictures[0] if len(objects.shape) == 2 else pictures


def overlay_page(
    labels: Array,
    image: Array | None = None,
    *,
    colors: Mapping[int, Sequence[int]] | None = None,
    alpha: float = 0.2,
    outline: bool = False,
    merge_outline: bool = True,
    width: int = 10,
    side: str = "out",
) -> NDArray[np.uint8]:
    """Draw a page of labels: the picture that `composite_overlay` gives, without making a mask for each object.

    A page may be drawn tile by tile if each tile is read with `overlay_halo` more pixels on each side.

    Parameters
    ----------
    labels : numpy.ndarray of integers, shape (x, y)
        Ids; 0 is no object. Objects are drawn in ascending order.
    image : numpy.ndarray of uint8, shape (x, y), optional
        What to draw over.
    colors : mapping of int to 3 or 4 int, optional
        RGB (0 to 255) by id; a fourth number is ignored. Other ids have the color of `palettes.colors_of`, the same in
        every page and every run.
    alpha : float
        Opacity of the colors, 0 to 1.
    outline, merge_outline, width, side
        As for `composite_overlay`.

    Returns
    -------
    numpy.ndarray of uint8, shape (y, x, 3) or (y, x, 4)
        RGB over an image, RGBA without one.

    Raises
    ------
    ValueError, TypeError
        An argument cannot be drawn.
    """
    style = _style(alpha, outline, merge_outline, width, side)
    labels = np.asarray(labels)
    if labels.ndim != 2 or 0 in labels.shape:
        raise ValueError(f"labels has axes x and y, and a pixel at least; got shape {labels.shape}.")
    _check_ids(labels.dtype)
    image = None if image is None else np.asarray(_checked_imagery(image, labels.shape))
    numbers, ids = _numbered(labels)
    table = np.zeros((len(ids) + 1, 3), dtype=np.uint8)
    table[1:] = colors_of(ids)
    for number, root_id in enumerate(ids.tolist(), 1):
        if colors and root_id in colors:
            table[number] = mask_color(colors[root_id])[:3]
    page = unpacked(draw_numbers(numbers.T, np.argsort(ids) + 1, packed(table, style.alpha), style))
    return page if image is None else _over_image(image, page)


def overlay(
    image: Array,
    labels: Array,
    alpha: float | NDArray[np.float64] = 0.35,
    colors: Mapping[int, Sequence[int]] | None = None,
) -> NDArray[np.uint8]:
    """Blend a grey image with colored labels.

    Parameters
    ----------
    image : numpy.ndarray of uint8, shape (x, y)
        Imagery.
    labels : numpy.ndarray of integers, shape (x, y)
        Ids; 0 has no color.
    alpha : float or numpy.ndarray of float64, shape (x, y)
        Strength of the colors, 0 to 1.
    colors : mapping of int to 3 int, optional
        Red, green and blue, 0 to 255, of every id but 0. By default those of `palettes.colors_of`.

    Returns
    -------
    numpy.ndarray of uint8, shape (y, x, 3)
        RGB picture: rows are y, columns are x.
    """
    ids, places = np.unique(labels, return_inverse=True)
    table = colors_of(ids) if colors is None else np.array([colors.get(root, (0, 0, 0)) for root in ids.tolist()])
    grey = np.repeat(image[..., np.newaxis], 3, axis=2).astype(np.float64)
    share = np.where(labels == 0, 0.0, alpha)[..., np.newaxis]
    mixed = grey * (1 - share) + table[places.reshape(labels.shape)] * share
    return np.ascontiguousarray(np.swapaxes(mixed.astype(np.uint8), 0, 1))


def overlay_halo(outline: bool, width: int = 10) -> int:
    """Return how many pixels around a tile `overlay_page` needs to draw the tile as part of the whole page.

    Parameters
    ----------
    outline, width
        As for `overlay_page`.

    Returns
    -------
    int
        Pixels on each side, which are cut off the picture again. None are needed at the edges of the page.
    """
    return _style(1.0, outline, True, width, "out").width if outline else 0


class _Masks:
    """Masks, with or without ids."""

    def __init__(self, segs: Any, fallback: Shape | None) -> None:
        self.named = isinstance(segs, Mapping)
        self._masks = list(segs.values() if self.named else segs)
        self._masks = [mask if hasattr(mask, "shape") else np.asarray(mask) for mask in self._masks]
        self.keys: list[Any] = list(segs) if self.named else list(range(len(self._masks)))
        shapes = {tuple(int(n) for n in mask.shape) for mask in self._masks}
        if not shapes and fallback is None:
            raise ValueError("segs has no masks and there is no imagery, so the size of the picture is unknown.")
        if len(shapes) > 1:
            raise ValueError(f"Masks must be of one shape; got {', '.join(map(str, sorted(shapes)))}.")
        self.shape = _checked_shape(shapes.pop() if shapes else fallback)

    @cached_property
    def _loaded(self) -> list[NDArray[np.bool_]]:
        # Together, because masks made of the same blocks share them.
        return [np.asarray(mask) > 0 for mask in dask.compute(*self._masks)]

    def draw(self, place: tuple[Any, ...], pixels: Canvas, style: Style) -> Canvas:
        """Return the canvas of a slice."""
        pages = [mask[place].T for mask in self._loaded]
        columns, rows = (n for axis, n in enumerate(self.shape) if axis != len(place) - 1)
        return draw_masks(pages, pixels, style, (rows, columns))

    def ids(self, place: tuple[Any, ...]) -> Array:
        """Return the ids of a slice, of the last object where several cover a pixel."""
        page: Array = np.zeros(self.shape, dtype=np.uint64)[place]
        for key, mask in zip(self.keys, self._loaded, strict=True):
            page[mask[place]] = key
        return page


class _Labels:
    """Array of ids: masks that do not overlap."""

    named = True

    def __init__(self, segs: Any) -> None:
        self._masks = segs if isinstance(segs, SegmentationMasks) else None
        self._source = segs if self._masks is None else self._masks.labels
        _check_ids(self._source.dtype)
        self.shape = _checked_shape(tuple(int(n) for n in self._source.shape))

    @cached_property
    def _loaded(self) -> tuple[Array, Array]:
        # 0 is an object if the masks were made with include_null_root.
        labels = _computed(self._source)
        numbers, ids = _numbered(labels, with_null=self._masks is not None and bool(self._masks.select([0])))
        if self._masks is not None:
            self._masks.remember(ids.tolist())
        return numbers, ids

    @cached_property
    def keys(self) -> list[int]:
        """Return the ids, ascending."""
        return sorted(self._loaded[1].tolist())

    def draw(self, place: tuple[Any, ...], pixels: Canvas, style: Style) -> Canvas:
        """Return the canvas of a slice."""
        numbers, ids = self._loaded
        order = np.argsort(ids) + 1
        table = np.zeros(len(ids) + 1, dtype=np.uint32)
        table[order] = pixels
        return draw_numbers(numbers[place].T, order, table, style)

    def ids(self, place: tuple[Any, ...]) -> Array:
        """Return the ids of a slice."""
        numbers, ids = self._loaded
        return np.asarray(np.concatenate([np.zeros(1, ids.dtype), ids])[numbers[place]])


def _objects(segs: object, imagery: Any) -> _Masks | _Labels:
    if isinstance(segs, SegmentationMasks) or (hasattr(segs, "dtype") and hasattr(segs, "shape")):
        return _Labels(segs)
    if isinstance(segs, (str, bytes)) or not isinstance(segs, (Mapping, Iterable)):
        raise TypeError(
            f"segs is a mapping of id to mask, a sequence of masks, or an array of ids; got a {type(segs).__name__}."
        )
    fallback = None
    if imagery is not None:
        fallback = imagery.size if isinstance(imagery, Image.Image) else tuple(int(n) for n in np.shape(imagery))
    return _Masks(segs, fallback)


def _numbered(labels: Array, with_null: bool = False) -> tuple[Array, Array]:
    """Replace ids by numbers 1, 2, ... and return the id of each; 0 stays 0 unless it is an object."""
    if labels.dtype == np.bool_:
        labels = labels.view(np.uint8)
    numbers, number_of = fastremap.renumber(labels, preserve_zero=not with_null, in_place=False)
    ids = sorted((root_id for root_id, number in number_of.items() if number != 0), key=number_of.__getitem__)
    return np.asarray(numbers), np.array(ids, dtype=labels.dtype)


def _style(
    alpha: float, outline: bool, merge_outline: bool, width: int, side: str, overlap: bool = True
) -> Style:  # fmt: skip
    if not isinstance(alpha, (int, float, np.number)) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a number from 0 (invisible) to 1 (opaque); got {alpha!r}.")
    choice("side", side, ("out", "in"))
    if not isinstance(width, (int, float, np.number)) or not 1 <= width < 2**31 or int(width) != width:
        raise ValueError(f"width is a whole number of pixels, 1 at least; got {width!r}.")
    return Style(
        int(alpha * 255), bool(outline), bool(merge_outline), bool(overlap), int(width), inside=side == "in"
    )  # fmt: skip


def _colors_of_ids(objects: _Masks | _Labels, places: Sequence[tuple[Any, ...]]) -> list[list[float]]:
    """Return the colors of the ids, in the order of the objects."""
    if not objects.named:
        raise ValueError("palette 'ids' colors by ids, which a sequence of masks does not have; pass a mapping.")
    ids = [checked_id("segs' keys", key) for key in objects.keys]
    colors = colors_apart([objects.ids(place) for place in places])
    return [[value / 255 for value in colors.get(key) or color_of(key)] for key in ids]


def _colors_in_order(colors: Any, objects: _Masks | _Labels) -> list[list[Any]]:
    """Return the colors in the order of the objects."""
    if objects.named != isinstance(colors, Mapping):
        raise TypeError(
            f"colors must map ids to colors where segs has ids, and be a sequence where segs is one; got a "
            f"{type(colors).__name__}."
        )
    if objects.named:
        missing = [key for key in objects.keys if key not in colors]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ValueError(f"colors has none for {', '.join(map(repr, missing[:5]))}{more}.")
        chosen = [colors[key] for key in objects.keys]
    else:
        chosen = list(colors)[: len(objects.keys)]
        if len(chosen) < len(objects.keys):
            raise ValueError(f"colors needs one for each mask; got {len(chosen)} for {len(objects.keys)} masks.")
    return [_fractions(color) for color in chosen]


def _fractions(color: Any) -> list[Any]:
    try:
        values = list(color)
        right = len(values) in (3, 4) and all(0 <= value <= 1 for value in values)
    except TypeError:
        right = False
    if not right:
        raise ValueError(f"A color is 3 (RGB) or 4 numbers from 0 to 1; got {color!r}. Divide bytes by 255.")
    return values


def _check_ids(dtype: Any) -> None:
    if dtype != np.bool_ and not np.issubdtype(dtype, np.integer):
        raise TypeError(
            f"Ids are integers; got an array of {dtype}. Ids exceed 2**53, and a float has already rounded them. Pass "
            "masks as a list or a mapping."
        )


def _checked_shape(shape: Shape | None) -> Shape:
    if shape is None or len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"Masks and ids have axes x, y or x, y, z, and a voxel at least; got shape {shape}.")
    return shape


def _checked_imagery(imagery: Any, shape: Shape) -> Any:
    """Return imagery of the shape of the masks, or raise."""
    if isinstance(imagery, Image.Image):
        if imagery.size != shape:
            raise ValueError(f"imagery is an image of {imagery.size} pixels, but the masks have shape {shape}.")
        return imagery
    imagery = imagery if hasattr(imagery, "dtype") else np.asarray(imagery)
    if tuple(imagery.shape) != shape:
        raise ValueError(f"imagery has shape {tuple(imagery.shape)}, but the masks have shape {shape}.")
    if imagery.dtype not in (np.uint8, np.bool_):
        raise TypeError(
            f"imagery is uint8; got {imagery.dtype}. Scale it first, for example "
            "(255 * (image - low) / (high - low)).astype('uint8')."
        )
    return imagery


def _computed(array: Any) -> Array:
    return np.asarray(array.compute() if dask.is_dask_collection(array) else array)


def _over_image(image: Array, page: Rgba) -> NDArray[np.uint8]:
    """Return a page over imagery of x, y, as RGB."""
    out = np.empty((*page.shape[:2], 3), dtype=np.uint8)
    for start in range(0, len(page), STRIP):
        rows = slice(start, start + STRIP)
        out[rows] = over(_rgba(image[:, rows], ()), page[rows])[..., :3]
    return out


def _rgba(imagery: Any, place: tuple[Any, ...]) -> Rgba:
    """Return a slice of imagery as opaque grey pixels, rows first; an image unchanged."""
    if isinstance(imagery, Image.Image):
        return np.asarray(imagery.convert("RGBA"))
    grey = imagery[place].T
    if grey.dtype == np.bool_:
        grey = grey * np.uint8(255)
    page = np.full((*grey.shape, 4), 255, dtype=np.uint8)
    page[..., :3] = grey[..., np.newaxis]
    return page
