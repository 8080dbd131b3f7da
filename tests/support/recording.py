"""A dask cluster behind proxies that record its traffic; scheduler and workers are separate processes.

A proxy in front of the scheduler and of each worker records both directions of every connection. dask's compression is
off, so that the recorded bytes can be searched.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import requests

from support.ports import free_ports
from support.programs import environment

START_S = 60.0
PLAIN = {"DASK_DISTRIBUTED__COMM__COMPRESSION": "False", "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}


class RecordingProxy:
    """Forward connections to a port of 127.0.0.1 until the ``with`` block ends, and record their bytes.

    Parameters
    ----------
    port : int
        Port to forward to.

    Attributes
    ----------
    address : str
        ``tcp://127.0.0.1:PORT`` of the proxy.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._streams: list[bytearray] = []
        self._open: list[socket.socket] = []

    @property
    def recorded(self) -> list[bytes]:
        """The recorded bytes: one stream for each direction of each connection."""
        return [bytes(stream) for stream in self._streams]

    def __enter__(self) -> RecordingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for connection in [self._listener, *self._open]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                stream = bytearray()
                self._streams.append(stream)
                threading.Thread(target=_pass_on, args=(source, target, stream), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, stream: bytearray) -> None:
    with suppress(OSError):
        while content := source.recv(2**16):
            stream += content
            target.sendall(content)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class RecordedCluster:
    """A scheduler and workers behind proxies.

    Attributes
    ----------
    address : str
        Address of the scheduler, for clients.
    dashboard : str
        URL of the dashboard.
    proxies : list of RecordingProxy
        The proxies of the scheduler and of each worker.
    logs : list of Path
        Output files of the scheduler's and the workers' processes.
    workers : list of str
        Addresses of workers, as the scheduler knows them.
    """

    address: str
    dashboard: str
    proxies: list[RecordingProxy]
    logs: list[Path]
    workers: list[str]

    @property
    def recorded(self) -> list[bytes]:
        """The recorded bytes of all proxies."""
        return [stream for proxy in self.proxies for stream in proxy.recorded]

    def pages(self) -> dict[str, bytes]:
        """Return pages of the dashboard, including those of workers and tasks, by path and status."""
        contents: dict[str, bytes] = {}
        todo = [
            "/status", "/tasks", "/workers", "/graph", "/progress", "/system", "/health", "/sitemap.json",
            "/info/main/workers.html", "/info/main/exceptions.html", "/info/main/logs.html", "/info/logs.html",
            "/json/counts.json", "/json/identity.json", "/json/index.html", "/metrics", "/api/v1/get_workers",
        ]  # fmt: skip
        for worker in self.workers:
            escaped = requests.utils.quote(worker, safe="")
            todo += [f"/info/worker/{escaped}.html", f"/info/call-stacks/{escaped}.html", f"/info/logs/{escaped}.html"]
        for path in todo:
            with suppress(requests.RequestException):
                answer = requests.get(urljoin(self.dashboard, path), timeout=10)
                contents[f"{path} {answer.status_code}"] = answer.content
        return contents


@contextmanager
def recorded_cluster(folder: Path, variables: Mapping[str, str], workers: int = 2) -> Iterator[RecordedCluster]:
    """Run a scheduler and single-threaded workers, with additional environment variables, until the block ends."""
    folder.mkdir(parents=True)
    scheduler, dashboard, *ports = free_ports(2 + workers)
    with ExitStack() as stack:
        proxies = [stack.enter_context(RecordingProxy(port)) for port in (scheduler, *ports)]
        logs = [folder / name for name in ("scheduler.log", *(f"worker-{n}.log" for n in range(workers)))]
        env = environment(PLAIN | dict(variables))

        def start(log: Path, *arguments: object) -> None:
            output = stack.enter_context(log.open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=env,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)

        start(logs[0], "scheduler", "--host", "127.0.0.1", "--port", scheduler, "--dashboard-address",
              f"127.0.0.1:{dashboard}")  # fmt: skip
        _wait_for(scheduler, logs[0])
        for log, port, proxy in zip(logs[1:], ports, proxies[1:], strict=True):
            start(log, "worker", proxies[0].address, "--nthreads", 1, "--no-nanny", "--no-dashboard",
                  "--local-directory", folder / "scratch", "--listen-address", f"tcp://127.0.0.1:{port}",
                  "--contact-address", proxy.address)  # fmt: skip
        names = [proxy.address for proxy in proxies[1:]]
        yield RecordedCluster(proxies[0].address, f"http://127.0.0.1:{dashboard}", proxies, logs, names)


def _wait_for(port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"dask did not start:\n{log.read_text(errors='replace')[-4000:]}")
