"""Draw filled objects and outlines, and composite pages. Pure functions on arrays of pixels.

A page has rows along its first axis. A canvas is a page of RGBA pixels with the four bytes in one uint32, so that one
assignment sets a color; 0 is a pixel on which nothing has been drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

__all__ = ["Style", "draw_masks", "draw_numbers", "grown", "outlined", "over", "packed", "unpacked"]

Mask = NDArray[np.bool_]
Canvas = NDArray[np.uint32]
Rgba = NDArray[np.uint8]

# Side of the squares, in pixels, in which objects are outlined: a square fits into the processor's cache, and a long
# thin object costs only the squares that it crosses, not its whole bounding box.
CELL = 512


@dataclass(frozen=True)
class Style:
    """How objects are drawn.

    Attributes
    ----------
    alpha : int
        Opacity, 0 to 255.
    outline : bool
        Draw outlines rather than filled objects.
    merge_outline : bool
        Outline the union of all objects, so that no line is drawn where they touch.
    overlap : bool
        Draw later objects over earlier ones.
    width : int
        Width of outlines in pixels, counted along rows and columns.
    inside : bool
        Draw outlines inside the objects rather than around them.
    """

    alpha: int
    outline: bool = False
    merge_outline: bool = True
    overlap: bool = True
    width: int = 10
    inside: bool = False


def grown(mask: Mask, width: int) -> Mask:
    """Return the pixels at most `width` steps along rows and columns from a mask.

    The result is that of ``ndimage.binary_dilation(mask, iterations=width)``, in fewer, longer steps: five for a width
    of 10.
    """
    out, reach = mask.copy(), 0
    while reach < width:
        # A diamond of radius r and its copies moved by s in four directions make one of radius r + s as long as
        # s <= (r + 1) / 2. The copy used for any pixel then lies between it and the mask, so that none is lost at
        # the edges of the page.
        step = min(-(-(reach + 1) // 2), width - reach)
        before = out.copy()
        out[step:] |= before[:-step]
        out[:-step] |= before[step:]
        out[:, step:] |= before[:, :-step]
        out[:, :-step] |= before[:, step:]
        reach += step
    return out


def outlined(mask: Mask, style: Style) -> Mask:
    """Return the outline of a mask. Edges of the page are not outlined: the object may continue beyond them."""
    if style.inside:
        return mask & grown(~mask, style.width)
    return grown(mask, style.width) & ~mask


def packed(colors: NDArray[np.uint8], alpha: int) -> Canvas:
    """Return colors of shape (n, 3) as pixels of a canvas, shape (n,)."""
    rgba = np.full((len(colors), 4), alpha, dtype=np.uint8)
    rgba[:, :3] = colors
    return rgba.view(np.uint32)[:, 0]


def unpacked(canvas: Canvas) -> Rgba:
    """Return the bytes of a canvas, shape (rows, columns, 4)."""
    return canvas.view(np.uint8).reshape(*canvas.shape, 4)


def over(below: Rgba, above: Rgba) -> Rgba:
    """Return one page over another, shape (rows, columns, 4), with Pillow's rounding."""
    return np.asarray(Image.alpha_composite(Image.fromarray(below), Image.fromarray(above)))


def draw_masks(masks: Sequence[Mask], colors: Canvas, style: Style, shape: tuple[int, int]) -> Canvas:
    """Draw masks, the first one first.

    Parameters
    ----------
    masks : sequence of numpy.ndarray of bool, shape `shape`
        They may overlap.
    colors : numpy.ndarray of uint32, shape (number of masks,)
        From `packed`.
    style : Style
        How to draw.
    shape : tuple of 2 int
        Rows and columns.

    Returns
    -------
    numpy.ndarray of uint32, shape `shape`
        The canvas.
    """
    canvas = np.zeros(shape, dtype=np.uint32)
    for mask, color in zip(masks, colors, strict=True):
        _lay(canvas, outlined(mask, style) if style.outline else mask, color, style)
    if style.outline and style.merge_outline and len(masks):
        _keep(canvas, outlined(np.logical_or.reduce(masks), style))
    return canvas


