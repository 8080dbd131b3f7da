"""Run several hosts on this machine: network namespaces on a bridge, each with its own address.

    this machine (the bridge) 10.211.N.1 --+-- host 1: 10.211.N.11
                                           +-- host 2: 10.211.N.12
                                           +-- ...

They share the machine's files and processors, but not its network: a link can be cut and joined again. A cut is
silent, like that of a cable behind a switch: packets are lost without a notification. When the ``with`` block ends,
processes in the namespaces are killed, and the namespaces, links and bridge are removed.
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
    """Network namespaces cannot be created here."""


@dataclass(frozen=True)
class Host:
    """A network namespace and its link to the bridge.

    Attributes
    ----------
    name
        Name of the namespace.
    address
        IP address of the host.
    hardware
        MAC address of the host.
    link, bridge
        Names of the link's end on this side, and of the bridge that it is plugged into.
    """

    name: str
    address: str
    hardware: str
    link: str
    bridge: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words that run a command on the host when placed before it."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Lose every packet from and to the host, without a notification to either side."""
        _ip("link", "set", self.link, "nomaster")

    def unplug(self) -> None:
        """Take the link down, which the host notices."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Plug the link in again."""
        _ip("link", "set", self.link, "master", self.bridge)
        _ip("link", "set", self.link, "up")


@dataclass(frozen=True)
class Network:
    """This machine and the hosts beside it.

    Attributes
    ----------
    address
        Address of this machine in the network.
    hosts
        The other hosts.
    """

    address: str
    hosts: tuple[Host, ...]


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Create hosts and remove them when the block ends.

    Raises
    ------
    HostsUnavailable
        The user may not create namespaces, or iproute2 is not installed.
    """
    number = _free_network()
    bridge, own_address = f"idb{os.getpid()}", f"10.211.{number}.1"
    hosts = tuple(
        Host(
            f"idhost{os.getpid()}-{index}", f"10.211.{number}.{FIRST + index}",
            f"02:d5:00:{number:02x}:00:{FIRST + index:02x}", f"idl{os.getpid()}-{index}", bridge,
        )
        for index in range(count)
    )  # fmt: skip
    with ExitStack() as stack:
        # Fix the bridge's MAC address, which otherwise changes with its ports.
        own_hardware = f"02:d5:00:{number:02x}:00:01"
        try:
            _ip("link", "add", bridge, "address", own_hardware, "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", b"") or str(error).encode()
            raise HostsUnavailable(
                f"network namespaces need root and iproute2: {reason.decode(errors='replace').strip()}"
            ) from None
        stack.callback(_ip_unchecked, "link", "del", bridge)
        _ip("addr", "add", f"{own_address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in hosts:
            stack.enter_context(_namespace(host))
        neighbours = {own_address: own_hardware, **{host.address: host.hardware for host in hosts}}
        for host in hosts:
            # Permanent neighbours need no ARP, so a lost packet is not answered with "no route to host".
            _ip("neigh", "replace", host.address, "lladdr", host.hardware, "dev", bridge, "nud", "permanent")
            for address, hardware in neighbours.items():
                if address != host.address:
                    entry = ("neigh", "replace", address, "lladdr", hardware, "dev", "eth0", "nud", "permanent")
                    _ip("-n", host.name, *entry)
        yield Network(own_address, hosts)


@contextmanager
def _namespace(host: Host) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            _ip("netns", "add", host.name)
        except subprocess.CalledProcessError as error:
            raise HostsUnavailable(f"network namespaces are not permitted: {error.stderr.decode().strip()}") from None
        stack.callback(_ip_unchecked, "netns", "del", host.name)
        stack.callback(_end_processes, host)
        inside = ("-n", host.name)
        _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        stack.callback(_ip_unchecked, "link", "del", host.link)
        _ip(*inside, "link", "set", "eth0", "address", host.hardware)
        _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            _ip(*inside, "link", "set", name, "up")
        host.join()
        yield


def _free_network() -> int:
    """Return the number of a network 10.211.N.0/24 that overlaps no route of this machine but the default one."""
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


def _ip_unchecked(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=False, capture_output=True)
