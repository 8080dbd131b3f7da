"""Listing the runs in the records of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagery_dask.records.runs import Records, Run, now, runs_in
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
