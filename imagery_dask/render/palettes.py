"""Colors of objects: one for each id, evenly spaced hues, a seaborn palette by name, or RGBA that a caller gives."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.validate import root_id as checked_id

__all__ = [
    "DEFAULT_H",
    "DEFAULT_L",
    "DEFAULT_PALETTE",
    "DEFAULT_S",
    "Color",
    "color_distance",
    "color_of",
    "colors_of",
    "discrete_colors",
    "mask_color",
    "mask_colors",
    "other_colors",
]

# The defaults of imageryclient.
DEFAULT_PALETTE = "husl"
DEFAULT_H = 0.01
DEFAULT_L = 0.65
DEFAULT_S = 1.0

# Hues that are tried where the color of an id is taken, of three kinds of lightness each.
OTHER_HUES = 12

Color = tuple[float, float, float]

# CIE XYZ (D65) to linear sRGB, IEC 61966-2-1.
SRGB = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
# u', v' of the white point D65, and the slope of lightness near black (CIE 15).
WHITE_U, WHITE_V = 0.19784, 0.46834
KAPPA, EPSILON = 903.3, 0.008856


def discrete_colors(count: int, palette: object, h: float, l: float, s: float) -> list[Color]:  # noqa: E741
    """Return `count` colors that are easy to tell apart.

    Parameters
    ----------
    count : int
        Number of colors.
    palette : str or sequence
        ``"husl"`` (perceptually even hues), ``"hls"``, or anything else that seaborn's ``color_palette`` takes, for
        which seaborn must be installed.
    h, l, s : float
        First hue, lightness and saturation of ``"husl"`` and ``"hls"``; `l` and `s` are 0 to 1.

    Returns
    -------
    list of tuple of 3 float
        Red, green and blue, 0 to 1; the numbers of seaborn's ``husl_palette`` and ``hls_palette``.

    Raises
    ------
    ValueError
        The palette is unknown, or `h`, `l` or `s` is not a number in range.
    ImportError
        The palette needs seaborn, which is not installed.
    """
    if not (isinstance(palette, str) and palette in ("husl", "hls")):
        return _seaborn_palette(count, palette)
    for name, value, low, high in (("h", h, -math.inf, math.inf), ("l", l, 0, 1), ("s", s, 0, 1)):
        if not isinstance(value, (int, float, np.number)) or not low <= value <= high or not math.isfinite(value):
            raise ValueError(f"{name} is a number{'' if name == 'h' else ' from 0 to 1'}; got {value!r}.")
    hues = [float(hue) for hue in (np.linspace(0, 1, count + 1)[:-1] + h) % 1]
    if palette == "hls":
        return [colorsys.hls_to_rgb(hue, float(l), float(s)) for hue in hues]
    # 359 degrees and 99 percent, as in seaborn.
    return [_husl_to_rgb(hue * 359, float(s) * 99, float(l) * 99) for hue in hues]


def colors_of(ids: Array) -> NDArray[np.uint8]:
    """Return a bright color for each id, the same in every picture, process and machine.

    Parameters
    ----------
    ids : numpy.ndarray of integers, any shape
        Ids; they are hashed as integers.

    Returns
    -------
    numpy.ndarray of uint8, shape of `ids` and 3
        Red, green and blue. `clashes.colors_apart` keeps objects that touch in one picture apart.
    """
    # A multiplicative hash (Knuth, TAOCP 6.4) spreads neighbouring ids over the hues.
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hue = (mixed >> np.uint64(40)).astype(np.float64) / 2**24
    return _bytes_of(hue, 0.8, 1.0)


def color_of(root_id: int) -> tuple[int, int, int]:
    """Return the color of an id, as `colors_of`: red, green and blue from 0 to 255.

    Examples
    --------
    >>> color_of(864691135000000001)
    (255, 50, 53)
    """
    r, g, b = colors_of(np.array(checked_id("root_id", root_id), dtype=np.uint64)).tolist()
    return (r, g, b)


def other_colors(root_id: int) -> NDArray[np.uint8]:
    """Return the colors that an id may have instead of its own, best first: shape (n, 3).

    Other hues as bright as its own come first, then pale and dark ones.
    """
    # Steps of the golden ratio, which fall into the largest gap between the hues before.
    own = ((root_id * 0x9E3779B97F4A7C15) % 2**64) / 2**64
    hue = np.asarray((own + 0.6180339887498949 * np.arange(1, OTHER_HUES + 1)) % 1, dtype=np.float64)
    kinds = [_bytes_of(hue, saturation, value) for saturation, value in ((0.8, 1.0), (0.35, 1.0), (0.9, 0.6))]
    return np.concatenate(kinds)


def color_distance(one: Array, other: Array) -> NDArray[np.float64]:
    """Return how different colors look, 0 to 765: a weighted distance of sRGB ("redmean", compuphase.com/cmetric.htm).

    Parameters
    ----------
    one, other : numpy.ndarray of uint8, shape (..., 3)
        Red, green and blue.
    """
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    red, difference = (a[..., 0] + b[..., 0]) / 2, (a - b) ** 2
    weights = np.stack([2 + red / 256, np.full_like(red, 4.0), 2 + (255 - red) / 256], axis=-1)
    return np.asarray(np.sqrt((weights * difference).sum(axis=-1)))


def mask_color(color: Sequence[int] | None) -> tuple[int, int, int, int]:
    """Return the RGBA of a mask: white by default, opaque if no alpha is given."""
    if color is None:
        return (255, 255, 255, 255)
    try:
        values = [int(value) for value in color]
    except (TypeError, ValueError):
        values = []
    if len(values) not in (3, 4) or not all(0 <= value <= 255 for value in values):
        raise ValueError(f"A mask's color is 3 (RGB) or 4 (RGBA) numbers from 0 to 255; got {color!r}.")
    r, g, b, a = (*values, 255)[:4]
    return (r, g, b, a)


def mask_colors(colors: Mapping[int, Sequence[int]] | None) -> dict[int, tuple[int, int, int]]:
    """Return the RGB of masks by id; raise ValueError for what is not a mapping to colors."""
    if not isinstance(colors or {}, Mapping):
        raise ValueError(f"colors is a mapping of ids to colors, such as {{5: (255, 0, 0)}}; got {colors!r}.")
    return {root: mask_color(color)[:3] for root, color in (colors or {}).items()}


def _bytes_of(hue: NDArray[np.float64], saturation: float, value: float) -> NDArray[np.uint8]:
    """Convert HSV, each 0 to 1, to sRGB bytes."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue[..., np.newaxis]) % 6
    return np.asarray(255 * value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)), dtype=np.uint8)


