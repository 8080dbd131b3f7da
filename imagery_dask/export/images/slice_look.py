"""What pages of a slice export show, checked against the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagery_dask.export.core.inputs import Volume
from imagery_dask.export.images import slice_checks as checks
from imagery_dask.model.labels import RootIds
from imagery_dask.render.pages import Window

__all__ = ["Look", "look_of"]


@dataclass(frozen=True, slots=True)
class Look:
    """What pages show, checked."""

    what: str
    keep: tuple[int, ...] | None
    colors: dict[int, tuple[int, int, int, int]]
    window: Window | None


def look_of(what: str, volumes: list[Volume], root_ids: RootIds, colors: Any, window: Window | None) -> Look:
    """Check what pages show; `volumes` begin with the labels where there are any."""
    if what == "imagery":
        if colors is not None or not (isinstance(root_ids, str) and root_ids == "all"):
            raise ValueError("root_ids and colors are for masks, labels and overlays; what='imagery' has none.")
        checks.check_grey(volumes[0], window)
        return Look(what, None, {}, window)
    if what == "labels" and colors is not None:
        raise ValueError("what='labels' writes a value for each id, and no colors; use what='overlay' or 'masks'.")
    if window is not None and not (what == "overlay" and len(volumes) > 1):
        raise ValueError(f"window is for grey values of imagery, which what={what!r} does not show here.")
    keep = checks.kept_ids(root_ids, volumes[0])
    known = checks.colors_of_ids(colors, keep, volumes[0].array.dtype)
    if what == "overlay" and len(volumes) > 1:
        checks.check_overlay(volumes[1], window)
    return Look(what, keep, known, window)
