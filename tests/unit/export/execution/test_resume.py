"""Parts that open the same export at the same time."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.settings import Configure

from imagery_dask.export.execution.resume import _refuse_foreign, open_part
from imagery_dask.records.journal import Records
from imagery_dask.records.parts import Part
from imagery_dask.records.runs import Run, now, runs_in
from imagery_dask.storage.files import Files


def test_parts_that_crashed_are_found_out_side_by_side(tmp_path: Path, configure: Configure) -> None:
    """On other machines, of which only time tells; an array that is submitted again does not begin one by one."""
    configure("lease.renew_s", 2.0)
    files = Files.at(str(tmp_path / "records"))
    for part in range(1, 5):
        held = {"id": "x", "host": "elsewhere", "pid": 1, "machine": "another", "purpose": "part", "renewed": 0.0}
        files.put(Part(part, 4).file, json.dumps(held).encode(), "application/json")
    target = SimpleNamespace(url="OUT", occupied=lambda: False, recover=lambda: None, holds=lambda place, written: True)
    export = SimpleNamespace(target=target, records=files, fingerprint_fields={})

    def begin(part: int) -> float:
        with open_part(export, Part(part, 4), lambda new: SimpleNamespace(id=new.id)):
            return time.monotonic()

    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        begun = list(threads.map(begin, range(1, 5)))
    assert 3 <= max(begun) - started < 9  # one after the other, it would be twelve


def test_a_store_that_another_part_makes_meanwhile_is_not_foreign(tmp_path: Path) -> None:
    """Between the look at the records and the one at the store: its plan is there before it."""
    files = Files.at(str(tmp_path / "records"))

    def occupied() -> bool:
        if not runs_in(files):
            Run(Records(files, "first"), "OUT", {"fingerprint": "x"}, now()).saved()
        raise FileExistsError("it is half made")

    target = SimpleNamespace(url="OUT", occupied=occupied, refusal=FileExistsError)
    _refuse_foreign(files, target)
    for run in runs_in(files):
        run.records.remove()
    target.occupied = lambda: True
    with pytest.raises(FileExistsError):
        _refuse_foreign(files, target)
    _refuse_foreign(files, target, overwrite=True)
