"""Fixtures of the integration tests, among them a cluster that they share, since starting one takes seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from support.programs import Done
from support.settings import Configure
from support.streams import without_dashboard

from imagery_dask.cli import main
from imagery_dask.export.planning import sampling
from imagery_dask.sources import handle


@pytest.fixture(scope="session")
def processes() -> Iterator[Client]:
    """Two worker processes of one thread each; not dask's default client, so a test must pass it explicitly."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of a scheduler with one worker of one thread, in this process, for commands."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for the demo volume, which takes seconds to write: one for all processes of this run."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"


@pytest.fixture
def small_blocks(configure: Configure) -> int:
    """Set export blocks to 128 KiB, so that volumes of a megabyte have several; return the number of bytes."""
    configure("export.block_bytes", 2**17)
    return 2**17


@pytest.fixture
def sampled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write sample blocks in this process, which saves the seconds of imports in a process of their own."""
    monkeypatch.setattr(sampling, "_is_here", lambda volume: True)


@pytest.fixture(autouse=True)
def _forget_open_volumes() -> None:
    """Forget the volumes that this process opened, since a later server may get the address of an earlier one."""
    handle._volumes.clear()


@pytest.fixture(autouse=True)
def _short_lease_check(configure: Configure) -> None:
    """Shorten the wait after taking a lease in a bucket, since nobody competes for it here (`tests/faults` does)."""
    configure("lease.look_again_s", 0.05)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run ``imagery-dask`` in this process, which saves the seconds of imports in a new interpreter."""

    def call(*arguments: Any) -> Done:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["imagery-dask", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return Done(int(stopped.value.code or 0), captured.out, without_dashboard(captured.err))

    return call
