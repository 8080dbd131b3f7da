"""Several hosts on this machine: network namespaces on a bridge, each with an address of its own.

    this machine (the bridge) 10.211.N.1 --+-- host 1: 10.211.N.11
                                           +-- host 2: 10.211.N.12
                                           +-- ...

They share its files and its processors, and nothing of its network: a link can be cut, and be joined again. A cut is
silent as that of a cable behind a switch is: packets are lost, and nobody is told. Processes that are left in them are
ended, and all of it is gone when the ``with`` block ends.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

FIRST = 11
NETWORKS = 250


class HostsUnavailable(RuntimeError):
    """Network namespaces cannot be made here."""


@dataclass(frozen=True)
class Host:
    """A namespace, and the end of its link that is on this side.

    Attributes
    ----------
    name
        Of the namespace.
    address
        Its own.
    hardware
        The same of its link.
    link, bridge
        Names of the link's end, and of the bridge it is plugged into.
    """

    name: str
    address: str
    hardware: str
    link: str
    bridge: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command begins with that is to run there."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Lose every packet from and to it, without a word to either side."""
        _ip("link", "set", self.link, "nomaster")

    def unplug(self) -> None:
        """Take its link down: the host sees that it has none."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Link it again."""
        _ip("link", "set", self.link, "master", self.bridge)
        _ip("link", "set", self.link, "up")


@dataclass(frozen=True)
class Network:
    """This machine and hosts beside it.

    Attributes
    ----------
    address
        Of this machine, for the hosts.
    hosts
        The others.
    """

    address: str
    hosts: tuple[Host, ...]


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Make some hosts.

    Raises
    ------
    HostsUnavailable
        For users who may not, and where iproute2 is not installed.
    """
    number = _free_network()
    bridge, here = f"idb{os.getpid()}", f"10.211.{number}.1"
    hosts = tuple(
        Host(
            f"idhost{os.getpid()}-{at}", f"10.211.{number}.{FIRST + at}", f"02:d5:00:{number:02x}:00:{FIRST + at:02x}",
            f"idl{os.getpid()}-{at}", bridge,
        )
        for at in range(count)
    )  # fmt: skip
    with ExitStack() as stack:
        # An address that stays as it is when ports come and go.
        own = f"02:d5:00:{number:02x}:00:01"
        try:
            _ip("link", "add", bridge, "address", own, "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            words = getattr(error, "stderr", b"") or str(error).encode()
            raise HostsUnavailable(
                f"network namespaces need root and iproute2: {words.decode(errors='replace').strip()}"
            ) from None
        stack.callback(_ip_if_there, "link", "del", bridge)
        _ip("addr", "add", f"{here}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in hosts:
            stack.enter_context(_namespace(host))
        neighbours = {here: own, **{host.address: host.hardware for host in hosts}}
        for host in hosts:
            # Who is never asked for is not missed: a lost packet is lost, and not answered with "no route to host".
            _ip("neigh", "replace", host.address, "lladdr", host.hardware, "dev", bridge, "nud", "permanent")
            for address, hardware in neighbours.items():
                if address != host.address:
                    entry = ("neigh", "replace", address, "lladdr", hardware, "dev", "eth0", "nud", "permanent")
                    _ip("-n", host.name, *entry)
        yield Network(here, hosts)


@contextmanager
def _namespace(host: Host) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            _ip("netns", "add", host.name)
        except subprocess.CalledProcessError as error:
            raise HostsUnavailable(f"network namespaces are not permitted: {error.stderr.decode().strip()}") from None
        stack.callback(_ip_if_there, "netns", "del", host.name)
        stack.callback(_end_processes, host)
        inside = ("-n", host.name)
        _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        stack.callback(_ip_if_there, "link", "del", host.link)
        _ip(*inside, "link", "set", "eth0", "address", host.hardware)
        _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            _ip(*inside, "link", "set", name, "up")
        host.join()
        yield


def _free_network() -> int:
    """Find a network of 10.211 that this machine has no route to but its default one."""
    try:
        routes = json.loads(_ip("-json", "-4", "route", "show", "table", "all") or b"[]")
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostsUnavailable(f"network namespaces need iproute2: {error}") from None
    known = [ipaddress.ip_network(route["dst"], strict=False) for route in routes if route["dst"][0].isdigit()]
    for offset in range(NETWORKS):
        number = (os.getpid() + offset) % NETWORKS
        wanted = ipaddress.ip_network(f"10.211.{number}.0/24")
        if not any(wanted.overlaps(taken) for taken in known if taken.prefixlen):
            return number
    raise HostsUnavailable("this machine has routes to all of 10.211.0.0/16")


def _end_processes(host: Host) -> None:
    for process in _ip("netns", "pids", host.name).split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def _ip(*arguments: str) -> bytes:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True).stdout


def _ip_if_there(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=False, capture_output=True)
