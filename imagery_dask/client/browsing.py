"""The client's widget for notebooks: planes of a place with a slider, and the ids under a click."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from imagery_dask.arrays.lazy import lazy_array
from imagery_dask.client.figures import place_of
from imagery_dask.client.parameters import describe
from imagery_dask.client.settings import ClientSettings
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.labels import RootIds
from imagery_dask.model.moments import Moment
from imagery_dask.validate import axis as checked_axis
from imagery_dask.validate import number, whole_number

if TYPE_CHECKING:
    from imagery_dask.render.slice_browser import SliceBrowser

__all__ = ["BrowsesPlanes"]

# Planes that are read in advance at most.
FARTHEST = 8


class BrowsesPlanes:
    """Mixin of `ImageryClient`: a widget to browse planes."""

    _settings: ClientSettings

    @describe
    def browse(
        self,
        bounds: ArrayLike,
        root_ids: RootIds = "all",
        *,
        axis: int | str = 2,
        bbox_size: ArrayLike | None = None,
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        outline: bool = False,
        opacity: float = 0.4,
        window: tuple[float, float] | None = None,
        colors: Mapping[int, Sequence[int]] | None = None,
        read_ahead: int = 2,
    ) -> SliceBrowser:
        """Return a widget with the planes of a place: a slider, the opacity of the colors, and ids under a click.

        Planes are read when they are shown, through the cache of decoded chunks, at the finest mips that have no more
        voxels than the picture has pixels. An id keeps its color in all planes.

        Parameters
        ----------
        {parameters}
        opacity : float
            Opacity of the colors, 0 to 1.
        read_ahead : int
            Planes to read in advance, in the direction of travel, by one thread: 0 to 8.

        Returns
        -------
        SliceBrowser
            A widget. A click shows the root id, the supervoxel id of a dynamic segmentation, and the position in voxels
            of `resolution` and nm, which are ``ids`` and ``voxel`` of the widget.

        Raises
        ------
        ImportError
            When anywidget is not installed.
        ValueError, TypeError
            When an argument is invalid. Nothing has been read then.
        """
        from imagery_dask.render.slice_browser import PlaneDrawer, SliceBrowser

        across = checked_axis("axis", axis, letters=True)
        opacity, ahead = number("opacity", opacity, 0, 1), whole_number("read_ahead", read_ahead, 0, FARTHEST)
        place = place_of(
            self._settings, bounds, root_ids, None, 1, bbox_size, (image_mip, segmentation_mip), resolution, timestamp
        )
        drawer = PlaneDrawer(
            place.image, place.labels, place.grid, across, voxel_nm=place.voxel_nm, outline=outline, window=window,
            colors=colors,
        )  # fmt: skip
        shown = place.cutouts.get("segmentation")
        return SliceBrowser(
            drawer, lambda voxel: {} if shown is None else _ids_at(shown, voxel), at=place.center[across],
            voxel_nm=place.voxel_nm, opacity=opacity, ahead=ahead,
        )  # fmt: skip


def _ids_at(shown: Cutout, voxel: Vec3[int]) -> dict[str, int]:
    """Return the ids at a voxel of a segmentation, also of an object that is not shown."""
    rule = shown.labels
    assert rule is not None
    rules = {"root id": replace(rule, keep=None, leaves_within=None)}
    if rule.query is not None:
        rules["supervoxel id"] = rule.of_supervoxels()
    return {
        name: int(lazy_array(replace(shown, labels=own), squeeze=False)[tuple(voxel)].compute())
        for name, own in rules.items()
    }
