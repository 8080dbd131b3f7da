"""What a table says of itself is read from its footer, once, and its row groups are not kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagery_dask.errors import SourceError, SourceNotFoundError
from imagery_dask.sources.graph import root_tables, table_footers
from imagery_dask.sources.graph.table_footers import TableFacts, table_facts

IDS = np.arange(2**63, 2**63 + 900, dtype=np.uint64)


@pytest.fixture(autouse=True)
def _forget() -> None:
    root_tables.forget_tables()


def write(path: Path, metadata: dict[bytes, bytes], column: str = "supervoxel") -> str:
    table = pa.table({column: IDS, "root": IDS}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=1)
    return f"file://{path}"


def test_a_footer_that_is_larger_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    url = write(tmp_path / "5.parquet", {b"imagery_dask": json.dumps({"version": 5}).encode()})
    assert pq.read_metadata(tmp_path / "5.parquet").serialized_size > table_footers.TAIL_BYTES
    assert table_facts(url) == TableFacts({"version": 5}, 900, ("supervoxel", "root"))


def test_footers_are_read_once(tmp_path: Path) -> None:
    url = write(tmp_path / "5.parquet", {b"imagery_dask": b"{}"})
    facts = table_facts(url)
    assert table_facts(url) is facts
    (tmp_path / "5.parquet").unlink()
    with pytest.raises(SourceNotFoundError, match="There is no table"):
        table_facts(url)


@pytest.mark.parametrize(
    ("metadata", "column", "reason"),
    [
        ({}, "supervoxel", "no entry 'imagery_dask'"),
        ({b"imagery_dask": b"[1"}, "supervoxel", "no entry 'imagery_dask'"),
        ({b"imagery_dask": b"{}"}, "id", "no column 'supervoxel'"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, metadata: dict[bytes, bytes], column: str, reason: str) -> None:
    with pytest.raises(SourceError, match=f"Remove the version and add it again|{reason}") as error:
        table_facts(write(tmp_path / "5.parquet", metadata, column))
    assert reason in str(error.value)