def _seaborn_palette(count: int, palette: object) -> list[Color]:
    try:
        # Imported here because seaborn is not a dependency.
        seaborn = import_module("seaborn")
    except ImportError as error:
        raise ImportError(
            f"palette {palette!r} needs seaborn, which is not installed (pip install seaborn). 'husl', 'hls' and "
            "colors of your own do not need it."
        ) from error
    return [(float(r), float(g), float(b)) for r, g, b in seaborn.color_palette(palette=palette, n_colors=count)]


def _husl_to_rgb(hue: float, saturation: float, lightness: float) -> Color:
    """Convert HUSL (hsluv.org, revision 2) to sRGB: CIE LCh(uv) whose chroma is a fraction of what sRGB can show."""
    if lightness < 1e-8:
        return (0.0, 0.0, 0.0)
    angle = math.radians(hue)
    chroma = _largest_chroma(lightness, angle) / 100 * saturation
    u = math.cos(angle) * chroma / (13 * lightness) + WHITE_U
    v = math.sin(angle) * chroma / (13 * lightness) + WHITE_V
    # CIE L*u*v* to XYZ.
    root = (lightness + 16) / 116
    y = root**3 if root**3 > EPSILON else (116 * root - 16) / KAPPA
    x = -9 * y * u / ((u - 4) * v - u * v)
    z = (9 * y - 15 * v * y - v * x) / (3 * v)
    r, g, b = (_gamma(row[0] * x + row[1] * y + row[2] * z) for row in SRGB)
    return (r, g, b)


def _largest_chroma(lightness: float, angle: float) -> float:
    """Return the largest chroma of this lightness and hue in sRGB: where the nearest of its six faces is reached."""
    cubed = (lightness + 16) ** 3 / 1560896  # 116**3
    y = cubed if cubed > EPSILON else lightness / KAPPA
    sin, cos = math.sin(angle), math.cos(angle)
    nearest = math.inf
    for m1, m2, m3 in SRGB:
        top = (0.99915 * m1 + 1.05122 * m2 + 1.14460 * m3) * y
        bottom = ((0.86330 * m3 - 0.17266 * m2) * sin + (0.12949 * m3 - 0.38848 * m1) * cos) * y
        for face in (0.0, 1.0):
            chroma = lightness * (top - 1.05122 * face) / (bottom + 0.17266 * sin * face)
            if 0 < chroma < nearest:
                nearest = chroma
    return nearest


def _gamma(linear: float) -> float:
    """Apply the transfer function of sRGB, IEC 61966-2-1, clipped to 0..1."""
    value = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return min(max(value, 0.0), 1.0)
