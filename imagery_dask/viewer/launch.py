"""Open the viewer on volumes: in a browser where there is one, otherwise by its address."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imagery_dask.viewer.served import Served, volumes_of_data
from imagery_dask.viewer.states import Place, StateLayer, state_of

if TYPE_CHECKING:
    from imagery_dask.viewer.loopback import View

__all__ = ["launch", "layers_of", "open_browser", "view_data"]

#: Of the coarsest level, along x and y: without a limit, an array of one level would be read as a whole.
VOXELS_PER_PIXEL = 2


def launch(
    served: Sequence[Served],
    place: Place | None = None,
    segments: Sequence[int] = (),
    *,
    browser: bool,
    panels: Sequence[Sequence[str]] = (),
) -> View:
    """Serve volumes on this machine, and open the page that shows them.

    Parameters
    ----------
    served : sequence of Served
        Volumes, from the lowest layer to the highest.
    place : Place, optional
        Where to look; by default the middle of the first volume, and all of it if a coarse level allows.
    segments : sequence of int
        Objects to select in segmentations.
    browser : bool
        Open a browser. Without one on this machine, the address of the page is printed.
    panels : sequence of sequence of str
        Layers, by name, that are shown side by side; by default all lie over each other.

    Raises
    ------
    ImportError
        If the neuroglancer package is not installed.
    ValueError
        If two layers have the same name.
    """
    names = [one.name for one in served]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Layers of the viewer have different names; {', '.join(twice)} is there twice.")
    from imagery_dask.viewer.loopback import View

    view = View(served, state_of(_layers(served, tuple(segments)), place or _whole(served[0]), panels=panels))
    if browser and not open_browser(view.url):
        print(f"Open {view.url} in a browser on this machine.")  # noqa: T201  # it is what the call is for
    return view


def view_data(
    data: Any,
    root_ids: Sequence[int] = (),
    resolution_nm: Sequence[float] | None = None,
    *,
    browser: bool = True,
) -> View:
    """Show arrays in Neuroglancer, read as the viewer asks for their chunks.

    Parameters
    ----------
    data : dask.array.Array, numpy.ndarray, xarray.DataArray, xarray.Dataset or mapping of str to these
        What to show, as for `to_zarr`; a mapping names the layers.
    root_ids : sequence of int
        Objects to select in segmentations.
    resolution_nm : sequence of 3 float, optional
        Voxel size of arrays that do not know it, nm (x, y, z).
    browser : bool
        Open a browser. Without one on this machine, the address of the page is printed.

    Returns
    -------
    View
        The page; it serves until ``view.stop()`` or the end of the process.
    """
    return launch(layers_of(data, resolution_nm), None, root_ids, browser=browser)


def layers_of(data: Any, resolution_nm: Sequence[float] | None = None) -> list[Served]:
    """Return the layers of arrays; a mapping that is no dataset names them."""
    if isinstance(data, Mapping) and not hasattr(data, "data_vars"):
        return [one for name, array in data.items() for one in volumes_of_data(array, resolution_nm, str(name))]
    return [*volumes_of_data(data, resolution_nm)]


def _layers(served: Sequence[Served], segments: tuple[int, ...]) -> tuple[StateLayer, ...]:
    return tuple(StateLayer(one.name, one.kind, "", segments if one.kind == "segmentation" else ()) for one in served)


def _whole(first: Served) -> Place:
    """Return the place that shows a volume, or, if it is large, as much as fits at the size of its coarsest voxels."""
    grid = first.grid
    place = Place.of_bounds(grid.start.map(float), grid.stop.map(float), grid.resolution_nm)
    most = VOXELS_PER_PIXEL * max(first.coarsest_nm[:2])
    return replace(place, nm_per_pixel=min(place.nm_per_pixel or most, most))


def open_browser(url: str) -> bool:
    """Open a page in a browser with windows; return False if this machine has none."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # a browser of text would take the terminal
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return webbrowser.open(url)
