"""The file that a table is written to, as the target of an export; until it is whole, its pieces lie in the records."""

from __future__ import annotations

from dataclasses import dataclass

from imagery_dask.annotations import EachProcess
from imagery_dask.records.runs import records_of
from imagery_dask.storage.atomic_files import Files, check_writable
from imagery_dask.storage.targets import TargetInPlace, check_process
from imagery_dask.versions.tables.table_files import TableFile

__all__ = ["PIECE", "TableTarget", "remove_pieces"]

# Beginning of the names of pieces, in the folder of a run.
PIECE = "piece-"


def _records(table: TableFile) -> Files:
    """Return the folder of the records of a table."""
    files = records_of(table.url)
    if files is None:
        raise ValueError(f"Tables are written to folders and buckets; got {table.url!r}.")
    return files


def _pieces(table: TableFile) -> list[str]:
    return [name for name in _records(table).names() if name.partition("/")[2].startswith(PIECE)]


def remove_pieces(table: TableFile) -> None:
    """Remove the pieces of a table that is whole, and what killed processes left half-written of its records."""
    files = _records(table)
    files.delete(_pieces(table))
    for folder in {"", *(name.partition("/")[0] for name in files.names() if "/" in name)}:
        files.remove_partial(folder)


@dataclass(frozen=True, slots=True)
class TableTarget(TargetInPlace):
    """A file that appears at once, when all its pieces are there."""

    table: TableFile

    @property
    def url(self) -> str:
        """Path or URL of the file."""
        return self.table.url

    @property
    def folder(self) -> str:
        """Folder of the file."""
        return self.url.rpartition("/")[0]

    @property
    def owns_folder(self) -> bool:
        """Return False: the folder holds other files too."""
        return False

    def at(self, url: str) -> TableTarget:
        """Return the target of another file."""
        folder, _, name = url.rpartition("/")
        return TableTarget(TableFile(Files.at(folder), name))

    def occupied(self) -> bool:
        """Return True if the file exists; raise if the target cannot be written."""
        self.check_writable()
        return self.table.exists

    def refusal(self, why: str = "") -> FileExistsError:
        """Return the error for a file that exists."""
        return FileExistsError(f"{self.url} exists already. {why}".strip())

    def holds(self, url: str, written: bool) -> bool:
        """Return True if a run has written nothing yet, or its pieces or its file exist."""
        del url
        return not written or self.table.exists or bool(_pieces(self.table))

    def beside(self, run: str) -> str:
        """Return the target: a table is replaced by itself."""
        del run
        return self.url

    def check_writable(self) -> None:
        """Raise if this process cannot write there."""
        check_writable(Files.at(self.folder), self.url.rpartition("/")[2])

    def check_workers(self, workers: EachProcess) -> None:
        """Raise if the workers cannot write to the target."""
        check_process(self.url, workers)
