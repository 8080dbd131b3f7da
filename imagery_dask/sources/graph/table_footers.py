"""Footers of the Parquet files of version stores: what a table says of itself, read without its rows."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import SourceError, SourceNotFoundError
from imagery_dask.sources.files.failures import brief
from imagery_dask.sources.files.local_files import local_folder
from imagery_dask.sources.requests.transport import Blob, Request, Transport
from imagery_dask.urls import redacted

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

__all__ = [
    "KEY", "REMEDY", "SUPERVOXEL", "TableFacts", "about_table", "content_of", "damaged_table", "forget_facts",
    "opened_as", "parquet", "read_footer", "table_facts",
]  # fmt: skip

SUPERVOXEL = "supervoxel"
#: Key of this package's entry in the metadata of a file.
KEY = b"imagery_dask"
# Footers of tables with 10^8 rows have about 600 kB.
TAIL_BYTES = 2**16
LARGEST_FOOTER = 2**28
MAGIC = b"PAR1"
FACTS_KEPT = 4096
REMEDY = "Restore it from a copy, or, if it is that of a version, remove the version and add it again."


class TableFacts(NamedTuple):
    """What a table says of itself.

    Parameters
    ----------
    facts : dict
        What this package wrote into the metadata of the file.
    rows : int
        Number of rows.
    columns : tuple of str
        Names of the columns.
    """

    facts: JsonObject
    rows: int
    columns: tuple[str, ...]


def table_facts(url: str) -> TableFacts:
    """Return what a table says of itself, read once per process and file, without row groups.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    SourceNotFoundError, AccessRefusedError, SourceError
        If there is no file, access is refused, or it is no table of this package.
    """
    return _facts(url, opened_as(url))


def opened_as(url: str) -> tuple[int, ...]:
    """Return the process, whose connections do not survive a fork, and what differs once a local file is another."""
    folder, _, name = url.rpartition("/")
    local = local_folder(folder)
    if local is not None:
        with suppress(OSError):  # which opening it tells
            stat = os.stat(os.path.join(local, name))
            return os.getpid(), stat.st_ino, stat.st_size, stat.st_mtime_ns
    return (os.getpid(),)


@lru_cache(maxsize=FACTS_KEPT)
def _facts(url: str, opened: tuple[int, ...]) -> TableFacts:
    del opened
    return about_table(url, read_footer(url))


def forget_facts() -> None:
    """Read footers again."""
    _facts.cache_clear()
    _footer.cache_clear()


def read_footer(url: str) -> FileMetaData:
    """Return the footer of a Parquet file; raise as `table_facts`."""
    return _footer(url, opened_as(url))


# A version that is looked up is opened next.
@lru_cache(maxsize=1)
def _footer(url: str, opened: tuple[int, ...]) -> FileMetaData:
    del opened
    tail = _tail(url, TAIL_BYTES)
    size = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != MAGIC or size > LARGEST_FOOTER:
        raise damaged_table(url, "it has no footer")
    if size > len(tail):
        tail = _tail(url, size)
    reader = parquet()
    import pyarrow

    try:
        return reader.read_metadata(pyarrow.BufferReader(tail))
    except (OSError, ValueError) as error:
        raise damaged_table(url, brief(error)) from error


def about_table(url: str, footer: FileMetaData) -> TableFacts:
    """Return what a footer says of its table."""
    columns = tuple(footer.schema.names)
    if SUPERVOXEL not in columns:
        raise damaged_table(url, f"it has no column {SUPERVOXEL!r}")
    try:
        facts = json.loads((footer.metadata or {}).get(KEY, b"null"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise damaged_table(url, f"its metadata have no entry {KEY.decode()!r}")
    return TableFacts(facts, int(footer.num_rows), columns)


def damaged_table(url: str, reason: str) -> SourceError:
    """Return the error of a file that is no table."""
    return SourceError(
        f"{redacted(url)!r} is no table of supervoxels that this package wrote, or is damaged: {reason}. {REMEDY}"
    )


def content_of(blob: Blob) -> bytes:
    """Return the bytes of an answer; raise EOFError if it is cut."""
    if blob.damage:
        raise EOFError(blob.damage)
    return bytes(blob.decompressed())


def _tail(url: str, size: int) -> bytes:
    folder, _, name = url.rpartition("/")
    blob = Transport(folder).get(Request(name, -size))
    if blob is None:
        raise SourceNotFoundError(f"There is no table {redacted(url)!r}: it was removed, or moved. {REMEDY}")
    return content_of(blob)


def parquet() -> Any:
    """Return the module ``pyarrow.parquet``.

    Raises
    ------
    ImportError
        With the command that installs it.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Version stores need pyarrow: pip install 'imagery_dask[versions]'") from error
    return pyarrow.parquet
