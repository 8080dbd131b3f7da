"""Root ids of supervoxels in Parquet files, which version stores keep: read by row group, without a server.

A table is sorted by supervoxel, so that the rows of a graph chunk are together: ids begin with their chunk. The footer
of the file says which ids each row group has; a block reads the few row groups that its supervoxels are in.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.errors import SourceError, SourceNotFoundError
from imagery_dask.sources.files.failures import brief
from imagery_dask.sources.graph.table_footers import (
    REMEDY,
    SUPERVOXEL,
    about_table,
    content_of,
    damaged_table,
    forget_facts,
    opened_as,
    parquet,
    read_footer,
)
from imagery_dask.sources.requests.transport import Request, Transport
from imagery_dask.urls import redacted

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

__all__ = ["IdTable", "column_of_layer", "forget_tables", "id_table", "look_up_stored"]

Ids = NDArray[np.uint64]
Columns = dict[str, NDArray[Any]]

ROOT = "root"
# Decoded row groups that a process keeps, of all tables.
KEPT_BYTES = 64 * 2**20
# Of a table with 10^8 rows, what is known of row groups takes a few MB.
TABLES_KEPT = 16


def column_of_layer(stop_layer: int | None) -> str:
    """Return the name of the column with the ids of a layer; None stands for root ids."""
    return ROOT if stop_layer is None else f"layer_{stop_layer}"


class IdTable:
    """An open Parquet file whose rows are sorted by the column ``supervoxel``. Safe to use from many threads.

    Parameters
    ----------
    url : str
        Cloud path of the file: ``file://``, ``s3://``, ``gs://`` or ``https://``.

    Attributes
    ----------
    facts : dict
        What this package wrote into the metadata of the file.
    rows : int
        Number of rows.
    columns : tuple of str
        Names of the columns.
    first, last : numpy.ndarray of uint64, shape (row groups,)
        First and last supervoxel of each row group.
    group_rows : tuple of int
        Number of rows of each row group.
    kept_as : object
        Part of the keys of what is kept of the table: another one, once it is opened again.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    SourceNotFoundError, AccessRefusedError, SourceError
        If there is no file, access is refused, or it is no table of this package.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        folder, _, self._name = url.rpartition("/")
        self._transport = Transport(folder)
        self._lock = threading.Lock()  # pyarrow's reader is not safe to use from several threads
        metadata = read_footer(url)
        self.facts, self.rows, self.columns = about_table(url, metadata)
        own = self.columns.index(SUPERVOXEL)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self.group_rows = tuple(int(group.num_rows) for group in groups if group.num_rows)
        stated = [group.column(own).statistics for group in groups if group.num_rows]
        if any(statistics is None or not statistics.has_min_max for statistics in stated):
            raise damaged_table(self.url, "it does not say which supervoxels its row groups have")
        self.first = np.array([statistics.min for statistics in stated], np.uint64)
        self.last = np.array([statistics.max for statistics in stated], np.uint64)
        self.kept_as = object()
        self._file: ParquetFile = parquet().ParquetFile(_RangedFile(self._transport, self._name), metadata=metadata)

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return len(self.first)

    def group(self, number: int, columns: Sequence[str]) -> Columns:
        """Return columns of a row group as numpy arrays; they are not kept."""
        for column in columns:
            if column not in self.columns:
                raise self._without(column)
        try:
            with self._lock:
                table = self._file.read_row_group(number, columns=list(columns), use_threads=False)
            return {column: table[column].to_numpy() for column in columns}
        except (OSError, ValueError, EOFError) as error:
            raise damaged_table(self.url, brief(error)) from error

    def rows_of(self, supervoxels: Ids, columns: Sequence[str] = (ROOT,)) -> tuple[NDArray[np.bool_], Columns]:
        """Look up supervoxels.

        Parameters
        ----------
        supervoxels : numpy.ndarray of uint64, shape (n,)
            Distinct ids, ascending.
        columns : sequence of str
            Columns to return.

        Returns
        -------
        known : numpy.ndarray of bool, shape (n,)
            Whether the table has the id.
        columns : dict of numpy.ndarray, shape (n,)
            Values; 0 for unknown ids.
        """
        known = np.zeros(len(supervoxels), bool)
        found: Columns = {column: np.zeros(len(supervoxels), np.uint64) for column in columns}
        # Row groups are in order, so that the ids of each are a slice of the ids.
        starts, stops = supervoxels.searchsorted(self.first), supervoxels.searchsorted(self.last, "right")
        for number in np.flatnonzero(starts < stops).tolist():
            part = slice(int(starts[number]), int(stops[number]))
            group = self._kept(number, columns)
            keys, wanted = group[SUPERVOXEL], supervoxels[part]
            at = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
            ours = keys[at] == wanted
            known[part] = ours
            for column in columns:
                if found[column].dtype != group[column].dtype:
                    found[column] = found[column].astype(group[column].dtype)
                found[column][part] = np.where(ours, group[column][at], 0)
        return known, found

    def rows_near(self, first: int, last: int, margin: int, column: str) -> tuple[Ids, Ids]:
        """Return the supervoxels between two ids, and their values in a column.

        So are those within a margin of ids before and behind that are in the same row groups.
        """
        low, high = np.uint64(max(0, first - margin)), np.uint64(min(2**64 - 1, last + margin))
        keys, values = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for number in np.flatnonzero((self.first <= np.uint64(last)) & (self.last >= np.uint64(first))).tolist():
            group = self._kept(number, [column])
            ids = group[SUPERVOXEL]
            part = slice(int(ids.searchsorted(low)), int(ids.searchsorted(high, "right")))
            keys.append(ids[part])
            values.append(group[column][part])
        return np.concatenate(keys), np.concatenate(values)

    def has_roots(self, roots: Ids, starts: Ids, stops: Ids) -> bool:
        """Return True if a supervoxel within ranges of ids has one of the roots.

        Parameters
        ----------
        roots : numpy.ndarray of uint64, shape (n,)
            Root ids.
        starts, stops : numpy.ndarray of uint64, shape (m,)
            First id of each range, and one past its last.
        """
        return any(np.isin(rows[ROOT], roots).any() for rows in self.rows_within(starts, stops))

    def rows_within(self, starts: Ids, stops: Ids, columns: Sequence[str] = (ROOT,)) -> Iterator[Columns]:
        """Yield the rows whose supervoxels are within ranges of ids, some at a time; never none.

        Parameters
        ----------
        starts, stops : numpy.ndarray of uint64, shape (m,)
            First id of each range, and one past its last; ranges ascend, and do not overlap.
        columns : sequence of str
            Columns to return besides ``supervoxel``.
        """
        # Row groups are in order, too, so that the ranges that cross each are a slice of the ranges.
        ended, begun = stops.searchsorted(self.first, "right"), starts.searchsorted(self.last, "right")
        for number in np.flatnonzero(ended < begun).tolist():
            crossed = slice(int(ended[number]), int(begun[number]))
            group = self._kept(number, columns)
            keys = group[SUPERVOXEL]
            for begin, end in zip(keys.searchsorted(starts[crossed]), keys.searchsorted(stops[crossed]), strict=True):
                if begin < end:
                    yield {name: values[begin:end] for name, values in group.items()}

    def supervoxels_of(self, roots: Ids) -> Iterator[Ids]:
        """Yield the supervoxels that have one of the roots, ascending, those of a row group at a time."""
        for number in range(self.groups):
            rows = self.group(number, [SUPERVOXEL, ROOT])
            ours = np.isin(rows[ROOT], roots)
            if ours.any():
                yield rows[SUPERVOXEL][ours]

    def _kept(self, number: int, columns: Sequence[str]) -> Columns:
        """Return columns of a row group, which the process keeps for the next block."""
        names = tuple(dict.fromkeys((SUPERVOXEL, *columns)))
        key = (self.kept_as, number, names)
        kept = _groups.get(key)
        if kept is None:
            kept = self.group(number, names)
            _groups.put(key, kept)
        return kept

    def _without(self, column: str) -> SourceError:
        recorded = ", ".join(name for name in self.columns if name == ROOT or name.startswith("layer_"))
        return SourceError(
            f"{redacted(self.url)!r} has no column {column!r}; it has {recorded}. Record a layer when the version is "
            "added."
        )


