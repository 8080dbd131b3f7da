"""Files of a slice export: their names, and the folder or bucket that they are written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from imagery_dask.annotations import EachProcess
from imagery_dask.geometry.grid import AXES, XYZ
from imagery_dask.storage.atomic_files import Files, check_writable, existing_names, split_prefix
from imagery_dask.storage.targets import TargetInPlace, check_process

__all__ = ["SliceNames", "SliceTarget", "SliceTargets", "plane_axes"]

DIGITS = 6


def plane_axes(axis: int) -> tuple[int, int]:
    """Return the axes of the columns and rows of a picture."""
    columns, rows = (other for other in range(3) if other != axis)
    return columns, rows


@dataclass(frozen=True, slots=True)
class SliceNames:
    """Names of the files of an export.

    Slices are numbered from 0 in the cutout, as imageryclient does (``em_slice_3_imagery.png``), or with as many digits
    as the last slice has, so that names sort (``em_slice_003_imagery.png``), or by their voxel index
    (``em_imagery_z021360.png``), padded so that names sort like slices. Negative numbers do not sort: if the first
    index is negative, the number in the cutout precedes it (``em_imagery_000003_z-000013.png``). Names of tiles
    end with the first row and column, counted like slices: ``_y4096_x0``, or ``_y004096_x000000``.

    Parameters
    ----------
    stem : str
        Beginning of all names.
    axis : int
        Axis along which the volume is cut.
    shape : tuple of 3 int
        Shape of the cutout in voxels.
    start : tuple of 3 int or None
        Voxel index of the first voxel; None numbers slices from 0.
    tiled : bool
        Include the first row and column of a page in its name.
    extension : str
        Extension without the dot.
    padded : bool
        Whether numbers in the cutout have as many digits as the last of them.
    """

    stem: str
    axis: int
    shape: XYZ
    start: XYZ | None
    tiled: bool
    extension: str
    padded: bool = False

    def name(self, kind: str, index: int, origin: tuple[int, int] = (0, 0)) -> str:
        """Return the name of a file.

        Parameters
        ----------
        kind : str
            ``"imagery"``, ``"root_id_..."`` and so on.
        index : int
            Index of the slice in the cutout.
        origin : tuple of 2 int
            First column and first row of the page in the cutout.
        """
        if self.start is not None:
            rank = f"_{index:0{self._digits(self.axis)}d}" if self.start[self.axis] < 0 else ""
            base = f"{self.stem}_{kind}{rank}_{self._absolute(self.axis, index)}"
        elif self.shape[self.axis] == 1:
            base = f"{self.stem}_{kind}"
        else:
            base = f"{self.stem}_slice_{self._relative(self.axis, index)}_{kind}"
        return f"{base}{self._tile(origin)}.{self.extension}"

    def _tile(self, origin: tuple[int, int]) -> str:
        if not self.tiled:
            return ""
        columns, rows = plane_axes(self.axis)
        if self.start is None:
            row, column = self._relative(rows, origin[1]), self._relative(columns, origin[0])
            return f"_{AXES[rows]}{row}_{AXES[columns]}{column}"
        return f"_{self._absolute(rows, origin[1])}_{self._absolute(columns, origin[0])}"

    def _relative(self, axis: int, index: int) -> str:
        return f"{index:0{len(str(self.shape[axis] - 1))}d}" if self.padded else str(index)

    def _absolute(self, axis: int, index: int) -> str:
        value = (self.start or (0, 0, 0))[axis] + index
        return f"{AXES[axis]}{'-' if value < 0 else ''}{abs(value):0{self._digits(axis)}d}"

    def _digits(self, axis: int) -> int:
        first = (self.start or (0, 0, 0))[axis]
        return max(DIGITS, len(str(abs(first))), len(str(abs(first + self.shape[axis] - 1))))


@dataclass(frozen=True, slots=True)
class SliceTarget(TargetInPlace):
    """Files of slices with a common prefix."""

    # Their folder or bucket.
    files: Files
    names: SliceNames
    # Edges of slabs and tiles along x, y, z.
    edges: tuple[Sequence[int], Sequence[int], Sequence[int]]
    # What each slice has a file of, as far as that is known before anything is read.
    kinds: tuple[str, ...]
    # Whether there is a table of the values of labels.
    has_table: bool

    @property
    def url(self) -> str:
        """Folder or bucket, and prefix of the names."""
        return f"{self.files.url}/{self.names.stem}"

    @property
    def folder(self) -> str:
        """Folder or bucket of the files."""
        return self.files.url

    @property
    def owns_folder(self) -> bool:
        """Return False: the folder holds other files too."""
        return False

    @property
    def table(self) -> str | None:
        """Name of the table of values."""
        return f"{self.names.stem}_labels.csv" if self.has_table else None

    def at(self, url: str) -> SliceTarget:
        """Return a target for the same slices with another prefix."""
        files, stem = split_prefix(url)
        return replace(self, files=files, names=replace(self.names, stem=stem))

    def beside(self, run: str) -> str:
        """Return the target: each file is replaced by itself."""
        del run
        return self.url

    def planned_names(self, kinds: Sequence[str]) -> Iterator[str]:
        """Names of the files that are written, of some kinds."""
        yield from [] if self.table is None else [self.table]
        columns, rows = plane_axes(self.names.axis)
        for index in range(self.names.shape[self.names.axis]):
            for row in self.edges[rows][:-1]:
                for column in self.edges[columns][:-1]:
                    yield from (self.names.name(kind, index, (column, row)) for kind in kinds)

    def occupied(self) -> bool:
        """Return True if files of these names exist; raise if the target cannot be written."""
        exist = self.clash(self.kinds) is not None
        self.check_writable()
        return exist

    def refusal(self, why: str = "") -> FileExistsError:
        """Return the error for files that exist."""
        clash = why or self.clash(self.kinds)
        return FileExistsError(
            f"{clash} exists already in {self.files.url}; choose another prefix, or pass overwrite=True (--overwrite)."
        )

    def clash(self, kinds: Sequence[str]) -> str | None:
        """Return the first of the planned files of some kinds that exists, or None."""
        exist = existing_names(self.files, self.names.stem)
        return next((name for name in self.planned_names(kinds) if name in exist), None) if exist else None

    def check_writable(self) -> None:
        """Raise if this process cannot write files there."""
        check_writable(self.files, self.names.stem)

    def check_workers(self, workers: EachProcess) -> None:
        """Raise if the workers cannot write to the target."""
        check_process(self.files.url, workers)

    def holds(self, url: str, written: bool) -> bool:
        """Return True if a run has written no file yet, or if not all have been removed."""
        del url
        if not written:
            return True
        names = existing_names(self.files, self.names.stem)
        return any(name.endswith(f".{self.names.extension}") for name in names)


@dataclass(frozen=True, slots=True)
class SliceTargets(TargetInPlace):
    """Folders of the slices of named regions."""

    # Folder or bucket of all of them.
    folder: str
    regions: Mapping[str, SliceTarget]

    @property
    def url(self) -> str:
        """The folder."""
        return self.folder

    @property
    def owns_folder(self) -> bool:
        """Return False: the folder holds other files too."""
        return False

    def at(self, url: str) -> SliceTargets:
        """Return targets for the same slices in another folder."""
        return SliceTargets(url, {name: region.at(f"{url}/{name}/{name}") for name, region in self.regions.items()})

    def beside(self, run: str) -> str:
        """Return the target: each file is replaced by itself."""
        del run
        return self.url

    def occupied(self) -> bool:
        """Return True if files of any region exist; raise if the target cannot be written."""
        self.check_writable()
        return any(region.clash(region.kinds) is not None for region in self.regions.values())

    def refusal(self, why: str = "") -> FileExistsError:
        """Return the error for files that exist."""
        regions = list(self.regions.values())
        return next((one for one in regions if one.clash(one.kinds) is not None), regions[0]).refusal(why)

    def check_writable(self) -> None:
        """Raise if this process cannot write files there."""
        next(iter(self.regions.values())).check_writable()

    def check_workers(self, workers: EachProcess) -> None:
        """Raise if the workers cannot write to the target."""
        next(iter(self.regions.values())).check_workers(workers)

    def holds(self, url: str, written: bool) -> bool:
        """Return True if a run has written no file yet, or if not all have been removed."""
        return any(region.holds(url, written) for region in self.regions.values())
