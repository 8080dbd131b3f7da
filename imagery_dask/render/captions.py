"""Pictures side by side with captions, legends and a scale bar, drawn by Pillow: they need no matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Panel", "side_by_side"]

GAP, LINE, SWATCH = 10, 22, 12
INK, PAPER = "black", "white"


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture with its texts.

    Parameters
    ----------
    page : numpy.ndarray of uint8, shape (y, x, 3)
        The picture.
    caption : str
        Text above it.
    legend : list of tuple
        Colors (red, green, blue) and the text of each, below it.
    """

    page: NDArray[np.uint8]
    caption: str
    legend: Sequence[tuple[tuple[int, int, int], str]] = field(default=())


def side_by_side(panels: Sequence[Panel], note: str, nm_per_pixel: float) -> NDArray[np.uint8]:
    """Draw pictures of one height side by side, with their captions and legends, a scale bar and a note below.

    Parameters
    ----------
    panels : sequence of Panel
        The pictures.
    note : str
        Text at the bottom.
    nm_per_pixel : float
        Size of a pixel; the scale bar is 1000 nm long.

    Returns
    -------
    numpy.ndarray of uint8, shape (y, x, 3)
        The picture.
    """
    font = ImageFont.load_default(13)
    height = max(panel.page.shape[0] for panel in panels)
    legend = max(len(panel.legend) for panel in panels)
    width = sum(panel.page.shape[1] + GAP for panel in panels) + GAP
    sheet = Image.new("RGB", (width, LINE + 2 * GAP + height + LINE * (legend + 1)), PAPER)
    draw, left = ImageDraw.Draw(sheet), GAP
    for panel in panels:
        draw.text((left, GAP // 2), panel.caption, fill=INK, font=font)
        sheet.paste(Image.fromarray(panel.page), (left, LINE + GAP // 2))
        for row, (color, text) in enumerate(panel.legend):
            top = LINE + GAP + height + LINE * row
            draw.rectangle((left, top + 3, left + SWATCH, top + 3 + SWATCH), fill=tuple(color))
            draw.text((left + SWATCH + 6, top), text, fill=INK, font=font)
        left += panel.page.shape[1] + GAP
    draw.text((GAP, LINE + GAP + height + LINE * legend), note, fill=INK, font=font)
    # Over the last picture, at its lower right.
    right, bottom, length = left - 2 * GAP, LINE - GAP // 2 + height, round(1000 / nm_per_pixel)
    draw.rectangle((right - length, bottom - 5, right, bottom), fill=PAPER, outline=INK)
    draw.text((right, bottom - 8), "1000 nm", fill=PAPER, font=font, anchor="rb", stroke_width=2, stroke_fill=INK)
    return np.asarray(sheet)
