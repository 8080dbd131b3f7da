"""A worker whose network is cut in the middle: another one does its blocks, and what it still writes does no harm."""

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
    driver,
    export,
    receipts_so_far,
    settled,
    wait_for,
    write_sources,
)

pytestmark = pytest.mark.long


@pytest.fixture
def beside() -> Iterator[Network]:
    """Make one host beside this machine."""
    try:
        with network(1) as made:
            yield made
    except HostsUnavailable as reason:
        pytest.skip(str(reason))


def receipts_of(folder: Path, pid: int) -> int:
    return sum(file.stat().st_size for file in folder.glob(f"*.receipts/*/receipts-*-{pid}-*.bin"))


def test_a_worker_that_cannot_be_reached(tmp_path: Path, beside: Network) -> None:
    write_sources(tmp_path / "sources")
    (tmp_path / "expected").mkdir()
    (tmp_path / "export").mkdir()
    source = f"file://{tmp_path}/sources"
    with cluster(
        tmp_path / "cluster", host=beside.address, prefixes=[beside.hosts[0].prefix],
        more={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"},
    ) as running:  # fmt: skip
        far = running.running["worker0"]
        said = tmp_path / "driver.log"
        with_far = driver(export("zarr", tmp_path / "expected" / "out", source, "--cluster", running.address), said)
        assert with_far.wait() == 0, with_far.said
        expected = settled(tmp_path / "expected")
        process = driver(export("zarr", tmp_path / "export" / "out", source, "--cluster", running.address), said)
        folder = tmp_path / "export"
        wait_for(lambda: receipts_so_far(folder) >= 5 and (receipts_of(folder, far.pid) or process.code is not None))
        assert process.code is None, process.said
        beside.hosts[0].unplug()
        written, done = receipts_of(folder, far.pid), receipts_so_far(folder)
        assert process.wait(120) == 0, process.said
        assert "Traceback" not in process.said
    assert written
    assert done < receipts_so_far(folder)
    check_receipts(folder)
    assert_same(settled(folder), expected)


@pytest.mark.skipif(not MANY, reason="takes as long as TCP waits for an answer, 30 s")
def test_a_driver_that_is_cut_off_ends(tmp_path: Path, beside: Network) -> None:
    """Its connection says nothing: no process has died that could close it."""
    write_sources(tmp_path / "sources")
    (tmp_path / "export").mkdir()
    source = f"file://{tmp_path}/sources"
    with cluster(tmp_path / "cluster", host=beside.address) as running:
        arguments = export("zarr", tmp_path / "export" / "out", source, "--cluster", running.address)
        process = driver(arguments, tmp_path / "driver.log", prefix=beside.hosts[0].prefix)
        wait_for(lambda: receipts_so_far(tmp_path / "export") >= 3 or process.code is not None)
        assert process.code is None, process.said
        beside.hosts[0].unplug()
        assert process.wait(BOUND_S) == 1, process.said
        assert "scheduler is lost" in process.said
        assert "Traceback" not in process.said
        again = driver(arguments, tmp_path / "again.log")
        assert again.wait() == 0, again.said
    check_receipts(tmp_path / "export")
