"""A widget that shows one plane of a volume at a time, with a slider, and the ids under a click.

Python sends pictures of planes; `slice_browser.js` shows them. Imported when a browser is opened, because it needs
anywidget.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from imagery_dask.geometry.grid import AXES, VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.render.clashes import colors_apart
from imagery_dask.render.overlays import overlay_page
from imagery_dask.render.pages import Window, contrast, encode_page, imagery_page
from imagery_dask.render.palettes import mask_colors
from imagery_dask.render.planes import cut_plane, plane_axes, voxel_at
from imagery_dask.urls import redacted

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError("Browsing needs anywidget: pip install 'imagery_dask[notebooks]'") from error

__all__ = ["PlaneDrawer", "ReadAhead", "SliceBrowser"]

Frame = dict[str, Any]
IdsAt = Callable[[Vec3[int]], Mapping[str, int]]

# Pictures of planes that a browser keeps.
KEPT = 16


class SliceBrowser(anywidget.AnyWidget):
    """A widget with the planes of a volume.

    Parameters
    ----------
    drawer : PlaneDrawer
        Draws planes.
    ids_at : callable
        Returns the ids at a voxel, from the start of the grid, by name, such as ``{"root id": 864691135000000001}``.
    at : int
        Plane that is shown first.
    voxel_nm : sequence of 3 float
        Resolution of the voxels that are named.
    opacity : float
        Opacity of the colors, 0 to 1.
    ahead : int
        Planes to read in advance, in the direction of travel; 0 reads none.

    Attributes
    ----------
    index : int
        Plane shown, from the start of the volume.
    opacity : float
        Opacity of the colors.
    picked : dict
        What was clicked last: ``"voxel"`` and ``"nm"``, x, y, z, and ids by name, as text. See `ids` and `voxel`.
    """

    _esm = Path(__file__).parent / "slice_browser.js"
    _css = Path(__file__).parent / "slice_browser.css"
    index = traitlets.Int(0).tag(sync=True)
    opacity = traitlets.Float(0.4).tag(sync=True)
    # What does not change: axis, number of planes, size of the picture in nm, and in voxels.
    volume = traitlets.Dict().tag(sync=True)
    # The plane shown: its index, title, pictures as PNG, or an error.
    frame = traitlets.Dict().tag(sync=True)
    picked = traitlets.Dict().tag(sync=True)

    def __init__(
        self, drawer: PlaneDrawer, ids_at: IdsAt, *, at: int, voxel_nm: Sequence[float], opacity: float, ahead: int
    ) -> None:
        grid, across = drawer.grid, drawer.across
        right, down = plane_axes(across)
        size_nm = grid.shape * grid.resolution_nm
        self._drawer, self._ids_at, self._voxel_nm = drawer, ids_at, tuple(voxel_nm)
        self._frames = ReadAhead(drawer.draw, grid.shape[across], ahead)
        super().__init__(
            index=at, opacity=opacity,
            volume={
                "axis": AXES[across], "planes": grid.shape[across], "voxels": [grid.shape[right], grid.shape[down]],
                "size_nm": [size_nm[right], size_nm[down]],
            },
        )  # fmt: skip
        self.observe(self._show, names="index")
        self.on_msg(self._clicked)
        self._show()

    @property
    def voxel(self) -> tuple[int, int, int] | None:
        """Voxel x, y, z that was clicked last, in the resolution in which bounds are given; None before a click."""
        return tuple(self.picked["voxel"]) if self.picked else None

    @property
    def ids(self) -> dict[str, int]:
        """Ids at the voxel that was clicked last, by name."""
        return {name: int(text) for name, text in self.picked.get("ids", {}).items()}

    def close(self) -> None:
        """Close the widget, and read no more in advance."""
        self._frames.close()
        super().close()

    def _show(self, change: Any = None) -> None:
        del change
        at = min(max(self.index, 0), self._drawer.grid.shape[self._drawer.across] - 1)
        try:
            frame = self._frames.get(at)
        except Exception as error:  # shown where the picture would be; the slider goes on working
            frame = {"title": "", "error": redacted(str(error) or type(error).__name__)}
        self.frame = {"index": at, **frame}

    def _clicked(self, widget: object, content: Any, buffers: object) -> None:
        """Answer a click: ``{"column": ..., "row": ..., "index": ...}``, voxels of the plane that was clicked."""
        del widget, buffers
        grid, across = self._drawer.grid, self._drawer.across
        right, down = plane_axes(across)
        at = dict(zip((right, down, across), (content[name] for name in ("column", "row", "index")), strict=True))
        index = Vec3.of(min(max(int(at[axis]), 0), grid.shape[axis] - 1) for axis in range(3))
        nm = [(grid.start[axis] + index[axis] + 0.5) * grid.resolution_nm[axis] for axis in range(3)]
        picked: dict[str, Any] = {
            "index": index[across], "column": index[right], "row": index[down], "nm": nm,
            "voxel": [voxel_at(at_nm, own_nm) for at_nm, own_nm in zip(nm, self._voxel_nm, strict=True)],
        }  # fmt: skip
        try:
            # As text: numbers of JavaScript are exact below 2**53.
            picked["ids"] = {name: str(value) for name, value in self._ids_at(index).items()}
        except Exception as error:
            picked["error"] = redacted(str(error) or type(error).__name__)
        self.picked = picked


class PlaneDrawer:
    """Draws planes of a volume as PNG.

    Parameters
    ----------
    image, labels : array or None
        As of `planes.cut_plane`.
    grid : VoxelGrid
        Where the voxels of both are.
    across : {0, 1, 2}
        Axis along which the volume is cut.
    voxel_nm : sequence of 3 float
        Resolution of the voxel numbers in titles.
    outline : bool
        Draw outlines of objects rather than fill them.
    window : tuple of 2 float, optional
        Voxel values that are black and white. By default as of `pages.contrast` for the first plane.
    colors : mapping of int to 3 int, optional
        Red, green and blue by id. Other ids have the colors of `clashes.colors_apart`, and keep them in other planes.

    Attributes
    ----------
    colors : dict of int to tuple of 3 int
        Colors of the objects of all planes that were drawn.
    """

    def __init__(
        self,
        image: Any,
        labels: Any,
        grid: VoxelGrid,
        across: int,
        *,
        voxel_nm: Sequence[float],
        outline: bool = False,
        window: tuple[float, float] | None = None,
        colors: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.grid, self.across = grid, across
        self._cut = partial(cut_plane, image, labels, grid, across)
        self._voxel_nm, self._outline, self._given = voxel_nm, outline, window
        self.colors = mask_colors(colors)
        # Planes are drawn by two threads.
        self._lock = Lock()
        self._window: list[Window | None] = []

    def draw(self, at: int) -> Frame:
        """Return the title and the pictures of a plane; colors are opaque."""
        plane = self._cut(at)
        frame: Frame = {"title": plane.title(self._voxel_nm)}
        if plane.image is not None:
            if not self._window:
                self._window.append(contrast([plane.image], self._given))
            frame["image"] = encode_page(imagery_page(plane.image, self._window[0]))
        if plane.labels is not None:
            labels = plane.square_labels if self._outline else plane.labels
            style: Any = {"outline": self._outline, "merge_outline": False, "width": 2, "side": "in"}
            with self._lock:
                self.colors |= colors_apart([plane.labels], settled=self.colors)
            frame["labels"] = encode_page(overlay_page(labels, colors=self.colors, alpha=1, **style), flat=True)
        return frame


class ReadAhead:
    """Makes frames, and the next ones in the direction of travel in one background thread.

    Parameters
    ----------
    draw : callable
        Returns the frame of an index.
    count : int
        Number of frames.
    ahead : int
        Frames to make in advance; 0 for none.
    """

    def __init__(self, draw: Callable[[int], Frame], count: int, ahead: int) -> None:
        self._draw, self._count, self._ahead, self._last = draw, count, ahead, 0
        self._kept: OrderedDict[int, Frame] = OrderedDict()
        self._coming: dict[int, Future[Frame]] = {}
        self._thread = ThreadPoolExecutor(1, "imagery-dask-read-ahead")

    def get(self, at: int) -> Frame:
        """Return a frame: one that is kept or being made, or a new one. Frames that nobody waits for are not begun."""
        for index in [index for index, future in self._coming.items() if index != at and future.cancel()]:
            del self._coming[index]
        coming = self._coming.pop(at, None)
        if at in self._kept:
            frame = self._kept[at]
        elif coming is not None and not coming.cancel():
            frame = coming.result()
        else:
            frame = self._draw(at)
        self._kept[at] = frame
        self._kept.move_to_end(at)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        self._read_on(at)
        return frame

    def close(self) -> None:
        """Make no more frames."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._ahead = 0

    def _read_on(self, at: int) -> None:
        step = 1 if at >= self._last else -1
        wanted = [index for index in range(at + step, at + step * (self._ahead + 1), step) if 0 <= index < self._count]
        # Those that were passed by are let go.
        self._coming = {index: future for index, future in self._coming.items() if index in wanted}
        for index in wanted:
            if index not in self._kept and index not in self._coming:
                self._coming[index] = self._thread.submit(self._draw, index)
        self._last = at
