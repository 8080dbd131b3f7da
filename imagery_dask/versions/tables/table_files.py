"""Read and write the Parquet files of a store: sorted by supervoxel, in row groups that end where a graph chunk does.

Rows of a graph chunk are contiguous, and the footer has the first and last supervoxel of each row group: a reader finds
the rows of a block without reading others. All columns are integers without nulls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.sources.graph.root_tables import IdTable, forget_tables, id_table
from imagery_dask.sources.graph.table_footers import KEY, parquet
from imagery_dask.storage.atomic_files import Files

__all__ = ["GROUP_ROWS", "Columns", "ColumnsHash", "TableFile", "TableWriter", "groups_of", "regrouped"]

Columns = Mapping[str, Array]
# Rows of a row group, at least and at most; a graph chunk with more rows is cut.
GROUP_ROWS = (2**16, 2**17)
# Dictionaries of roots are small where neighbours belong to the same objects, and given up where they are not.
DICTIONARY_BYTES = 2**20
DELTA = "DELTA_BINARY_PACKED"
COPY_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class TableFile:
    """A Parquet file of a store, which need not exist. Small and picklable.

    Parameters
    ----------
    files : Files
        Files of the store.
    name : str
        Name of the file.
    """

    files: Files
    name: str

    @property
    def url(self) -> str:
        """Path or URL."""
        return f"{self.files.url}/{self.name}".removeprefix("file://")

    @property
    def exists(self) -> bool:
        """Return True if the file exists, which is then whole."""
        return self.nbytes is not None

    @property
    def nbytes(self) -> int | None:
        """Size of the file; None if it does not exist."""
        return self.files.size(self.name)

    def open(self) -> IdTable:
        """Return the table, opened once per process."""
        return id_table(f"{self.files.url}/{self.name}")

    def remove(self) -> None:
        """Remove the file."""
        self.files.delete([self.name])
        forget_tables()


class TableWriter:
    """Write a table, row group by row group, and put it in its place when it is whole.

    Parameters
    ----------
    table : TableFile
        The file to write.
    columns : mapping of str to dtype
        Names and integer types of the columns.
    repeated : sequence of str
        Columns in which few values are repeated.
    """

    def __init__(self, table: TableFile, columns: Mapping[str, Any], repeated: Sequence[str]) -> None:
        import pyarrow as pa

        self._table = table
        if (folder := table.files.folder) is not None:
            (folder / table.name).parent.mkdir(parents=True, exist_ok=True)
        # On the disk of the table, where it has one.
        self._file = TemporaryFile(dir=None if folder is None else (folder / table.name).parent)  # noqa: SIM115
        self._schema = pa.schema([pa.field(name, pa.from_numpy_dtype(kind), False) for name, kind in columns.items()])
        self._writer = parquet().ParquetWriter(
            self._file, self._schema, version="2.6", compression="zstd", use_dictionary=list(repeated),
            dictionary_pagesize_limit=DICTIONARY_BYTES,
            column_encoding={name: DELTA for name in columns if name not in repeated},
            write_statistics=True, store_schema=False,
        )  # fmt: skip
        self.rows = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()
        self._file.close()

    def write(self, columns: Columns) -> None:
        """Write a row group."""
        import pyarrow as pa

        arrays = [pa.array(np.ascontiguousarray(columns[field.name])) for field in self._schema]
        batch = pa.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(batch, row_group_size=max(1, batch.num_rows))
        self.rows += batch.num_rows

    def publish(self, said: JsonObject) -> None:
        """End the file with what is said of it, and let it appear under its name."""
        self._writer.add_key_value_metadata({KEY: json.dumps(said).encode()})
        self._writer.close()
        self._file.seek(0)
        self._table.files.put(self._table.name, iter(lambda: self._file.read(COPY_BYTES), b""))
        forget_tables()  # of which this process may have opened an earlier one


def groups_of(table: IdTable, names: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Yield columns of one row group of a table after another."""
    for number in range(table.groups):
        yield table.group(number, names)


class ColumnsHash:
    """XXH3 of some columns, fed row group by row group: the hash of the hashes of the columns, in their order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._hashes = {name: xxh3_128() for name in names}

    def add(self, columns: Columns) -> None:
        """Add rows."""
        for name, hash_of in self._hashes.items():
            hash_of.update(np.ascontiguousarray(columns[name]).view(np.uint8).data)

    def of(self, name: str) -> str:
        """Return the hash of one column."""
        return str(self._hashes[name].hexdigest())

    def hexdigest(self) -> str:
        """Return the hash of all columns."""
        return str(xxh3_128(b"".join(one.digest() for one in self._hashes.values())).hexdigest())


def regrouped(batches: Iterable[Columns], chunk: str = "chunk") -> Iterator[dict[str, Array]]:
    """Yield the rows of batches in row groups, which end where a graph chunk does.

    Parameters
    ----------
    batches : iterable of mapping of str to numpy.ndarray
        Sorted rows, of any number.
    chunk : str
        Column with the graph chunk.
    """
    least, most = GROUP_ROWS
    held: dict[str, Array] = {}
    for batch in batches:
        held = {name: np.concatenate([held[name], rows]) if held else rows for name, rows in batch.items()}
        while len(held[chunk]) > most:
            end = _last_edge(held[chunk], least, most)
            yield {name: rows[:end] for name, rows in held.items()}
            held = {name: rows[end:] for name, rows in held.items()}
    if held and len(held[chunk]):
        yield held


def _last_edge(chunks: NDArray[np.uint64], least: int, most: int) -> int:
    """Return the last row, at most `most`, at which a graph chunk begins; `most` if there is none after `least`."""
    edges = np.flatnonzero(chunks[least : most + 1] != chunks[least - 1 : most])
    return least + int(edges[-1]) if len(edges) else most
