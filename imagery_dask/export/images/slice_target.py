"""Where slices are written: files among others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from imagery_dask.export.images.slice_names import SliceNames
from imagery_dask.storage.files import Files, check_writable, existing_names

__all__ = ["SliceTarget"]


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
