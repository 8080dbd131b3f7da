"""Figures of planes of voxels: grey imagery, colored objects, a scale bar, and axes in nm.

Begin at `show_planes`. Imported when a figure is drawn, because it needs matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagery_dask.geometry.grid import AXES, VoxelGrid
from imagery_dask.render.clashes import colors_apart
from imagery_dask.render.overlays import overlay_page
from imagery_dask.render.pages import Window, contrast, imagery_page
from imagery_dask.render.palettes import mask_colors
from imagery_dask.render.planes import Plane, cut_plane
from imagery_dask.validate import axis as checked_axis
from imagery_dask.validate import number, whole_number

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ImportError as error:
    raise ImportError("Figures need matplotlib: pip install 'imagery_dask[notebooks]'") from error

__all__ = ["Look", "Picture", "show_orthoviews", "show_planes"]

FILL, LINE = 0.3, 1.0
LEGEND_MOST = 8
# Sizes in inches: of one panel, of each of several, of a legend beside them.
INCHES, SMALL, LEGEND_INCHES = 6.0, 2.4, 1.9
DPI = 110
# Where a legend is.
BESIDE: dict[str, Any] = {"bbox_to_anchor": (1.01, 1), "loc": "upper left", "borderaxespad": 0}
# Part of a panel's width that a scale bar has at most.
BAR_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Look:
    """How a figure is drawn.

    Parameters
    ----------
    outline : bool
        Draw outlines of objects rather than fill them.
    alpha : float, optional
        Opacity of the colors, 0 to 1. By default 0.3 for filled objects, 1 for outlines and without imagery.
    width : int
        Width of outlines in voxels of the picture.
    window : tuple of 2 float, optional
        Voxel values that are black and white. By default 0 and 255 for 8-bit imagery, and for other imagery the values
        that leave out the darkest and the brightest 0.5% of the voxels shown.
    colors : mapping of int to 3 or 4 int, optional
        Red, green and blue, 0 to 255, by id. Other ids have the colors of `clashes.colors_apart`.
    legend : bool, optional
        List the ids and their colors. By default if there are at most eight.
    scale_bar : bool
        Draw a scale bar.
    """

    outline: bool = False
    alpha: float | None = None
    width: int = 2
    window: tuple[float, float] | None = None
    colors: Mapping[int, Sequence[int]] | None = None
    legend: bool | None = None
    scale_bar: bool = True

    def __post_init__(self) -> None:
        number("alpha", self.opacity, 0, 1)
        whole_number("width", self.width)
        if self.window is not None:
            try:
                low, high = self.window
                Window(low, high)
            except (TypeError, ValueError):
                raise ValueError(f"window is two numbers, black below white; got {self.window!r}.") from None
        mask_colors(self.colors)

    @property
    def opacity(self) -> float:
        """Opacity of the colors."""
        return (LINE if self.outline else FILL) if self.alpha is None else self.alpha

    def lists(self, objects: int) -> bool:
        """Return True if a picture of so many objects has a legend."""
        return objects > 0 and (objects <= LEGEND_MOST if self.legend is None else self.legend)


class Picture(Figure):
    """A figure that Jupyter shows once, where a cell ends with it; ``savefig`` writes it to a file."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=DPI, bbox_inches="tight")
        return content.getvalue()


