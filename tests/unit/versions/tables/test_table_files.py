"""Tables are exact for every id, end their row groups where a graph chunk does, and are read by others."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from imagery_dask.model.graph_ids import SupervoxelIds
from imagery_dask.storage.atomic_files import Files
from imagery_dask.versions.tables import table_files
from imagery_dask.versions.tables.root_table import HASHED
from imagery_dask.versions.tables.table_files import ColumnsHash, TableFile, TableWriter, groups_of, regrouped

IDS = SupervoxelIds(layer_bits=2, chunk_bits=4)
# Layer 3 of 2 bits: ids above 2**63, in 40 graph chunks of 1 to 60 supervoxels.
random = np.random.default_rng(0)
CHUNKS = (np.uint64(3) << np.uint64(62)) + (random.choice(2**12, 40, replace=False).astype(np.uint64) << np.uint64(50))
SUPERVOXELS = np.sort(
    np.concatenate([chunk + np.arange(1, random.integers(2, 61), dtype=np.uint64) for chunk in CHUNKS])
)
ROOTS = (np.uint64(2**64 - 1) - random.integers(0, 50, len(SUPERVOXELS)).astype(np.uint64)).astype(np.uint64)
COLUMNS = dict.fromkeys(("supervoxel", "chunk", "root"), np.uint64)
ROWS = {"supervoxel": SUPERVOXELS, "chunk": IDS.chunks_of(SUPERVOXELS), "root": ROOTS}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TableFile:
    monkeypatch.setattr(table_files, "GROUP_ROWS", (50, 100))
    file, hashed = TableFile(Files.at(tmp_path), "roots/1078.parquet"), ColumnsHash(HASHED)
    assert not file.exists
    with TableWriter(file, COLUMNS, ["chunk", "root"]) as writer:
        # In batches that are not row groups.
        batches = [{name: rows[at : at + 37] for name, rows in ROWS.items()} for at in range(0, len(SUPERVOXELS), 37)]
        for group in regrouped(batches):
            writer.write(group)
            hashed.add(group)
        writer.publish({"rows": writer.rows, "hash": hashed.hexdigest()})
    return file


def test_ids_above_2_to_the_63_are_exact(table: TableFile) -> None:
    assert SUPERVOXELS.min() > 2**63
    opened = table.open()
    groups = list(groups_of(opened, list(COLUMNS)))
    for name, rows in ROWS.items():
        np.testing.assert_array_equal(np.concatenate([group[name] for group in groups]), rows)
    np.testing.assert_array_equal(opened.first, [group["supervoxel"][0] for group in groups])
    np.testing.assert_array_equal(opened.last, [group["supervoxel"][-1] for group in groups])
    some = SUPERVOXELS[::7]
    known, found = opened.rows_of(np.append(some, np.uint64(2**64 - 1)), ["root"])
    np.testing.assert_array_equal(known, [True] * len(some) + [False])
    np.testing.assert_array_equal(found["root"][:-1], ROOTS[::7])


def test_row_groups_end_where_a_graph_chunk_does(table: TableFile) -> None:
    groups = list(groups_of(table.open(), ["chunk"]))
    assert len(groups) > 5
    assert all(50 <= len(group["chunk"]) <= 100 for group in groups[:-1])
    assert all(before["chunk"][-1] != after["chunk"][0] for before, after in zip(groups, groups[1:], strict=False))


def test_a_graph_chunk_with_more_rows_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "GROUP_ROWS", (4, 8))
    groups = list(regrouped([{"chunk": np.zeros(21, np.uint64)}, {"chunk": np.ones(3, np.uint64)}]))
    assert [len(group["chunk"]) for group in groups] == [8, 8, 5, 3] or [len(g["chunk"]) for g in groups] == [8, 8, 8]
    assert np.concatenate([group["chunk"] for group in groups]).tolist() == [0] * 21 + [1] * 3


def test_the_hash_does_not_depend_on_row_groups() -> None:
    whole, parts = ColumnsHash(HASHED), ColumnsHash(HASHED)
    whole.add(ROWS)
    for at in range(0, len(SUPERVOXELS), 10):
        parts.add({name: rows[at : at + 10] for name, rows in ROWS.items()})
    assert whole.hexdigest() == parts.hexdigest()
    changed = ColumnsHash(HASHED)
    changed.add({**ROWS, "root": ROOTS[::-1]})
    assert changed.hexdigest() != whole.hexdigest()
    assert changed.of("supervoxel") == whole.of("supervoxel")


def test_duckdb_and_pandas_ask_which_chunks_hold_a_root(table: TableFile) -> None:
    root = int(ROOTS[5])
    expected = np.unique(ROWS["chunk"][np.uint64(root) == ROOTS])
    found = duckdb.sql(f"SELECT DISTINCT chunk FROM '{table.url}' WHERE root = {root}").fetchall()
    assert sorted(value for (value,) in found) == expected.tolist()
    frame = pd.read_parquet(table.url)
    assert frame.dtypes.map(str).tolist() == ["uint64"] * 3
    np.testing.assert_array_equal(np.unique(frame.loc[frame["root"] == root, "chunk"]), expected)


def test_a_file_that_was_not_ended_does_not_appear(tmp_path: Path) -> None:
    file = TableFile(Files.at(tmp_path), "roots/5.parquet")
    with TableWriter(file, COLUMNS, ["chunk", "root"]) as writer:
        writer.write(ROWS)
    assert list((tmp_path / "roots").iterdir()) == []
