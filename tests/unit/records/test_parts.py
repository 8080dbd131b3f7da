"""Parts of a plan: which blocks each has, how they are said, and who is at work."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.settings import Configure

from imagery_dask.errors import TargetBusyError
from imagery_dask.export.execution.resume import _refuse_foreign, open_part
from imagery_dask.records import lease as leases
from imagery_dask.records.journal import Records
from imagery_dask.records.lease import Lease
from imagery_dask.records.parts import Part, part_holders, refuse_other_parts, refuse_parts
from imagery_dask.records.runs import Run, now, runs_in
from imagery_dask.storage.files import Files


@given(blocks=st.integers(0, 500), of=st.integers(1, 60))
def test_each_block_is_in_one_part(blocks: int, of: int) -> None:
    parts = [Part(part, of).of_blocks(blocks) for part in range(1, of + 1)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), np.ones(blocks))
    # As even as can be.
    assert max(part.sum() for part in parts) - min(part.sum() for part in parts) <= 1


def test_what_is_read_and_said() -> None:
    share = Part.read("3/8")
    assert (share, str(share), share.file) == (Part(3, 8), "part 3 of 8", "part-3-of-8.json")


@pytest.mark.parametrize("text", ["0/8", "9/8", "1/0", "3", "3/", "/8", "a/b", "-1/8", "1.5/8", "3/8/9", ""])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(ValueError, match="A part is I/N"):
        Part.read(text)


@pytest.mark.parametrize("how", ["enters", "leaves"])
def test_an_interrupt_gives_the_lease_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Also in a process that lives on, such as that of a notebook."""
    files = Files.at(tmp_path / "out.receipts")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    lease = Lease(files, "OUT")
    monkeypatch.setattr(lease._thread, "join", interrupted)
    with monkeypatch.context() as patched:
        if how == "enters":
            files.put("lease.json", b"of one that was killed")
            patched.setattr(leases.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt), lease:
            assert how == "leaves"
    assert files.get("lease.json") is None
    with Lease(files, "OUT"):
        pass


def _held_elsewhere(files: Files, age_s: float) -> None:
    said = {"id": "other", "host": "other", "pid": 1, "machine": "other", "purpose": "close"}
    files.put("lease.json", json.dumps(said | {"renewed": time.time() - age_s}).encode())


def test_who_may_have_crashed_is_waited_for(tmp_path: Path, configure: Configure) -> None:
    """Else parts that are run again soon would all leave it to one that is dead to close the store."""
    configure("lease.renew_s", 0.5)
    configure("lease.expires_s", 3.0)
    files = Files.at(tmp_path / "out.receipts")
    _held_elsewhere(files, 0.1)
    with pytest.raises(TargetBusyError, match="by process 1 on other"), leases.brief_lease(files, "OUT"):
        pass
    _held_elsewhere(files, 1.5)
    with leases.brief_lease(files, "OUT"):
        assert leases.holder_of(files)["pid"] == os.getpid()  # type: ignore[index]
    # One that is late, or whose clock is, and is heard of.
    _held_elsewhere(files, 2.0)
    alive = threading.Timer(0.6, _held_elsewhere, (files, 2.0))
    alive.start()
    with pytest.raises(TargetBusyError, match="by process 1 on other"), leases.brief_lease(files, "OUT"):
        pass
    alive.join()


def test_parts_at_work_keep_others_out(tmp_path: Path) -> None:
    files = Files.at(tmp_path / "out.receipts")
    refuse_parts(files, "OUT")
    share = Part(3, 8)
    with Lease(files, "part 3 of 8 of OUT", share.file, "part"):
        ((found, held),) = part_holders(files)
        assert (found, held["purpose"]) == (share, "part")
        with pytest.raises(TargetBusyError, match="part 3 of 8 of OUT is being written by process"):
            refuse_parts(files, "OUT")
        refuse_other_parts(files, "OUT", Part(1, 8))
        with pytest.raises(TargetBusyError, match="part 3 of 8 of OUT is being written by process"):
            refuse_other_parts(files, "OUT", Part(1, 4))
        with pytest.raises(TargetBusyError), Lease(files, "part 3 of 8 of OUT", share.file, "part"):
            pass
    assert list(part_holders(files)) == []


def test_leases_of_dead_processes_are_removed(tmp_path: Path) -> None:
    files = Files.at(tmp_path / "out.receipts")
    lease = Lease(files, "OUT", Part(1, 2).file, "part")
    lease.__enter__()
    content = files.get("part-1-of-2.json")
    lease.__exit__(None, None, None)
    assert content is not None
    # As it is after a kill: of a process of this machine that is not there.
    files.put("part-1-of-2.json", content.replace(f'"pid": {os.getpid()}'.encode(), b'"pid": 4194000'))
    refuse_parts(files, "OUT")
    assert list(files.names()) == []


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