def show_planes(
    image: Any,
    labels: Any,
    grid: VoxelGrid,
    *,
    axis: int | str = 2,
    planes: Sequence[int] | None = None,
    look: Look | None = None,
    voxel_nm: Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Picture | None:
    """Draw planes of a volume upright: y goes down where it is shown, and x to the right.

    Parameters
    ----------
    image : array or None
        Imagery, numpy or dask, with axes x, y, z and optionally channels. Only the planes shown are computed. Three
        channels are red, green and blue; of other numbers of channels, the first is shown.
    labels : array of integers or None
        Ids in the shape of the image; 0 is no object.
    grid : VoxelGrid
        Where the voxels of both arrays are.
    axis : {0, 1, 2, "x", "y", "z"}
        Axis along which the volume is cut.
    planes : sequence of int, optional
        Planes to draw, as indices into the arrays. By default the middle one.
    look : Look, optional
        How to draw.
    voxel_nm : sequence of 3 float, optional
        Resolution of the voxel numbers in titles. By default the grid's.
    ax : matplotlib.axes.Axes, optional
        Where to draw one plane.

    Returns
    -------
    Picture or None
        The figure, a contact sheet if there are several planes; None with `ax`.

    Raises
    ------
    ValueError, TypeError
        An argument cannot be drawn.
    """
    across = checked_axis("axis", axis, letters=True)
    look = Look() if look is None else look
    chosen = [grid.shape[across] // 2] if planes is None else [int(plane) for plane in planes]
    if not chosen or (ax is not None and len(chosen) > 1):
        raise ValueError(f"{len(chosen)} planes cannot be drawn{' into one ax; leave out ax' if chosen else ''}.")
    cut = [cut_plane(image, labels, grid, across, at) for at in chosen]
    nm = grid.resolution_nm if voxel_nm is None else voxel_nm
    colors, window = _colors(cut, look), _window(cut, look)
    if ax is not None:
        _draw(ax, cut[0], look, colors, window)
        ax.set_title(cut[0].title(nm), fontsize=10)
        _legend(ax, colors, look, **BESIDE)
        return None
    single = len(cut) == 1
    columns = math.ceil(math.sqrt(len(cut)))
    rows = math.ceil(len(cut) / columns)
    left, right, bottom, top = cut[0].extent
    side = INCHES if single else SMALL
    tall = side * min(max((bottom - top) / (right - left), 0.2), 3.0)
    beside = LEGEND_INCHES if look.lists(len(colors)) else 0.0
    figure = Picture(figsize=(side * columns + beside, (tall + 0.3) * rows), dpi=DPI, layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (panel, plane) in enumerate(zip(panels, cut, strict=False)):
        _draw(panel, plane, look, colors, window, axes=single, scale_bar=place == 0)
        panel.set_title(plane.title(nm), fontsize=10 if single else 8)
    for panel in panels[len(cut) :]:
        panel.set_axis_off()
    if single:
        _legend(panels[0], colors, look, **BESIDE)
    else:  # not of one panel, which would be narrower than the others
        _legend(figure, colors, look, loc="outside right upper")
    return figure


def show_orthoviews(
    image: Any,
    labels: Any,
    grid: VoxelGrid,
    at: Sequence[int],
    *,
    look: Look | None = None,
    voxel_nm: Sequence[float] | None = None,
) -> Picture:
    """Draw the three planes through a voxel: xy, at its right zy, below it xz, all at one scale in nm.

    Parameters
    ----------
    image, labels, grid, look, voxel_nm
        As of `show_planes`.
    at : sequence of 3 int
        The voxel, as indices into the arrays.

    Returns
    -------
    Picture
        The figure.
    """
    look = Look() if look is None else look
    cut = [cut_plane(image, labels, grid, across, int(at[across])) for across in (2, 0, 1)]
    colors, window = _colors(cut, look), _window(cut, look)
    x, y, z = grid.shape * grid.resolution_nm
    figure = Picture(figsize=(INCHES * 1.3, INCHES * 1.3 * (y + z) / (x + z)), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 2, width_ratios=(x, z), height_ratios=(y, z))
    centre = [(grid.start[axis] + at[axis] + 0.5) * grid.resolution_nm[axis] for axis in range(3)]
    nm = grid.resolution_nm if voxel_nm is None else voxel_nm
    for panel, plane in zip((panels[0, 0], panels[0, 1], panels[1, 0]), cut, strict=True):
        _draw(panel, plane, look, colors, window, scale_bar=plane.across == 2)
        right, down = plane.axes
        panel.axvline(centre[right], color="yellow", linewidth=0.6, alpha=0.7)
        panel.axhline(centre[down], color="yellow", linewidth=0.6, alpha=0.7)
        panel.set_title(plane.title(nm), fontsize=9)
    panels[1, 1].set_axis_off()
    _legend(panels[1, 1], colors, look, loc="upper left", borderaxespad=0)
    return figure


def _colors(planes: Sequence[Plane], look: Look) -> dict[int, tuple[int, int, int]]:
    labels = [plane.labels for plane in planes if plane.labels is not None]
    colors = colors_apart(labels)
    given = {root: color for root, color in mask_colors(look.colors).items() if root in colors}
    return colors | given


def _window(planes: Sequence[Plane], look: Look) -> Window | None:
    return contrast([plane.image for plane in planes if plane.image is not None], look.window)


def _draw(
    panel: Axes, plane: Plane, look: Look, colors: Mapping[int, Sequence[int]], window: Window | None, *,
    axes: bool = True, scale_bar: bool = True,
) -> None:  # fmt: skip
    panel.set_facecolor("black")
    if plane.image is not None:
        page = imagery_page(plane.image, window)
        panel.imshow(page, cmap="gray", vmin=-0.5, vmax=255.5, extent=plane.extent)
    if plane.labels is not None:
        labels = plane.square_labels if look.outline else plane.labels
        style: Any = {"outline": look.outline, "merge_outline": False, "width": look.width, "side": "in"}
        alpha = LINE if look.alpha is None and plane.image is None else look.opacity
        above = overlay_page(labels, colors=colors, alpha=alpha, **style)
        panel.imshow(above, extent=plane.extent)
    panel.set_aspect("equal")
    panel.set_xlim(*plane.extent[:2])
    panel.set_ylim(*plane.extent[2:])
    for along, axis in zip((panel.xaxis, panel.yaxis), plane.axes, strict=True):
        along.set_major_locator(MaxNLocator(4 if axes else 1, integer=True))
        along.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        along.set_tick_params(labelsize=8)
        along.set_visible(axes)
        along.set_label_text(f"{AXES[axis]} (nm)")
    if scale_bar and look.scale_bar:
        _scale_bar(panel, plane.extent)


def _scale_bar(panel: Axes, extent: tuple[float, float, float, float]) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten nm at the lower right."""
    left, right, bottom, top = extent
    power = 10.0 ** math.floor(math.log10(BAR_SHARE * (right - left)))
    length = max(step * power for step in (1, 2, 5) if step * power <= BAR_SHARE * (right - left))
    edge, height = 0.03 * (right - left), 0.012 * (right - left)
    text = f"{length:g} nm" if length < 1000 else f"{length / 1000:g} µm"
    panel.add_patch(
        Rectangle((right - edge - length, bottom - edge - height), length, height, facecolor="white", edgecolor="black",
                  linewidth=0.6)
    )  # fmt: skip
    panel.text(
        right - edge, bottom - edge - 1.8 * height, text, color="white", ha="right", va="bottom",
        fontsize=9, path_effects=[withStroke(linewidth=2, foreground="black")],
    )  # fmt: skip


def _legend(where: Axes | Figure, colors: Mapping[int, Sequence[int]], look: Look, **place: Any) -> None:
    if look.lists(len(colors)):
        shades = {root: (color[0] / 255, color[1] / 255, color[2] / 255) for root, color in colors.items()}
        patches = [Patch(color=shade, label=str(root)) for root, shade in shades.items()]
        where.legend(handles=patches, fontsize=8, frameon=False, **place)
