from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagery_dask.errors import SourceError, SourceNotFoundError
from imagery_dask.model.chunkedgraph import ChunkedGraph, RootQuery
from imagery_dask.sources import collect_counts, look_up_roots
from imagery_dask.sources.graph import root_tables
from imagery_dask.sources.graph.root_tables import IdTable, id_table, look_up_stored
from imagery_dask.sources.graph.table_footers import table_facts

GRAPH = ChunkedGraph("https://nowhere.invalid", "t", (64, 64, 64), (0, 0, 0), (8.0, 8.0, 40.0), 5)
# Layer 1 with the largest chunks: ids above 2**53. Roots above 2**63 of a graph with other bits are read as well.
SUPERVOXELS = (np.uint64(1) << np.uint64(56)) + np.repeat(np.arange(7, dtype=np.uint64) << np.uint64(32), 50) + np.tile(
    np.arange(1, 51, dtype=np.uint64), 7
)  # fmt: skip
ROOTS = (np.uint64(2**63 + 5)) + np.arange(350, dtype=np.uint64) % np.uint64(90)


@pytest.fixture(autouse=True)
def _forget() -> None:
    root_tables.forget_tables()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(ids: np.ndarray = SUPERVOXELS, facts: object = None, rows: int = 40, **columns: np.ndarray) -> str:
        table = pa.table({"supervoxel": ids, **(columns or {"root": ROOTS})})
        facts = {"version": 3} if facts is None else facts
        path = tmp_path / "3.parquet"
        pq.write_table(table.replace_schema_metadata({b"imagery_dask": json.dumps(facts).encode()}), path,
                       row_group_size=rows)  # fmt: skip
        return f"file://{path}"

    return write


@pytest.mark.parametrize("rows", [1, 40, 1000])
def test_supervoxels_have_the_roots_of_their_rows(write: Callable[..., str], rows: int) -> None:
    url = write(rows=rows)
    np.testing.assert_array_equal(look_up_stored(url, SUPERVOXELS), ROOTS)
    some = np.sort(np.random.default_rng(0).choice(350, 90, replace=False))
    np.testing.assert_array_equal(look_up_stored(url, SUPERVOXELS[some]), ROOTS[some])
    assert look_up_stored(url, SUPERVOXELS[:1]).dtype == np.uint64


