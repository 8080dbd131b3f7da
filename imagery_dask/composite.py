"""Pictures of objects, by the names of ``imageryclient.composite``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np
from PIL import Image

from imagery_dask.render import palettes
from imagery_dask.render.overlays import composite_overlay
from imagery_dask.render.palettes import DEFAULT_H, DEFAULT_L, DEFAULT_PALETTE, DEFAULT_S, Color
from imagery_dask.validate import choice

__all__ = [
    "DEFAULT_H",
    "DEFAULT_L",
    "DEFAULT_PALETTE",
    "DEFAULT_S",
    "composite_overlay",
    "discrete_colors",
    "stack_images",
]

WHITE = (255, 255, 255)


def discrete_colors(
    segs: Sized,
    palette: object = DEFAULT_PALETTE,
    h: float = DEFAULT_H,
    l: float = DEFAULT_L,  # noqa: E741  # the name in imageryclient
    s: float = DEFAULT_S,
) -> list[Color] | dict[Any, Color]:
    """Choose a color for each object, as `imagery_dask.composite_overlay` does by default.

    Parameters
    ----------
    segs : mapping of id to mask, or sequence
        The objects; a mapping that finds its ids lazily is read once.
    palette : str or sequence
        ``"husl"`` or ``"hls"``; anything else is given to seaborn's ``color_palette`` (which must be installed).
    h, l, s : float
        First hue, lightness and saturation of the palettes ``"husl"`` and ``"hls"``, 0 to 1.

    Returns
    -------
    dict of id to tuple of 3 float, or list of tuple of 3 float
        Red, green and blue, 0 to 1; a dict for a mapping.

    Raises
    ------
    ValueError
        The palette is unknown, or `h`, `l` or `s` is not a number in range.
    ImportError
        The palette needs seaborn, which is not installed.
    """
    colors = palettes.discrete_colors(len(segs), palette, h, l, s)
    return dict(zip(segs, colors, strict=True)) if isinstance(segs, Mapping) else colors


def stack_images(images: Iterable[Any], direction: str = "horizontal", spacing: int = 10) -> Image.Image:
    """Join pictures in a row or a column, on white.

    Parameters
    ----------
    images : iterable of PIL.Image.Image or numpy.ndarray
        Pictures, such as those of `imagery_dask.composite_overlay`; an array has axes x, y and dtype uint8.
    direction : {"horizontal", "vertical"}
        In a row from the left, aligned at the top, or in a column from the top, aligned at the left.
    spacing : int
        Pixels between two pictures.

    Returns
    -------
    PIL.Image.Image
        An RGB picture. Transparent pixels have their own color, as in imageryclient.

    Raises
    ------
    ValueError
        There is no picture, or the direction is unknown.
    """
    choice("direction", direction, ("horizontal", "vertical"))
    pictures = [_picture(image) for image in images]
    if not pictures:
        raise ValueError("There is no picture to stack; give at least one.")
    across = direction == "horizontal"
    sizes = [picture.width if across else picture.height for picture in pictures]
    length = sum(sizes) + spacing * (len(pictures) - 1)
    breadth = max(picture.height if across else picture.width for picture in pictures)
    stacked = Image.new("RGB", (length, breadth) if across else (breadth, length), WHITE)
    start = 0
    for picture, size in zip(pictures, sizes, strict=True):
        stacked.paste(picture, (start, 0) if across else (0, start))
        start += size + spacing
    return stacked


def _picture(image: Any) -> Image.Image:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image).T)
    return image.convert("RGBA")  # type: ignore[no-any-return]
