"""Servers that programs read from, each a process of its own that counts requests and bytes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

Counts = dict[str, Any]
Served = tuple[str, Callable[[], Counts]]  # a URL, and the counts since the last call

NGINX = """
daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/error.log; {user}
events {{ worker_connections 1024; }}
http {{
    log_format counts "$request_uri $body_bytes_sent"; access_log {work}/access.log counts;
    client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    sendfile on; tcp_nopush on; gzip_static on; keepalive_requests 1000000; default_type application/octet-stream;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


class Missing(Exception):
    """A program that a server needs is not installed."""


@contextmanager
def nginx(root: Path, work: Path) -> Iterator[Served]:
    """Serve a folder by nginx; yield its URL, and a function that returns the counts since its last call."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise Missing("nginx is not installed (Debian: apt-get install nginx-light)")
    work.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = "user root root;" if os.geteuid() == 0 else ""
    log = work / "access.log"
    log.unlink(missing_ok=True)
    config = work / "nginx.conf"
    config.write_text(NGINX.format(work=work.resolve(), root=root.resolve(), port=port, user=user))
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([program, "-p", work, "-c", config.resolve()]) as process, log.open("a+") as lines:
        _wait_for(port, process)
        try:
            yield url, lambda: _of_log(lines, url)
        finally:
            process.terminate()


def _of_log(lines: Any, url: str) -> Counts:
    """Return the counts of new lines. One worker writes them in order, so that a last request closes the list."""
    last = f"/last-{time.monotonic_ns()}"
    with suppress(OSError):  # HTTP 404
        urlopen(url + last)
    requests = size = 0
    while True:
        path, _, sent = lines.readline().strip().rpartition(" ")
        if path == last:
            return {"requests": requests, "bytes": size}
        if path.startswith("/last-"):
            continue
        if path:
            requests, size = requests + 1, size + int(sent)
        else:
            time.sleep(0.01)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        if process.poll() is not None:
            raise RuntimeError("nginx does not start; see its error.log")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise RuntimeError("nginx does not listen")


@contextmanager
def slow(root: Path, latency_s: float) -> Iterator[Served]:
    """Serve a folder, each answer after some seconds."""
    with _printing([str(Path(__file__).with_name("slow_server.py")), str(root), str(latency_s)]) as port:
        url = f"http://127.0.0.1:{port}"
        yield url, lambda: dict(json.load(urlopen(f"{url}/counts")))


@contextmanager
def bucket() -> Iterator[Served]:
    """Serve a bucket that counts what it is given and drops it."""
    with _printing([str(Path(__file__).with_name("put_server.py"))]) as port:
        url = f"http://127.0.0.1:{port}"
        yield url, lambda: dict(json.load(urlopen(f"{url}/counts")))


@contextmanager
def cave(folder: Path) -> Iterator[Served]:
    """Serve a dynamic segmentation; yield its source."""
    with _printing(["-m", "benchmarks.cave_server", str(folder)]) as line:
        source, url = line.split()
        yield source, lambda: dict(json.load(urlopen(url)))


@contextmanager
def _printing(arguments: list[str]) -> Iterator[str]:
    """Run Python with arguments; yield the line that it prints when it serves."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
