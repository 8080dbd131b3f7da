"""Objects in color over imagery."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.child import timed
from imagery_dask import composite_overlay
from imagery_dask.render.overlays import overlay_page


def _page(page: str) -> tuple[Any, Any]:
    with np.load(page) as file:
        return file["labels"], file["image"]


def large(source: str, page: str, style: dict[str, Any]) -> dict[str, Any]:
    """Draw a page of an export."""
    labels, image = _page(page)
    return timed(lambda: overlay_page(labels, image, **style))


def overlay(source: str, page: str, style: dict[str, Any]) -> dict[str, Any]:
    """Draw the objects of a page, as imageryclient does (in other colors)."""
    labels, image = _page(page)
    return timed(lambda: composite_overlay(labels, imagery=image, **style))
