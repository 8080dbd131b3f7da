"""Blocks of a run that another run replaced are not written."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagery_dask.records.runs import NoRecords, Records
from imagery_dask.run.block import BlockError, BlockResult, Written, run_block
from imagery_dask.storage.atomic_files import Files


class Task:
    """A task that counts its calls."""

    name, volume, hashes_files = "read+write image-z0 y0 x0", "image", False

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Written:
        self.calls += 1
        return Written(8, 8, b"\0" * 16)

    def stored(self) -> bytes:
        return b""

    def expected(self) -> bytes:
        return b""


def test_a_block_of_a_replaced_run_is_not_written(tmp_path: Path) -> None:
    """Workers of a driver that was stopped may begin blocks after its store was replaced."""
    task, records = Task(), Records(Files.at(tmp_path), "run")
    records.put("plan.json", {})
    assert isinstance(run_block(task, 0, 1, records), BlockResult)
    records.remove()
    result = run_block(task, 1, 1, records)
    assert isinstance(result, BlockError)
    assert (result.outcome, result.reason) == ("lasting", "The export was replaced by another one.")
    assert task.calls == 1


@pytest.mark.parametrize("records", [None, NoRecords.of("run"), Records(Files.at("memory://nowhere"), "run")])
def test_a_block_without_a_records_folder_is_written(records: Records | None) -> None:
    task = Task()
    assert isinstance(run_block(task, 0, 1, records), BlockResult)
    assert task.calls == 1
