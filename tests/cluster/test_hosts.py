"""Workers on separate hosts, one of which is cut off during an export: the others do its blocks.

Packets are lost silently, as when a switch fails or a node loses power: no connection is closed, and neither side is
notified. dask notices a lost host after `distributed.comm.timeouts.tcp`, 30 s by default.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster.hosts import Host, HostsUnavailable, Network, network
from cluster.processes import dask_processes
from distributed import Client
from integration.stores import files_of
from numpy.typing import NDArray
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.run import RunReport

pytestmark = pytest.mark.long

SHAPE = (128, 128, 64)
BLOCK = (16, 32, 16)
# Blocks that are written before a host is cut off, of 128.
CUT_AFTER = 20
# The shortest timeout that dask accepts; it gives up a host after about this time.
SILENCE_S = 11
# Short enough that TCP, which doubles its pauses, retransmits before that time is over.
OUTAGE_S = 2.0
BOUND_S = 60.0


@pytest.fixture(scope="module")
def three_hosts() -> Iterator[Network]:
    try:
        with network(3) as running:
            yield running
    except HostsUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def client(three_hosts: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Start a scheduler on this machine, and a worker on each host, for all tests: the last one loses a host."""
    settings = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{SILENCE_S}s"}
    prefixes = [host.prefix for host in three_hosts.hosts]
    folder = tmp_path_factory.mktemp("cluster")
    with (
        dask_processes(folder, workers=3, host=three_hosts.address, prefixes=prefixes, scheduler_env=settings) as file,
        Client(scheduler_file=str(file), set_as_default=False) as connected,
    ):
        connected.wait_for_workers(3, timeout=60)
        yield connected


def slow_volume(folder: Path) -> Any:
    """Return a cutout whose blocks take long enough to be interrupted."""

    def slowly(block: NDArray[Any]) -> NDArray[Any]:
        time.sleep(0.1)
        return block

    source = write_volume(folder / "em", coordinate_volume(SHAPE, dtype=np.uint8))
    cutout = ImageryClient(image_source=source).image_cutout([[0, 0, 0], SHAPE])
    return cutout.rechunk(BLOCK).map_blocks(slowly, dtype=cutout.dtype)


@dataclass
class Cut:
    """Progress callback that cuts a host off while it works on a block, and joins it again after a while.

    Parameters
    ----------
    client, host
        Client of the cluster, and the host to cut off.
    joined_after_s : float or None
        Seconds until the host is joined again; None for never.
    """

    client: Client
    host: Host
    joined_after_s: float | None = None
    cut_at: float | None = None
    done: int = 0
    joined_at: int | None = None

    def __call__(self, report: RunReport) -> None:
        self.done = report.done
        if self.cut_at is None and report.done >= CUT_AFTER and self._is_busy():
            self.host.cut()
            self.cut_at = time.monotonic()
            if self.joined_after_s is not None:
                # Use a timer: progress is not reported once the other hosts have done their blocks.
                threading.Timer(self.joined_after_s, self._join).start()

    def _join(self) -> None:
        self.host.join()
        self.joined_at = self.done

    def _is_busy(self) -> bool:
        return any(tasks for address, tasks in self.client.processing().items() if f"//{self.host.address}:" in address)


def addresses_of(client: Client) -> set[str]:
    return {address.rpartition("//")[2].rpartition(":")[0] for address in client.nthreads()}


def export_with(cut: Cut, folder: Path) -> RunReport:
    """Export on the cluster, compare with an export in this process, and return the report."""
    volume = slow_volume(folder)
    options: dict[str, Any] = {"chunks": BLOCK, "block_mib": 0.0079}
    remote_report = to_zarr(volume, folder / "remote.zarr", cluster=cut.client, progress=cut, **options)
    ended = time.monotonic()
    local_report = to_zarr(volume, folder / "local.zarr", progress=False, **options)
    assert cut.cut_at is not None, "the host was never busy"
    assert ended - cut.cut_at < BOUND_S
    assert remote_report.ok
    assert remote_report.failures == 0
    assert remote_report.done == remote_report.blocks == local_report.blocks == 128
    assert files_of(folder / "remote.zarr") == files_of(folder / "local.zarr")
    return remote_report


def test_hosts_are_removed_after_an_error() -> None:
    """This test is the first, since the hosts of a process have the same names."""
    running: list[tuple[Network, subprocess.Popen[bytes]]] = []

    def fail() -> None:
        with network(2) as hosts:
            running.append((hosts, subprocess.Popen([*hosts.hosts[1].prefix, "sleep", "600"])))
            hosts.hosts[0].cut()
            raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            fail()
    except HostsUnavailable as reason:
        pytest.skip(str(reason))
    ((hosts, process),) = running
    assert process.wait(10) == -signal.SIGKILL
    listing = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    listing += subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not [name for host in hosts.hosts for name in (host.name, host.link, host.bridge) if name in listing]


def test_a_host_that_is_joined_again_resumes_its_work(client: Client, three_hosts: Network, tmp_path: Path) -> None:
    """The outage is shorter than any timeout: TCP retransmits the lost packets, and the worker continues."""
    cut = Cut(client, three_hosts.hosts[0], joined_after_s=OUTAGE_S)
    export_with(cut, tmp_path)
    assert cut.joined_at is not None
    assert cut.joined_at < 128
    assert addresses_of(client) == {host.address for host in three_hosts.hosts}


ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""


def test_data_sent_during_a_cut_arrives_after_it(three_hosts: Network) -> None:
    host = three_hosts.hosts[0]
    command = [*host.prefix, sys.executable, "-c", ECHO, host.address, "7000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with socket.create_connection((host.address, 7000), timeout=10) as connection:
                for lose in (host.cut, host.unplug):
                    connection.sendall(b"before")
                    assert connection.recv(100) == b"before"
                    lose()
                    connection.sendall(b"meanwhile")
                    connection.settimeout(1)
                    with pytest.raises(TimeoutError):
                        connection.recv(100)
                    host.join()
                    connection.settimeout(20)
                    assert connection.recv(100) == b"meanwhile"
        finally:
            process.kill()


def test_other_hosts_do_the_blocks_of_one_that_is_cut_off(client: Client, three_hosts: Network, tmp_path: Path) -> None:
    first, second, third = three_hosts.hosts
    assert addresses_of(client) == {first.address, second.address, third.address}
    export_with(Cut(client, first), tmp_path)
    assert addresses_of(client) == {second.address, third.address}
