"""Leases: released after an interrupt, and taken over from processes that may have crashed."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from support.settings import Configure

from imagery_dask.errors import TargetBusyError
from imagery_dask.records import lease as leases
from imagery_dask.records.lease import Lease
from imagery_dask.storage.atomic_files import Files


@pytest.mark.parametrize("how", ["enters", "leaves"])
def test_an_interrupt_releases_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Also in a process that does not end, such as that of a notebook."""
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
    holder = {"id": "other", "host": "other", "pid": 1, "machine": "other", "purpose": "close"}
    files.put("lease.json", json.dumps(holder | {"renewed": time.time() - age_s}).encode())


def test_a_holder_that_may_have_crashed_is_waited_for(tmp_path: Path, configure: Configure) -> None:
    """Otherwise parts that are restarted soon would all leave closing the store to a dead process."""
    configure("lease.renew_s", 0.5)
    configure("lease.expires_s", 3.0)
    files = Files.at(tmp_path / "out.receipts")
    _held_elsewhere(files, 0.1)
    with pytest.raises(TargetBusyError, match="by process 1 on other"), leases.brief_lease(files, "OUT"):
        pass
    _held_elsewhere(files, 1.5)
    with leases.brief_lease(files, "OUT"):
        assert leases.holder_of(files)["pid"] == os.getpid()  # type: ignore[index]
    # A holder that renews late, or whose clock is late, is alive if it renews during the wait.
    _held_elsewhere(files, 2.0)
    alive = threading.Timer(0.6, _held_elsewhere, (files, 2.0))
    alive.start()
    with pytest.raises(TargetBusyError, match="by process 1 on other"), leases.brief_lease(files, "OUT"):
        pass
    alive.join()
