"""Run a dask-gateway server on this machine, on free ports, whose clusters are processes of this user.

It writes to the given folder only. The server, its proxy and the processes of its clusters have ended when the ``with``
block ends.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from cluster.processes import START_TIMEOUT_S, process
from support.ports import free_ports

PACKAGES = ("dask_gateway", "dask_gateway_server", "sqlalchemy")
PASSWORD = "of the tests"

# Scheduler and workers run with this Python, whichever dask programs are on the PATH.
CONFIGURATION = """\
c.DaskGateway.address = "127.0.0.1:{private_port}"
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = {password!r}
c.Proxy.address = "127.0.0.1:{public_port}"
c.UnsafeLocalBackend.clusters_directory = {clusters!r}
c.UnsafeLocalBackend.sigint_timeout = 2
c.UnsafeLocalBackend.inherited_environment = {variables!r}
c.ClusterConfig.scheduler_cmd = [{python!r}, "-m", "distributed.cli.dask_scheduler"]
c.ClusterConfig.worker_cmd = [{python!r}, "-m", "distributed.cli.dask_worker", "--no-dashboard"]
c.ClusterConfig.worker_memory = "1 G"
"""


class GatewayUnavailable(RuntimeError):
    """dask-gateway-server is not installed."""


@dataclass(frozen=True)
class GatewayServer:
    """A running server.

    Attributes
    ----------
    address
        URL for clients.
    password
        Password that clients must give.
    folder
        Folder of the server's log and of the folders of its clusters.
    """

    address: str
    password: str
    folder: Path


@contextmanager
def gateway_server(folder: Path) -> Iterator[GatewayServer]:
    """Run a server in an empty folder.

    Raises
    ------
    GatewayUnavailable
        If a package is not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise GatewayUnavailable(f"dask-gateway-server[local] is not installed (missing: {', '.join(missing)})")
    private_port, public_port = free_ports(2)
    clusters = folder / "clusters"
    clusters.mkdir()
    configuration = folder / "gateway.py"
    configuration.write_text(
        CONFIGURATION.format(
            private_port=private_port, public_port=public_port, password=PASSWORD, clusters=str(clusters),
            variables=sorted({*os.environ, "PYTHONPATH"}), python=sys.executable,
        )
    )  # fmt: skip
    gateway = GatewayServer(f"http://127.0.0.1:{public_port}", PASSWORD, folder)
    command = [sys.executable, "-m", "dask_gateway_server", "--config", str(configuration)]
    with process(folder, "gateway", *command) as server:
        try:
            _wait_until_healthy(gateway)
            yield gateway
        finally:
            # Children have sessions of their own and would outlive a server that does not end in time.
            started = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
            server.terminate()
            with suppress(Exception):
                server.wait(30)
            for child in started:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


def _wait_until_healthy(gateway: GatewayServer) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(OSError), opener.open(f"{gateway.address}/api/health", timeout=5) as answer:
            if answer.status == 200:
                return
        if time.monotonic() > deadline:
            log = (gateway.folder / "gateway.log").read_text(errors="replace")
            raise RuntimeError(f"no gateway at {gateway.address} within {START_TIMEOUT_S:.0f} s:\n{log[-3000:]}")
        time.sleep(0.1)
