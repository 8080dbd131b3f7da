"""Opening the parts of an export at the same time."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.settings import Configure

from imagery_dask.export.execution.resume import _refuse_foreign, open_part
from imagery_dask.records.parts import Part
from imagery_dask.records.runs import Records, Run, now, runs_in
from imagery_dask.storage.atomic_files import Files


def test_parts_wait_for_crashed_parts_at_the_same_time(tmp_path: Path, configure: Configure) -> None:
    """Crashes on other machines are known only after a wait, which the parts of a job array must not do in turn."""
    configure("lease.renew_s", 2.0)
    files = Files.at(str(tmp_path / "records"))
    for part in range(1, 5):
        lease = {"id": "x", "host": "elsewhere", "pid": 1, "machine": "another", "purpose": "part", "renewed": 0.0}
        files.put(Part(part, 4).file, json.dumps(lease).encode(), "application/json")
    target = SimpleNamespace(url="OUT", occupied=lambda: False, recover=lambda: None, holds=lambda url, written: True)
    export = SimpleNamespace(target=target, records=files, fingerprint_fields={})

    def open_time(part: int) -> float:
        with open_part(export, Part(part, 4), lambda new: SimpleNamespace(id=new.id)):
            return time.monotonic()

    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(open_time, range(1, 5)))
    assert 3 <= max(opened) - started < 9  # in turn, it would be twelve


def test_a_store_that_another_part_makes_during_the_check_is_not_foreign(tmp_path: Path) -> None:
    """The other part saves its plan and then makes the store, after the records and before the store are checked."""
    files = Files.at(str(tmp_path / "records"))

    def occupied() -> bool:
        if not runs_in(files):
            Run(Records(files, "first"), {"fingerprint": "x"}, now()).saved()
        raise FileExistsError("it is half made")

    target = SimpleNamespace(url="OUT", occupied=occupied, refusal=FileExistsError)
    _refuse_foreign(files, target)
    for run in runs_in(files):
        run.records.remove()
    target.occupied = lambda: True
    with pytest.raises(FileExistsError):
        _refuse_foreign(files, target)
    _refuse_foreign(files, target, overwrite=True)
