"""Clusters that the integration tests share: starting one takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster
from support.programs import Done
from support.settings import Configure
from support.streams import without_dashboard

from imagery_dask.cli import main
from imagery_dask.sources import handle


@pytest.fixture(scope="session")
def processes() -> Iterator[Client]:
    """Two worker processes of one thread each; not the default client, so that a test has to name it."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def small_blocks(configure: Configure) -> int:
    """Blocks of about 128 kB in exports, so that volumes of a megabyte have several; return that number."""
    configure("export.block_bytes", 2**17)
    return 2**17


@pytest.fixture(autouse=True)
def _nothing_open() -> None:
    """Forget the volumes that this process opened: a later server may get the address of an earlier one."""
    handle._volumes.clear()


@pytest.fixture(autouse=True)
def _soon_alone(configure: Configure) -> None:
    """Look again soon whether a lease in a bucket was kept: nobody else wants it (`tests/faults` has those who do)."""
    configure("lease.look_again_s", 0.05)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run ``imagery-dask`` in this process, which saves the seconds that an interpreter takes to import everything."""

    def call(*arguments: Any) -> Done:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["imagery-dask", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return Done(int(stopped.value.code or 0), captured.out, without_dashboard(captured.err))

    return call
