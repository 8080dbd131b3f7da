"""Workers on hosts of their own, one of which is cut off in the middle of an export: the others do its blocks.

Packets are lost without a word, as they are where a switch fails or a node loses its power: no connection is closed,
and nobody is told. Who notices, and when, is dask's matter: `distributed.comm.timeouts.tcp`, 30 s by default.
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
# dask takes no less, and gives a host up after about so long.
SILENCE_S = 11
# Short enough that TCP, which doubles its pauses, has sent again before dask's own 30 s are over.
OUTAGE_S = 2.0
BOUND_S = 60.0


@pytest.fixture
def three_hosts() -> Iterator[Network]:
    try:
        with network(3) as made:
            yield made
    except HostsUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def silence_s() -> int:
    """How long the scheduler waits for a host that is silent: dask's default, but where a test has its own."""
    return 30


@pytest.fixture
def client(three_hosts: Network, silence_s: int, tmp_path: Path) -> Iterator[Client]:
    """Start a scheduler on this machine, and a worker on each host."""
    settings = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{silence_s}s"}
    prefixes = [host.prefix for host in three_hosts.hosts]
    (tmp_path / "cluster").mkdir()
    with (
        dask_processes(
            tmp_path / "cluster", workers=3, host=three_hosts.address, prefixes=prefixes, scheduler_env=settings
        ) as file,
        Client(scheduler_file=str(file), set_as_default=False) as made,
    ):
        made.wait_for_workers(3, timeout=60)
        yield made


def slow_volume(folder: Path) -> Any:
    """Give a cutout that takes long enough to be interrupted."""

    def slowly(block: NDArray[Any]) -> NDArray[Any]:
        time.sleep(0.1)
        return block

    source = write_volume(folder / "em", coordinate_volume(SHAPE, dtype=np.uint8))
    cutout = ImageryClient(image_source=source).image_cutout([[0, 0, 0], SHAPE])
    return cutout.rechunk(BLOCK).map_blocks(slowly, dtype=cutout.dtype)


@dataclass
class Cut:
    """Cuts a host off once it is in the middle of a block, and joins it again if it is to be.

    Parameters
    ----------
    client, host
        Of the cluster, and the host.
    joined_after_s : float or None
        How long it is cut off; None is until the end.
    """

    client: Client
    host: Host
    joined_after_s: float | None = None
    at: float | None = None
    done: int = 0
    joined_at: int | None = None

    def __call__(self, report: RunReport) -> None:
        self.done = report.done
        if self.at is None and report.done >= CUT_AFTER and self._is_busy():
            self.host.cut()
            self.at = time.monotonic()
            if self.joined_after_s is not None:
                # By the clock: the others may have done all that is theirs, and then nothing is reported.
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
    there = to_zarr(volume, folder / "there.zarr", cluster=cut.client, progress=cut, **options)
    ended = time.monotonic()
    here = to_zarr(volume, folder / "here.zarr", progress=False, **options)
    assert cut.at is not None, "the host was never busy"
    assert ended - cut.at < BOUND_S
    assert there.ok
    assert there.failures == 0
    assert there.done == there.blocks == here.blocks == 128
    assert files_of(folder / "there.zarr") == files_of(folder / "here.zarr")
    return there


@pytest.mark.parametrize("silence_s", [SILENCE_S])
def test_a_host_that_is_cut_off_until_the_end(client: Client, three_hosts: Network, tmp_path: Path) -> None:
    first, second, third = three_hosts.hosts
    assert addresses_of(client) == {first.address, second.address, third.address}
    export_with(Cut(client, first), tmp_path)
    assert addresses_of(client) == {second.address, third.address}


def test_a_host_that_is_joined_again(client: Client, three_hosts: Network, tmp_path: Path) -> None:
    """Before anybody gives it up: TCP sends again what was lost, and its worker goes on."""
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


def test_a_cut_is_silent_and_what_was_sent_arrives_when_it_is_over(three_hosts: Network) -> None:
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


def test_nothing_is_left_of_hosts_whatever_happens() -> None:
    running: list[tuple[Network, subprocess.Popen[bytes]]] = []

    def fail() -> None:
        with network(2) as made:
            running.append((made, subprocess.Popen([*made.hosts[1].prefix, "sleep", "600"])))
            made.hosts[0].cut()
            raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            fail()
    except HostsUnavailable as reason:
        pytest.skip(str(reason))
    ((made, process),) = running
    assert process.wait(10) == -signal.SIGKILL
    left = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    left += subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not [name for host in made.hosts for name in (host.name, host.link, host.bridge) if name in left]
