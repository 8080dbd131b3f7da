"""A base class of HTTP servers for tests: run in a ``with`` block, with a log, latency and faults on demand.

Subclasses and their handlers decide what is served.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

__all__ = ["Fault", "FaultHook", "Handler", "LoggingServer", "corrupted"]

Logged = TypeVar("Logged")


@dataclass(frozen=True)
class Fault:
    """A fault in the answer to one request.

    Attributes
    ----------
    status
        Answer with this status, ``headers`` and ``body`` instead of the correct answer; ``None`` answers correctly,
        except for the faults below.
    headers, body
        Headers to add (``Retry-After``), and the body of the answer with ``status``.
    cut
        Announce the whole length, send only this many bytes of the body, and close the connection.
    corrupt
        Invert the bits of the body's first 64 bytes; the length stays correct.
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


class LoggingServer(Generic[Logged]):
    """Answer requests on a port of 127.0.0.1 while the ``with`` block lasts.

    Parameters
    ----------
    handler : type
        Subclass of `Handler` that answers.
    latency_s : float
        Every request waits this long before it is answered.
    faults : callable, optional
        ``faults(name, n)`` is called at each request; ``n`` counts, from 1, the requests of that name (a path, an
        endpoint) since the last `reset`. ``None`` means no fault. It runs in the server's threads: an exception that
        it raises fails the request with 500 and is raised again when the block ends.
    port : int
        By default any free port.

    Attributes
    ----------
    max_in_flight : int
        Largest number of requests answered at the same time since the last `reset`. A request whose answer is being
        sent does not count, because its client may already send the next one.
    latency_s, faults
        As given; they may be set at any time.
    """

    def __init__(
        self, handler: type[Handler], *, latency_s: float = 0.0, faults: FaultHook | None = None, port: int = 0
    ) -> None:
        self.latency_s = latency_s
        self.faults = faults
        self.max_in_flight = 0
        self._lock = threading.Lock()
        self._log: list[Logged] = []
        self._nth: dict[str, int] = {}
        self._in_flight = 0
        self._errors: list[BaseException] = []
        self._closing = threading.Event()
        self._server = _Server(self, handler, port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The server's address, without a final slash."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[Logged]:
        """A copy of the log of answered requests, in the order of answering."""
        with self._lock:
            return list(self._log)

    def reset(self) -> None:
        """Forget the log, the counts that `faults` sees, and `max_in_flight`."""
        with self._lock:
            self._log.clear()
            self._nth.clear()
            self.max_in_flight = self._in_flight

    def close(self) -> None:
        """Stop serving, close every connection and wait for every thread."""
        self._closing.set()  # ends latencies and delays
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self._errors:
            raise self._errors[0]

    @contextmanager
    def answering(self, name: str) -> Iterator[int]:
        """Count a request as in flight inside the block; yields the number of requests of its name so far."""
        with self._lock:
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
            self._nth[name] = nth = self._nth.get(name, 0) + 1
        try:
            yield nth
        finally:
            with self._lock:
                self._in_flight -= 1

    def fault(self, name: str, nth: int) -> Fault:
        """Wait for the latency and the delay of a request, and return its fault."""
        fault = (self.faults and self.faults(name, nth)) or Fault()
        seconds = self.latency_s + fault.delay_s
        if seconds > 0:
            self._closing.wait(seconds)
        return fault

    def record(self, request: Logged) -> None:
        """Log an answer; called before it is sent, so that a client with an answer is sure to see it in the log."""
        with self._lock:
            self._log.append(request)

    def failed(self, error: BaseException) -> None:
        """Keep an error of the server itself, to be raised when the ``with`` block ends."""
        with self._lock:
            self._errors.append(error)


class Handler(BaseHTTPRequestHandler):
    """Handler of one connection: HTTP/1.1 with keep-alive, without output."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def send_answer(self, status: int, headers: Mapping[str, str], body: bytes, cut: int | None) -> None:
        """Send an answer, or only `cut` bytes of its body after announcing the whole length."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if cut is not None:
            self.close_connection = True  # without a Connection header, like a broken connection
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: `LoggingServer.requests` is the log."""


def corrupted(body: bytes) -> bytes:
    """Return a body whose first 64 bytes are inverted."""
    return bytes(255 - byte for byte in body[:64]) + body[64:]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: Any, handler: type[Handler], port: int) -> None:
        self.owner = owner
        self.connections: dict[threading.Thread, socket.socket] = {}
        self.connections_lock = threading.Lock()
        super().__init__(("127.0.0.1", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # The standard library does not track daemon threads, so that idle connections would outlive the server.
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
            with suppress(OSError):  # the client or the handler may have closed it already
                connection.shutdown(socket.SHUT_RDWR)
        for thread in open_now:
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: tests close connections on purpose, and the handler keeps other errors."""
