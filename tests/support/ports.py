"""Ports for servers whose port must be known before they start."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack

# Below the ports that a kernel gives to those who ask for any (Linux: from 32768, elsewhere from 49152): no client's
# connection and no server on port 0 takes one between its choice and its use. A seed of the system, since test
# processes that run side by side would choose alike from one of their own.
FIRST, END = 12_000, 32_000
_CHOOSE = random.SystemRandom()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Choose ports that nothing listens on; held together meanwhile, so that they differ."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            port = _CHOOSE.randrange(FIRST, END)
            tried = stack.enter_context(socket.socket())
            try:
                tried.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            found.append(port)
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """Choose one port that nothing listens on."""
    (port,) = free_ports(1, host)
    return port
