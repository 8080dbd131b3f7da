"""Files of a slice export: their names, and the folder or bucket that they are written to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from imagery_dask.geometry.grid import AXES, XYZ
from imagery_dask.storage.files import Files, check_writable, existing_names

__all__ = ["SliceNames", "SliceTarget", "plane_axes"]

DIGITS = 6


def plane_axes(axis: int) -> tuple[int, int]:
    """Axes of a picture: its columns and its rows."""
    columns, rows = (other for other in range(3) if other != axis)
    return columns, rows


@dataclass(frozen=True, slots=True)
class SliceNames:
    """How the files of an export are called.

    Slices are numbered from 0 in the cutout, as the reference does (``em_slice_3_imagery.png``), or by their voxel
    index (``em_imagery_z021360.png``), padded so that names sort as slices do. Minus signs do not sort: where the first
    index is negative, the number in the cutout stands before it (``em_imagery_000003_z-000013.png``). Tiles end with
    their first row and column, counted as slices are: ``_y4096_x0``, or ``_y004096_x000000``.

    Parameters
    ----------
    stem : str
        What all names begin with.
    axis : int
        Axis that is cut into slices.
    shape : tuple of 3 int
        Voxels of the cutout.
    start : tuple of 3 int or None
        Voxel index of the cutout's first voxel; None numbers from 0.
    tiled : bool
        Whether names say where in the plane a page begins.
    extension : str
        Without the dot.
    """

    stem: str
    axis: int
    shape: XYZ
    start: XYZ | None
    tiled: bool
    extension: str

    def name(self, kind: str, index: int, origin: tuple[int, int] = (0, 0)) -> str:
        """Name of a file.

        Parameters
        ----------
        kind : str
            ``"imagery"``, ``"root_id_..."`` and so on.
        index : int
            Slice in the cutout.
        origin : tuple of 2 int
            First column and first row of the page in the cutout.
        """
        if self.start is not None:
            rank = f"_{index:0{self._digits(self.axis)}d}" if self.start[self.axis] < 0 else ""
            base = f"{self.stem}_{kind}{rank}_{self._absolute(self.axis, index)}"
        elif self.shape[self.axis] == 1:
            base = f"{self.stem}_{kind}"
        else:
            base = f"{self.stem}_slice_{index}_{kind}"
        return f"{base}{self._tile(origin)}.{self.extension}"

    def _tile(self, origin: tuple[int, int]) -> str:
        if not self.tiled:
            return ""
        columns, rows = plane_axes(self.axis)
        if self.start is None:
            return f"_{AXES[rows]}{origin[1]}_{AXES[columns]}{origin[0]}"
        return f"_{self._absolute(rows, origin[1])}_{self._absolute(columns, origin[0])}"

    def _absolute(self, axis: int, index: int) -> str:
        value = (self.start or (0, 0, 0))[axis] + index
        return f"{AXES[axis]}{'-' if value < 0 else ''}{abs(value):0{self._digits(axis)}d}"

    def _digits(self, axis: int) -> int:
        first = (self.start or (0, 0, 0))[axis]
        return max(DIGITS, len(str(abs(first))), len(str(abs(first + self.shape[axis] - 1))))


class _Slices(Protocol):
    """What a place needs to know of an export."""

    url: str
    files: Files
    names: SliceNames

    @property
    def listed_kinds(self) -> list[str]:
        """Kinds of the files of a slice, as far as they are known."""
        ...

    def planned_names(self, kinds: Sequence[str]) -> Iterator[str]:
        """Names of the files that are written."""
        ...


class SliceTarget:
    """Where slices are written: files among others, each of which is replaced by itself.

    Parameters
    ----------
    export : SliceExport
        What is written there.
    """

    def __init__(self, export: _Slices) -> None:
        self._export = export
        self.url = export.url

    def occupied(self) -> bool:
        """Whether files of these names exist; and refuse a place that cannot be written."""
        export = self._export
        found = self.clash(export.listed_kinds) is not None
        self.check_writable()
        return found

    def refusal(self, why: str = "") -> FileExistsError:
        """Error that says that files are there."""
        clash = why or self.clash(self._export.listed_kinds)
        return FileExistsError(
            f"{clash} exists already in {self._export.files.url}; choose another prefix, or pass overwrite=True "
            "(--overwrite)."
        )

    def clash(self, kinds: Sequence[str]) -> str | None:
        """First of the planned files of some kinds that is there, or None."""
        found = existing_names(self._export.files, self._export.names.stem)
        return next((name for name in self._export.planned_names(kinds) if name in found), None) if found else None

    def check_writable(self) -> None:
        """Refuse a place that cannot be written."""
        check_writable(self._export.files, self._export.names.stem)

    def holds(self, place: str, written: bool) -> bool:
        """Whether files of a run are there, where it has written any: some, as long as not all have been removed."""
        del place
        if not written:
            return True
        names = existing_names(self._export.files, self._export.names.stem)
        return any(name.endswith(f".{self._export.names.extension}") for name in names)

    def beside(self, run: str) -> str:
        """Files take their places one by one."""
        del run
        return self.url

    def recover(self) -> None:
        """Nothing is renamed but single files."""

    def swap(self, place: str) -> None:
        """Nothing is renamed but single files."""

    def clear(self, place: str) -> None:
        """Leave files until they are replaced."""
        del place
