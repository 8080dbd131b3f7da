"""Listing the runs in the records of a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from imagery_dask.records.receipts import receipt
from imagery_dask.records.runs import (
    Records,
    Run,
    ledger_line,
    ledger_rows,
    missing_first,
    now,
    refused_or_absent_in,
    runs_in,
)
from imagery_dask.sources import ReadCounts
from imagery_dask.storage.atomic_files import Files


def test_a_run_that_is_removed_during_listing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files.at(str(tmp_path / "records"))
    stays, goes = (Run(Records(files, name), {}, now()).saved() for name in ("stays", "goes"))
    assert {run.records.run for run in runs_in(files)} == {"stays", "goes"}
    get = Records.get

    def get_after_removal(self: Records, name: str) -> Any:
        if self.run == "goes":
            goes.records.remove()
        return get(self, name)

    monkeypatch.setattr(Records, "get", get_after_removal)
    assert [run.records.run for run in runs_in(files)] == [stays.records.run]


def test_records_that_need_not_be_seen_at_once_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object of a bucket holds up to 380 kB; to put it again for each block would be more than the block."""
    records = Records(Files.at(f"memory://bucket-{uuid4().hex}/out.receipts"), "run")
    puts: list[str] = []
    put = Files.put

    def counted(self: Files, name: str, *arguments: Any, **options: Any) -> None:
        puts.append(name)
        put(self, name, *arguments, **options)

    monkeypatch.setattr(Files, "put", counted)
    for block in range(100):
        records.append("receipts", receipt(block, bytes(16), 1, 1, ReadCounts(), 1, 0.0), at_once=False)
    assert puts == []
    records.flush("receipts")
    records.flush("receipts")
    assert len(puts) == 1
    assert records.receipts(100)["block"].tolist() == list(range(100))


def test_the_ledger_tells_chunks_that_may_be_refused_from_missing_ones(tmp_path: Path) -> None:
    records = Records(Files.at(tmp_path), "run")
    (tmp_path / "run").mkdir()

    def write(block: int, counts: ReadCounts) -> None:
        line = ledger_line(block, f"b{block}", "image", counts)
        assert line is not None
        records.append("ledger", line)
        records.append("receipts", receipt(block, bytes(16), 1, 1, counts, 1, 0.0))

    both, other = ReadCounts(), ReadCounts()
    both.miss("x")
    both.miss("y", refused_or_absent=True)
    both.miss("z", refused_or_absent=True)
    other.miss("w")
    write(2**60, both)
    write(3, other)
    assert refused_or_absent_in(records, records.receipts()).tolist() == [0, 2]
    rows = [(row["block"], row["kind"], row["key"]) for row in ledger_rows(records.lines("ledger"))]
    assert rows == [
        (3, "missing chunk", "w"),
        (2**60, "missing chunk", "x"),
        (2**60, "refused or absent chunk", "y"),
        (2**60, "refused or absent chunk", "z"),
    ]
    assert missing_first(records) == {"image": ["w", "x", "y", "z"]}
    # The block is done again, and the server says now that they are missing.
    other.missing_keys, other.missing = ["x", "y", "z"], 3
    write(2**60, other)
    assert refused_or_absent_in(records, records.receipts()).tolist() == [0, 0]


def test_lines_without_refused_chunks_are_those_of_older_versions() -> None:
    counts = ReadCounts()
    counts.miss("x")
    line = json.loads(ledger_line(7, "b7", "image", counts) or b"")
    assert sorted(line) == ["block", "missing", "name", "volume", "when", "zero_root_ids", "zero_roots"]
    damaged = line | {"refused_or_absent": 3}
    assert [row["kind"] for row in ledger_rows([damaged])] == ["missing chunk"]


def test_receipts_of_blocks_beyond_the_plan_are_left_out(tmp_path: Path) -> None:
    records = Records(Files.at(tmp_path), "run")
    (tmp_path / "run").mkdir()
    for block in (3, 2**60, 1, 4):
        records.append("receipts", receipt(block, bytes(16), 1, 1, ReadCounts(), 1, 0.0))
    assert records.receipts(4)["block"].tolist() == [1, 3]
    assert records.receipts()["block"].tolist() == [1, 3, 4, 2**60]
