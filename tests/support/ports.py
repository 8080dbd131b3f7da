"""Ports for servers whose port must be known before they start."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack

# Below the kernel's ephemeral ports (from 32768 on Linux, from 49152 elsewhere), so that no client connection and no
# server on port 0 takes a port between its choice and its use. The system seeds the generator, so that test processes
# that run at the same time choose different ports.
FIRST, END = 12_000, 32_000
_CHOOSE = random.SystemRandom()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return distinct ports on which no process listens."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = _CHOOSE.randrange(FIRST, END)
            tried = stack.enter_context(socket.socket())
            try:
                tried.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            ports.append(port)
    return ports


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which no process listens."""
    (port,) = free_ports(1, host)
    return port
