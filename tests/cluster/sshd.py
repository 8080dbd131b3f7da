"""Run an SSH server for a test: on loopback and a high port, with its own keys, for this user only."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.processes import process
from support.ports import free_port

START_TIMEOUT_S = 20.0
PRIVILEGES = Path("/run/sshd")  # Debian's sshd requires this folder when it runs as root

CONFIGURATION = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AcceptEnv PYTHONPATH
"""


class SshUnavailable(RuntimeError):
    """An SSH server cannot be run here."""


@dataclass(frozen=True)
class Sshd:
    """A running SSH server.

    Attributes
    ----------
    port
        Port on 127.0.0.1.
    key, known_hosts
        Private key and known hosts for a client.
    """

    port: int
    key: Path
    known_hosts: Path


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """Run an SSH server in an empty folder.

    Raises
    ------
    SshUnavailable
        openssh-server or asyncssh is not installed.
    """
    program = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if program is None:
        raise SshUnavailable("openssh-server is not installed")
    try:
        import asyncssh
    except ImportError:
        raise SshUnavailable("needs asyncssh: pip install 'imagery_dask[ssh]'") from None
    if os.getuid() == 0:
        PRIVILEGES.mkdir(exist_ok=True)
    for name in ("host_key", "user_key"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(folder / name)
        key.write_public_key(folder / f"{name}.pub")
        (folder / name).chmod(0o600)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port = free_port()
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd.conf").write_text(CONFIGURATION.format(port=port, folder=folder))
    with process(folder, "sshd", program, "-D", "-e", "-f", str(folder / "sshd.conf")):
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"no sshd:\n{(folder / 'sshd.log').read_text()}")
            time.sleep(0.1)
        yield Sshd(port, folder / "user_key", known_hosts)