def draw_numbers(
    numbers: NDArray[np.integer], order: Sequence[int] | NDArray[np.integer], colors: Canvas, style: Style
) -> Canvas:
    """Draw the objects of a page of labels: the picture that `draw_masks` gives, without making a mask for each.

    Parameters
    ----------
    numbers : numpy.ndarray of integers, shape (rows, columns)
        Number of the object at each pixel, from 1 to n; 0 outside objects.
    order : sequence of int, shape (n,)
        Numbers in the order of drawing.
    colors : numpy.ndarray of uint32, shape (n + 1,)
        Color of each number, from `packed`; the color of 0 is not used.
    style : Style
        How to draw.

    Returns
    -------
    numpy.ndarray of uint32, shape (rows, columns)
        The canvas.
    """
    # Copy to C order now: the numbers are smaller than the four-byte pixels made of them.
    numbers = np.ascontiguousarray(numbers)
    table = colors.copy()
    table[0] = 0
    if style.outline and not style.inside:
        canvas = _outer_outlines(numbers, order, table, style)
    elif style.alpha == 0:
        canvas = np.zeros(numbers.shape, dtype=np.uint32)
    else:
        canvas = table[numbers]
        if style.outline:
            canvas[~grown(_borders(numbers), style.width - 1)] = 0
    if style.outline and style.merge_outline:
        _keep(canvas, outlined(numbers != 0, style))
    return canvas


def _borders(numbers: NDArray[np.integer]) -> Mask:
    """Return pixels that touch another number; a pixel w steps from another number is w - 1 steps from these."""
    out = np.zeros(numbers.shape, dtype=bool)
    for axis in (0, 1):
        low, high = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        differs = numbers[low] != numbers[high]
        out[low] |= differs
        out[high] |= differs
    return out


def _outer_outlines(
    numbers: NDArray[np.integer], order: Sequence[int] | NDArray[np.integer], colors: Canvas, style: Style
) -> Canvas:
    """Draw outlines around objects. They cover other objects and each other, so that the order matters."""
    rank = np.empty(len(colors), dtype=np.int64)
    rank[np.asarray(order, dtype=np.int64)] = np.arange(len(order))
    canvas = np.zeros(numbers.shape, dtype=np.uint32)
    for row in range(0, numbers.shape[0], CELL):
        for column in range(0, numbers.shape[1], CELL):
            _draw_cell(canvas, numbers, (row, column), rank, colors, style)
    return canvas


def _draw_cell(
    canvas: Canvas, numbers: NDArray[np.integer], start: tuple[int, int], rank: NDArray[np.int64], colors: Canvas,
    style: Style,
) -> None:  # fmt: skip
    halo = style.width
    near = tuple(slice(max(0, low - halo), low + CELL + halo) for low in start)
    inner = tuple(slice(low - part.start, low - part.start + CELL) for low, part in zip(start, near, strict=True))
    around = np.ascontiguousarray(numbers[near])
    drawn = np.zeros(around.shape, dtype=np.uint32)
    boxes = ndimage.find_objects(around, max_label=len(colors) - 1)
    present = [number for number, box in enumerate(boxes, 1) if box is not None]
    for number in sorted(present, key=rank.__getitem__):
        box = tuple(slice(max(0, part.start - halo), part.stop + halo) for part in boxes[number - 1])
        _lay(drawn[box], outlined(around[box] == number, style), colors[number], style)
    canvas[start[0] : start[0] + CELL, start[1] : start[1] + CELL] = drawn[inner]


def _lay(canvas: Canvas, where: Mask, color: np.uint32, style: Style) -> None:
    """Draw one color on the pixels of a mask, in place."""
    if style.alpha == 0:
        return
    if not style.overlap:
        where = where & (canvas == 0)
    below = canvas[where]
    if below.any():
        above = np.full((1, len(below)), color, dtype=np.uint32)
        canvas[where] = over(unpacked(below[np.newaxis]), unpacked(above)).view(np.uint32).ravel()
    else:
        canvas[where] = color


def _keep(canvas: Canvas, where: Mask) -> None:
    """Make all other pixels transparent, in place. Their colors stay, as in imageryclient."""
    unpacked(canvas)[..., 3][~where] = 0
