"""A real HTTP server over a folder, with a request log and faults on demand.

It serves what a static file server or a bucket's HTTP front would: whole files, ranges of files, and files
stored compressed (``NAME.gz``, ``NAME.br``) under their plain name with ``Content-Encoding``. A range of a
compressed file is a range of its stored bytes, as object stores do it.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

ENCODINGS = (("", None), (".gz", "gzip"), (".br", "br"))
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Request(NamedTuple):
    """One answered request: ``path`` is unquoted, without its query; ``range`` is the header as sent."""

    method: str
    path: str
    range: str | None
    status: int


@dataclass(frozen=True)
class Fault:
    """How one request is answered wrongly.

    Attributes
    ----------
    status
        Answer with this status, ``headers`` and ``body`` instead of the file; ``None`` serves the file,
        subject to the faults below.
    headers, body
        Headers to add (``Retry-After``), and the body that goes with ``status``.
    cut
        Promise the whole length, send this many bytes of the body, and close the connection.
    corrupt
        Invert the bits of the body's first 64 bytes: the length is right, the content is not.
    delay_s
        Wait this long before answering.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    corrupt: bool = False
    delay_s: float = 0.0


FaultHook = Callable[[str, int], Fault | None]


class FileServer:
    """Serve ``root`` on an ephemeral port of 127.0.0.1 while the ``with`` block lasts.

    Attributes
    ----------
    url : str
        ``http://127.0.0.1:PORT``, without a final slash.
    requests : list of Request
        A copy of the log, in the order of answering.
    max_in_flight : int
        The most requests that were ever being answered at once since the last `reset`.
    latency_s : float
        Every request waits this long before it is answered.
    faults : callable or None
        ``faults(path, n)`` is asked at each request, ``n`` counting from 1 the requests of that path since
        the last `reset` whatever their method or range; ``None`` means no fault. It runs in the server's
        threads: an exception of its own fails the request with 500 and is raised when the block ends.
    """

    def __init__(self, root: str | Path, *, latency_s: float = 0.0, faults: FaultHook | None = None) -> None:
        self.root = Path(root).resolve()
        self.latency_s = latency_s
        self.faults = faults
        self.max_in_flight = 0
        self._lock = threading.Lock()
        self._log: list[Request] = []
        self._nth: dict[str, int] = {}
        self._in_flight = 0
        self._errors: list[BaseException] = []
        self._closing = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[Request]:
        """A copy of the log of answered requests."""
        with self._lock:
            return list(self._log)

    def count(self, which: str | Callable[[Request], bool] = "") -> int:
        """Count the answered requests whose path contains a text, or that satisfy a predicate."""
        if isinstance(which, str):
            return sum(which in request.path for request in self.requests)
        return sum(bool(which(request)) for request in self.requests)

    def reset(self) -> None:
        """Forget the log, the counts per path that `faults` sees, and `max_in_flight`."""
        with self._lock:
            self._log.clear()
            self._nth.clear()
            self.max_in_flight = self._in_flight

    def close(self) -> None:
        """Stop serving, close every connection and wait for every thread."""
        self._closing.set()  # wakes whoever sleeps a latency or a delay
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()

    def __enter__(self) -> FileServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self._errors:
            raise self._errors[0]

    def find(self, path: str) -> tuple[Path, str | None] | None:
        """Return the file behind a URL path and its content encoding, or ``None`` if there is none."""
        for suffix, encoding in ENCODINGS:
            file = Path(f"{self.root}/{path.lstrip('/')}{suffix}").resolve()
            if file.is_relative_to(self.root) and file.is_file():
                return file, encoding
        return None

    @contextmanager
    def _answering(self, path: str) -> Iterator[int]:
        with self._lock:
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
            self._nth[path] = nth = self._nth.get(path, 0) + 1
        try:
            yield nth
        finally:
            with self._lock:
                self._in_flight -= 1

    def _record(self, request: Request) -> None:
        with self._lock:
            self._log.append(request)

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            self._errors.append(error)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._closing.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: FileServer) -> None:
        self.owner = owner
        self.connections: dict[threading.Thread, socket.socket] = {}
        self.connections_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # The standard library forgets daemon threads: idle keep-alive connections would outlive the server.
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self.connections_lock:
            self.connections[thread] = request
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.connections_lock:
                self.connections.pop(threading.current_thread(), None)

    def close_connections(self) -> None:
        with self.connections_lock:
            open_now = dict(self.connections)
        for connection in open_now.values():
            _hang_up(connection)
        for thread in open_now:
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are part of the tests; the handler keeps other errors."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        owner = self.server.owner
        path = unquote(urlsplit(self.path).path)
        with owner._answering(path) as nth:
            try:
                self._answer(owner, path, nth)
            except ConnectionError:
                self.close_connection = True
            except BaseException as error:
                owner._failed(error)
                self._send(path, HTTPStatus.INTERNAL_SERVER_ERROR, {}, repr(error).encode(), None)

    do_HEAD = do_GET

    def _answer(self, owner: FileServer, path: str, nth: int) -> None:
        fault = (owner.faults and owner.faults(path, nth)) or Fault()
        owner._sleep(owner.latency_s + fault.delay_s)
        if fault.status is not None:
            status, headers, body = fault.status, {"Content-Type": "text/plain"}, fault.body
        else:
            status, headers, body = self._read(owner, path)
        if fault.corrupt:
            body = bytes(255 - byte for byte in body[:64]) + body[64:]
        self._send(path, status, {**headers, **fault.headers}, body, fault.cut)

    def _read(self, owner: FileServer, path: str) -> tuple[int, dict[str, str], bytes]:
        found = owner.find(path)
        if found is None:
            return HTTPStatus.NOT_FOUND, {"Content-Type": "text/plain"}, b"not found"
        file, encoding = found
        size = file.stat().st_size
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if encoding is not None:
            headers["Content-Encoding"] = encoding
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None or match.group() == "bytes=-":
            return HTTPStatus.OK, headers, file.read_bytes()
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= stop:
            return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"}, b""
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        with file.open("rb") as opened:
            opened.seek(start)
            return HTTPStatus.PARTIAL_CONTENT, headers, opened.read(stop - start)

    def _send(self, path: str, status: int, headers: Mapping[str, str], body: bytes, cut: int | None) -> None:
        # Logged before it is sent: a client that has its answer finds it in the log.
        self.server.owner._record(Request(self.command, path, self.headers.get("Range"), int(status)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if cut is not None:
            self.close_connection = True  # unannounced: a connection that breaks says nothing beforehand
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `FileServer.requests` is the log."""


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side, or the handler, was faster
        connection.shutdown(socket.SHUT_RDWR)
