"""Pictures of Neuroglancer in a headless Chromium.

The ``neuroglancer`` package serves its own web client, so that nothing is loaded from the internet. The browser is
started with the viewer's address, and the state of the viewer is set from Python. Therefore no web driver is needed,
whose version would have to match the browser's.
"""

from __future__ import annotations

import queue
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import neuroglancer
import numpy as np
from browser import chromium
from neuroglancer import server
from numpy.typing import NDArray

#: Width and height of a panel in pixels; even, so that a panel's centre lies between two pixels.
PANEL = 240
#: Pixels between two panels.
BAR = 9
SIZE = (3 * PANEL + 2 * BAR, PANEL)
#: Blue, which is no grey value and no segment's color.
BACKGROUND = (0, 0, 255)
START_S = 60.0
PICTURE_S = 60.0  # shaders are compiled in software


class Picture(NamedTuple):
    """A picture of the viewer.

    Attributes
    ----------
    pixels
        (row, column, rgb) of `SIZE`.
    voxels
        For each layer the size of the voxels that were drawn, such as ``"x 8nm y 8nm z 40nm"``, which identifies the
        level of a pyramid.
    """

    pixels: NDArray[np.uint8]
    voxels: list[str]

    @property
    def panels(self) -> list[NDArray[np.uint8]]:
        """The panels xy, xz and zy."""
        return [self.pixels[:, start : start + PANEL] for start in range(0, SIZE[0], PANEL + BAR)]


class NoPicture(RuntimeError):
    """Neuroglancer did not draw every requested layer."""


class Screen:
    """A viewer in a browser, made by `screen`, with the panels xy, xz and zy beside each other."""

    def __init__(self, viewer: Any, process: subprocess.Popen[bytes], log: Path) -> None:
        self._viewer = viewer
        self._process = process
        self._log = log
        self._serial = 0
        with viewer.config_state.txn() as config:
            config.show_ui_controls = False
            config.show_panel_borders = False
            config.viewer_size = list(SIZE)

    def picture(
        self, *layers: Any, position_nm: Sequence[float], nm_per_pixel: float, timeout_s: float = PICTURE_S
    ) -> Picture:
        """Show layers and return a picture when every chunk in view is loaded.

        Parameters
        ----------
        layers
            Layers such as `neuroglancer.ImageLayer`, from the lowest to the highest.
        position_nm
            Centre of the panels, x, y, z, relative to the lower edge of voxel 0.
        nm_per_pixel
            Side of a pixel; Neuroglancer chooses the level of a pyramid by it.
        timeout_s
            Longest time to wait. Neuroglancer reports no error for a source that it cannot read.

        Raises
        ------
        NoPicture
            If no picture arrives in time; the message contains the end of the browser's log.
        """
        # New names each time distinguish this picture from a late picture of earlier layers.
        self._serial += 1
        names = [f"picture{self._serial}-layer{n}" for n in range(len(layers))]
        with self._viewer.txn() as state:
            state.layers.clear()
            state.dimensions = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=[1, 1, 1])
            for name, layer in zip(names, layers, strict=True):
                state.layers.append(name=name, layer=layer)
            state.position = list(position_nm)
            state.cross_section_scale = nm_per_pixel
            state.cross_section_background_color = "#{:02x}{:02x}{:02x}".format(*BACKGROUND)
            state.show_axis_lines = state.show_scale_bar = state.show_default_annotations = False
            panels = [neuroglancer.LayerGroupViewer(layers=names, layout=layout) for layout in ("xy", "xz", "yz")]
            state.layout = neuroglancer.row_layout(panels)
        deadline = time.monotonic() + timeout_s
        while True:
            reply = self._reply(deadline - time.monotonic())
            pixels = reply.screenshot.image_pixels
            if [layer.name for layer in reply.viewer_state.layers] == names and pixels.shape[1::-1] == SIZE:
                drawn = reply.screenshot.resolution_metadata.layer_resolution_data
                voxels = {layer.name: layer.resolution for layer in drawn}
                return Picture(pixels[..., :3].copy(), [voxels.get(name, "") for name in names])

    def shown(self, timeout_s: float = PICTURE_S) -> NDArray[np.uint8]:
        """Return a picture (row, column, rgb) of the state of the viewer as it is, with every chunk in view loaded."""
        pixels: NDArray[np.uint8] = self._reply(timeout_s).screenshot.image_pixels[..., :3]
        return pixels.copy()

    def _reply(self, timeout_s: float) -> Any:
        # not viewer.screenshot(), which waits without a limit
        replies: queue.Queue[Any] = queue.Queue()
        self._viewer.async_screenshot(replies.put)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(queue.Empty):
                return replies.get(timeout=0.2)
        raise NoPicture(f"no picture in time; the browser's exit code is {self._process.poll()}\n{self.log()}")

    def log(self) -> str:
        """Return the end of the browser's log, which includes the page's console."""
        return self._log.read_text(errors="replace")[-6000:]


@contextmanager
def screen() -> Iterator[Screen]:
    """Run a viewer in a browser until the ``with`` block ends.

    Raises
    ------
    BrowserUnavailable
        If no browser is installed.
    NoPicture
        If the browser draws nothing.
    """
    with ExitStack() as stack:
        viewer = neuroglancer.Viewer()
        stack.callback(_stop_server)
        running = stack.enter_context(page(viewer, viewer.get_viewer_url()))
        # Fail here and only once, not in each test, if the browser does not start or cannot draw.
        running.picture(position_nm=(0, 0, 0), nm_per_pixel=1, timeout_s=START_S)
        yield running


@contextmanager
def page(viewer: Any, url: str) -> Iterator[Screen]:
    """Run a browser on the page of a viewer until the ``with`` block ends.

    Raises
    ------
    BrowserUnavailable
        If no browser is installed.
    """
    program = chromium.program()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)))
        process = stack.enter_context(chromium.running(program, url, folder))
        yield Screen(viewer, process, folder / "browser.log")


def _stop_server() -> None:
    running = server.global_server
    server.stop()
    running.executor.shutdown()
