"""A worker whose network is cut during an export: another worker does its blocks, and its late writes do no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.hosts import HostsUnavailable, Network, network
from faults.harness import (
    BOUND_S,
    MANY,
    assert_same,
    check_receipts,
    cluster,
    comparable_files,
    driver,
    export_arguments,
    receipts_so_far,
    wait_for,
    write_sources,
)

pytestmark = pytest.mark.long


@pytest.fixture
def one_host() -> Iterator[Network]:
    """Run one host beside this machine."""
    try:
        with network(1) as running:
            yield running
    except HostsUnavailable as reason:
        pytest.skip(str(reason))


def receipt_bytes_of(folder: Path, pid: int) -> int:
    """Return the total size of the receipts that one process has written."""
    return sum(file.stat().st_size for file in folder.glob(f"*.receipts/*/receipts-*-{pid}-*.bin"))


def test_blocks_of_an_unreachable_worker_are_done_by_another(tmp_path: Path, one_host: Network) -> None:
    write_sources(tmp_path / "sources")
    (tmp_path / "expected").mkdir()
    (tmp_path / "export").mkdir()
    source = f"file://{tmp_path}/sources"
    with cluster(
        tmp_path / "cluster", host=one_host.address, prefixes=[one_host.hosts[0].prefix],
        variables={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"},
    ) as running:  # fmt: skip
        remote_worker = running.running["worker0"]
        log = tmp_path / "driver.log"
        undisturbed = driver(
            export_arguments("zarr", tmp_path / "expected" / "out", source, "--cluster", running.address), log
        )
        assert undisturbed.wait() == 0, undisturbed.output
        expected = comparable_files(tmp_path / "expected")
        process = driver(
            export_arguments("zarr", tmp_path / "export" / "out", source, "--cluster", running.address), log
        )
        folder = tmp_path / "export"
        wait_for(
            lambda: (
                receipts_so_far(folder) >= 5
                and (receipt_bytes_of(folder, remote_worker.pid) or process.code is not None)
            )
        )
        assert process.code is None, process.output
        one_host.hosts[0].unplug()
        written, done = receipt_bytes_of(folder, remote_worker.pid), receipts_so_far(folder)
        assert process.wait(120) == 0, process.output
        assert "Traceback" not in process.output
    assert written
    assert done < receipts_so_far(folder)
    check_receipts(folder)
    assert_same(comparable_files(folder), expected)


@pytest.mark.skipif(not MANY, reason="takes as long as TCP waits for an answer, 30 s")
def test_a_driver_that_is_cut_off_exits_with_an_error(tmp_path: Path, one_host: Network) -> None:
    """No process has died that could close the connection, so only a timeout reveals the cut."""
    write_sources(tmp_path / "sources")
    (tmp_path / "export").mkdir()
    source = f"file://{tmp_path}/sources"
    with cluster(tmp_path / "cluster", host=one_host.address) as running:
        arguments = export_arguments("zarr", tmp_path / "export" / "out", source, "--cluster", running.address)
        process = driver(arguments, tmp_path / "driver.log", prefix=one_host.hosts[0].prefix)
        wait_for(lambda: receipts_so_far(tmp_path / "export") >= 3 or process.code is not None)
        assert process.code is None, process.output
        one_host.hosts[0].unplug()
        assert process.wait(BOUND_S) == 1, process.output
        assert "scheduler is lost" in process.output
        assert "Traceback" not in process.output
        again = driver(arguments, tmp_path / "again.log")
        assert again.wait() == 0, again.output
    check_receipts(tmp_path / "export")
