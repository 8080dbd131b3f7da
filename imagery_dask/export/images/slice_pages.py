"""What pages of a slice export show: imagery, masks, labels or overlays. Small and picklable: they go with tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.render.overlays import overlay_halo, overlay_page
from imagery_dask.render.pages import Window, imagery_page, label_page, mask_page, values_of
from imagery_dask.storage.files import Files

__all__ = [
    "IdTable",
    "ImageryPages",
    "LabelPages",
    "MaskPages",
    "OverlayPages",
    "OverlayStyle",
    "Pages",
]

Plane = NDArray[Any]
Page = NDArray[Any]
TABLE_HEADER = "id,value"


class Pages(Protocol):
    """What a slice becomes."""

    @property
    def flat(self) -> bool:
        """Whether pages have large areas of one value."""
        ...

    @property
    def margin(self) -> int:
        """Voxels around a tile that decide its pixels too."""
        ...

    @property
    def kinds(self) -> Sequence[str]:
        """Kinds of the pages of a slice, in their order."""
        ...

    def __call__(self, planes: Sequence[Plane]) -> Iterator[tuple[str, Page | None]]:
        """Kind of each page (for its name) and the page; None is a transparent one."""
        ...


@dataclass(frozen=True, slots=True)
class ImageryPages:
    """One grey or colour page.

    Parameters
    ----------
    window : Window or None
        How voxels become grey values; None takes them as they are.
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
    """A page of each object, transparent where it is not: every object has one in every slice.

    Parameters
    ----------
    ids : numpy.ndarray of integers, shape (n,)
        Objects.
    colors : mapping of int to 4 int
        RGBA of some of them; the others are white.
    """

    ids: NDArray[Any]
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
    """Table id -> value of an export, in a file beside its pictures: tasks read it, once per process.

    Parameters
    ----------
    files : Files
        Where it is.
    name : str
        Its name.
    dtype : str
        ``"int64"`` or ``"uint64"``.
    run : str
        Names the run: a table that is overwritten is another table.
    """

    files: Files
    name: str
    dtype: str
    run: str

    def write(self, ids: NDArray[Any]) -> None:
        """Write ids, ascending and without 0, with the values 1, 2, ...; and 0 with 0."""
        lines = (f"{root_id},{value}" for value, root_id in enumerate(ids.tolist(), start=1))
        text = "\n".join((TABLE_HEADER, "0,0", *lines, ""))
        self.files.put(self.name, text.encode(), content_type="text/csv")

    def ids(self) -> NDArray[Any]:
        """Ids by value, ascending; 0 is not among them."""
        return _table_ids(self, os.getpid())


@lru_cache(maxsize=2)
def _table_ids(table: IdTable, process: int) -> NDArray[Any]:
    del process  # connections do not survive a fork
    content = table.files.get(table.name)
    if content is None:
        raise FileNotFoundError(f"The table of ids, {table.name} in {table.files.url}, is gone.")
    rows = content.decode().split()[2:]
    return np.array([int(row.partition(",")[0]) for row in rows], dtype=table.dtype)


@dataclass(frozen=True, slots=True)
class LabelPages:
    """One page of the values that ids have in a table.

    Parameters
    ----------
    table : IdTable
        Which value each id has.
    packed : bool
        RGB instead of 16-bit grey.
    complete : bool
        Whether the table has every id of the data; an id that it lacks is 0 otherwise.
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
        Strength of the colours, 0 to 1.
    outline : bool
        Draw outlines instead of areas.
    merge_outline : bool
        Draw no outline between objects that touch.
    width : int
        Of outlines, in pixels.
    """

    alpha: float = 0.2
    outline: bool = False
    merge_outline: bool = True
    width: int = 10


@dataclass(frozen=True, slots=True)
class OverlayPages:
    """One page of objects over imagery (the second plane, where there is one).

    Parameters
    ----------
    style : OverlayStyle
        How they are drawn.
    keep : tuple of int or None
        Objects to show; None shows all.
    colors : mapping of int to 3 int
        RGB of some of them; the others have a colour by their id.
    window : Window or None
        How voxels of the imagery become grey values.
    """

    style: OverlayStyle
    keep: tuple[int, ...] | None
    colors: Mapping[int, tuple[int, int, int]]
    window: Window | None
    flat: bool = False
    kinds: tuple[str, ...] = ("overlay",)

    @property
    def margin(self) -> int:
        """Outlines are drawn around what may lie in the next tile."""
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