def look_up_stored(url: str, supervoxels: Ids, stop_layer: int | None = None) -> Ids:
    """Return the roots of supervoxels from a table.

    Parameters
    ----------
    url : str
        Cloud path of the table.
    supervoxels : numpy.ndarray of uint64, shape (n,)
        Distinct ids, ascending, without 0.
    stop_layer : int or None
        Layer of the ids to return; None for root ids.

    Returns
    -------
    numpy.ndarray of uint64, shape (n,)
        0 for supervoxels that had no root at the time of the table.

    Raises
    ------
    SourceError
        If the table does not have a supervoxel, or the layer.
    """
    column = column_of_layer(stop_layer)
    try:
        known, found = id_table(url).rows_of(supervoxels, [column])
    except SourceNotFoundError:
        raise
    except SourceError:
        known, found = np.zeros(len(supervoxels), bool), {}
    if not known.all():
        # The file may have been replaced: rows are added for supervoxels that come from splits.
        table = id_table(url, fresh=True)
        known, found = table.rows_of(supervoxels, [column])
        if not known.all():
            unknown = supervoxels[~known]
            raise SourceError(
                f"{redacted(url)!r} does not have {len(unknown):,} of {len(supervoxels):,} supervoxels, the first is "
                f"{unknown[0]}: the table is of other supervoxels than the volume. {REMEDY}"
            )
    return found[column]


def id_table(url: str, fresh: bool = False) -> IdTable:
    """Return an open table, opened once per process, and again if the local file is another; `fresh` opens it again."""
    if fresh:
        forget_tables()
    return _opened(url, opened_as(url))


def forget_tables() -> None:
    """Close all tables of this process."""
    _opened.cache_clear()
    forget_facts()


@lru_cache(maxsize=TABLES_KEPT)
def _opened(url: str, opened: tuple[int, ...]) -> IdTable:
    del opened
    return IdTable(url)


class _KeptGroups:
    """Decoded row groups, of which the least recently used are dropped."""

    def __init__(self, most: int) -> None:
        self._most, self._size, self._lock = most, 0, threading.Lock()
        self._groups: OrderedDict[object, Columns] = OrderedDict()

    def get(self, key: object) -> Columns | None:
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
            return self._groups.get(key)

    def put(self, key: object, group: Columns) -> None:
        with self._lock:
            if key not in self._groups:
                self._groups[key] = group
                self._size += _size_of(group)
            while self._size > self._most:
                self._size -= _size_of(self._groups.popitem(last=False)[1])


def _size_of(group: Columns) -> int:
    return sum(values.nbytes for values in group.values())


_groups = _KeptGroups(KEPT_BYTES)


class _RangedFile(io.RawIOBase):
    """A file as pyarrow reads it: the ranges that the footer names."""

    def __init__(self, transport: Transport, name: str) -> None:
        self._transport, self._name, self._at = transport, name, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # The size is not known, and is not needed where the footer is given; pyarrow asks for it all the same.
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: 2**62}[whence]
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if size <= 0:
            return b""
        blob = self._transport.get(Request(self._name, self._at, self._at + size))
        if blob is None:
            raise EOFError(f"{self._name} does not exist any more")
        content = content_of(blob)
        self._at += len(content)
        return content
