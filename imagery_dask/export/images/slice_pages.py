"""Make the pages of a slice: imagery, masks, labels or overlays. The classes are small and are pickled with tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.render.overlays import overlay_halo, overlay_page
from imagery_dask.render.pages import Window, imagery_page, label_page, mask_page, values_of
from imagery_dask.storage.atomic_files import Files

__all__ = [
    "IdTable",
    "ImageryPages",
    "LabelPages",
    "MaskPages",
    "OverlayPages",
    "OverlayStyle",
    "Pages",
]

Plane = Array
Page = Array
TABLE_HEADER = "id,value"


class Pages(Protocol):
    """Makes the pages of a slice."""

    @property
    def flat(self) -> bool:
        """Return True if pages have large areas of one value."""
        ...

    @property
    def margin(self) -> int:
        """Return how many voxels around a tile are needed to draw it."""
        ...

    @property
    def kinds(self) -> Sequence[str]:
        """Return the kinds of the pages of a slice, in order."""
        ...

    def __call__(self, planes: Sequence[Plane]) -> Iterator[tuple[str, Page | None]]:
        """Yield the kind of each page, for its name, and the page; None is a transparent one."""
        ...


@dataclass(frozen=True, slots=True)
class ImageryPages:
    """One grey or color page.

    Parameters
    ----------
    window : Window or None
        Scale from voxels to grey values; None takes voxels as they are.
    """

    window: Window | None = None
    flat: bool = False
    margin: int = 0
    kinds: tuple[str, ...] = ("imagery",)

    def __call__(self, planes: Sequence[Plane]) -> Iterator[tuple[str, Page | None]]:
        """Make the page."""
        yield "imagery", imagery_page(planes[0], self.window)


@dataclass(frozen=True, slots=True)
class MaskPages:
    """A page of each object, transparent outside it; every object has one in every slice.

    Parameters
    ----------
    ids : numpy.ndarray of integers, shape (n,)
        Objects to show.
    colors : mapping of int to 4 int
        RGBA of objects; those without a color are white.
    """

    ids: Array
    colors: Mapping[int, tuple[int, int, int, int]]
    flat: bool = True
    margin: int = 0

    @property
    def kinds(self) -> Sequence[str]:
        """One for each object."""
        return [f"root_id_{value}" for value in self.ids.tolist()]

    def __call__(self, planes: Sequence[Plane]) -> Iterator[tuple[str, Page | None]]:
        """Make the pages."""
        plane = np.asfortranarray(planes[0])  # its memory is that of the page, row by row
        places = kernels.places_of(plane)
        for root_id in self.ids.tolist():
            page = None
            if root_id in places:
                color = self.colors.get(root_id, (255, 255, 255, 255))
                page = mask_page((plane.shape[1], plane.shape[0]), places[root_id], color)
            yield f"root_id_{root_id}", page


@dataclass(frozen=True, slots=True)
class IdTable:
    """Table of the value of each id, in a file beside the pictures; tasks read it once per process.

    Parameters
    ----------
    files : Files
        Folder of the table.
    name : str
        Name of the file.
    dtype : str
        ``"int64"`` or ``"uint64"``.
    run : str
        Id of the run: a table that was overwritten is another table.
    """

    files: Files
    name: str
    dtype: str
    run: str

    def write(self, ids: Array) -> None:
        """Write ids, ascending and without 0, with the values 1, 2, ...; and 0 with 0."""
        lines = (f"{root_id},{value}" for value, root_id in enumerate(ids.tolist(), start=1))
        text = "\n".join((TABLE_HEADER, "0,0", *lines, ""))
        self.files.put(self.name, text.encode(), content_type="text/csv")

    def ids(self) -> Array:
        """Return the ids in ascending order, without 0; the value of the first is 1."""
        return _table_ids(self, os.getpid())


@lru_cache(maxsize=2)
def _table_ids(table: IdTable, process: int) -> Array:
    del process  # part of the cache key: a forked process must not use the connections of its parent
    content = table.files.get(table.name)
    if content is None:
        raise FileNotFoundError(f"The table of ids, {table.name} in {table.files.url}, is missing.")
    rows = content.decode().split()[2:]
    return np.array([int(row.partition(",")[0]) for row in rows], dtype=table.dtype)


@dataclass(frozen=True, slots=True)
class LabelPages:
    """One page of the values that ids have in a table.

    Parameters
    ----------
    table : IdTable
        Value of each id.
    packed : bool
        Write RGB instead of 16-bit grey.
    complete : bool
        The table must have every id of the data; otherwise ids that it lacks become 0.
    """

    table: IdTable
    packed: bool
    complete: bool
    flat: bool = True
    margin: int = 0
    kinds: tuple[str, ...] = ("labels",)

    def __call__(self, planes: Sequence[Plane]) -> Iterator[tuple[str, Page | None]]:
        """Make the page."""
        yield "labels", label_page(values_of(planes[0], self.table.ids(), self.complete), self.packed)


@dataclass(frozen=True, slots=True)
class OverlayStyle:
    """How objects are drawn over imagery.

    Parameters
    ----------
    alpha : float
        Opacity of the colors, 0 to 1.
    outline : bool
        Draw outlines instead of areas.
    merge_outline : bool
        Draw no outline between objects that touch.
    width : int
        Width of outlines in pixels.
    """

    alpha: float = 0.2
    outline: bool = False
    merge_outline: bool = True
    width: int = 10


@dataclass(frozen=True, slots=True)
class OverlayPages:
    """One page of objects over imagery, which is the second plane, if any.

    Parameters
    ----------
    style : OverlayStyle
        How objects are drawn.
    keep : tuple of int or None
        Objects to show; None shows all.
    colors : mapping of int to 3 int
        RGB of objects; those without a color have one that depends on the id.
    window : Window or None
        Scale from voxels of the imagery to grey values.
    """

    style: OverlayStyle
    keep: tuple[int, ...] | None
    colors: Mapping[int, tuple[int, int, int]]
    window: Window | None
    flat: bool = False
    kinds: tuple[str, ...] = ("overlay",)

    @property
    def margin(self) -> int:
        """Return how many voxels around a tile are needed: outlines of objects in the next tile reach into it."""
        return overlay_halo(self.style.outline, self.style.width)

    def __call__(self, planes: Sequence[Plane]) -> Iterator[tuple[str, Page | None]]:
        """Make the page."""
        labels = planes[0] if self.keep is None else kernels.keep_ids(planes[0], self.keep)
        image = None
        if len(planes) > 1:
            image = planes[1] if self.window is None else self.window.apply(planes[1])
        yield "overlay", self._draw(labels, image)

    def _draw(self, labels: Plane, image: Plane | None) -> Page:
        style = self.style
        page = overlay_page(
            labels, image, colors=dict(self.colors) or None, alpha=style.alpha, outline=style.outline,
            merge_outline=style.merge_outline, width=style.width,
        )  # fmt: skip
        return np.ascontiguousarray(page)