def test_a_block_reads_the_row_groups_of_its_supervoxels_once(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, read = write(rows=50), []
    group = IdTable.group
    monkeypatch.setattr(IdTable, "group", lambda self, number, names: read.append(number) or group(self, number, names))
    for _ in range(2):
        look_up_stored(url, SUPERVOXELS[120:130])
        look_up_stored(url, SUPERVOXELS[[10, 340]])
    assert read == [2, 0, 6]


def test_a_query_with_a_table_asks_no_server(write: Callable[..., str]) -> None:
    query = RootQuery(GRAPH, 10, stored=write())
    with collect_counts() as counts:
        found = look_up_roots(query, np.concatenate([[np.uint64(0)], SUPERVOXELS]))
    np.testing.assert_array_equal(found, np.concatenate([[np.uint64(0)], ROOTS]))
    assert (counts.root_requests, counts.ids_sent, counts.zero_roots) == (0, 0, 0)


def test_supervoxels_without_a_root_are_counted(write: Callable[..., str]) -> None:
    roots = ROOTS.copy()
    roots[7] = 0
    with collect_counts() as counts:
        found = look_up_roots(RootQuery(GRAPH, 10, stored=write(root=roots)), SUPERVOXELS)
    np.testing.assert_array_equal(found, roots)
    assert (counts.zero_roots, counts.zero_root_ids) == (1, [int(SUPERVOXELS[7])])


def test_an_unknown_supervoxel_is_an_error_and_never_zero(write: Callable[..., str]) -> None:
    unknown = SUPERVOXELS[4] + np.uint64(2**31)
    with pytest.raises(SourceError, match=f"1 of 2 supervoxels, the first is {unknown}"):
        look_up_stored(write(), np.sort(np.array([SUPERVOXELS[0], unknown])))


def test_rows_that_were_added_to_a_table_are_found(write: Callable[..., str]) -> None:
    url = write(SUPERVOXELS[:100], root=ROOTS[:100])
    look_up_stored(url, SUPERVOXELS[:100])
    write()
    np.testing.assert_array_equal(look_up_stored(url, SUPERVOXELS), ROOTS)


def test_a_local_table_that_was_replaced_or_removed_is_noticed(write: Callable[..., str], tmp_path: Path) -> None:
    url = write()
    look_up_stored(url, SUPERVOXELS)
    assert table_facts(url).facts == {"version": 3}
    (tmp_path / "3.parquet").rename(tmp_path / "before.parquet")
    write(facts={"version": 4}, root=ROOTS + np.uint64(1))
    np.testing.assert_array_equal(look_up_stored(url, SUPERVOXELS), ROOTS + np.uint64(1))
    assert table_facts(url).facts == {"version": 4}
    (tmp_path / "3.parquet").unlink()
    with pytest.raises(SourceNotFoundError):
        look_up_stored(url, SUPERVOXELS)


def test_other_layers_have_columns_of_their_own(write: Callable[..., str]) -> None:
    url = write(root=ROOTS, layer_2=ROOTS + np.uint64(1))
    np.testing.assert_array_equal(look_up_stored(url, SUPERVOXELS, 2), ROOTS + np.uint64(1))
    with pytest.raises(SourceError, match="no column 'layer_3'; it has root, layer_2"):
        look_up_stored(url, SUPERVOXELS, 3)


def test_a_footer_of_any_size_is_read(write: Callable[..., str]) -> None:
    url = write(facts={"note": "x" * 200_000}, rows=1)
    assert (id_table(url).groups, id_table(url).rows) == (350, 350)
    np.testing.assert_array_equal(look_up_stored(url, SUPERVOXELS[:3]), ROOTS[:3])


def test_an_empty_table_has_no_supervoxel(write: Callable[..., str]) -> None:
    url = write(SUPERVOXELS[:0], root=ROOTS[:0])
    known, _ = id_table(url).rows_of(SUPERVOXELS[:2])
    assert not known.any()


def test_a_file_that_is_no_table_is_named(tmp_path: Path, write: Callable[..., str]) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no table .*1\.parquet"):
        id_table(f"file://{tmp_path}/1.parquet")
    (tmp_path / "2.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(SourceError, match=r"2\.parquet.*it has no footer"):
        id_table(f"file://{tmp_path}/2.parquet")
    url = write()
    pq.write_table(pa.table({"root": ROOTS}), tmp_path / "4.parquet")
    with pytest.raises(SourceError, match="no column 'supervoxel'"):
        id_table(f"file://{tmp_path}/4.parquet")
    content = (tmp_path / "3.parquet").read_bytes()
    (tmp_path / "3.parquet").write_bytes(content[:4] + b"\xff" * 900 + content[904:])
    with pytest.raises(SourceError, match="is damaged"):
        look_up_stored(url, SUPERVOXELS)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_roots_are_found_in_ranges_of_ids(write: Callable[..., str], rows: int) -> None:
    """For every range of graph chunks, and for several at once, as a scan of the rows says."""
    table, chunks = id_table(write(rows=rows)), SUPERVOXELS >> np.uint64(32) << np.uint64(32)
    width, wanted = np.uint64(1) << np.uint64(32), ROOTS[[3]]
    held = np.array([np.isin(ROOTS[chunks == chunk], wanted).any() for chunk in np.unique(chunks)])
    assert 0 < held.sum() < len(held)
    starts = np.unique(chunks)
    for one, expected in zip(starts, held, strict=True):
        assert table.has_roots(wanted, one[None], one[None] + width) == expected
    assert not table.has_roots(wanted, starts[~held], starts[~held] + width)
    assert table.has_roots(wanted, starts, starts + width)
    own = SUPERVOXELS[[3]]  # the end of a range is not in it
    assert table.has_roots(wanted, own, own + np.uint64(1))
    assert not table.has_roots(wanted, own - np.uint64(1), own)
