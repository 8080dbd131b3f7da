"""Answers of HTTP servers, parsed by httptools (llhttp), which takes a tenth of the time of `http.client`."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import TracebackType

import numpy as np
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from imagery_dask.sources.files.deadlines import allow_for, content_length

__all__ = ["Response"]

# Bytes that are received at once through the parser, among them the headers and all of a small body.
PIECE = 2**16 + 2**12
LARGEST_HEAD = 2**20
# A body that is not used is received up to this size, so that the connection can be used again.
UNUSED_AT_MOST = 2**16
CONTINUE = range(100, 200)


class Response:
    """The answer to a request; its body is received in pieces. A context manager that ends the request.

    Parameters
    ----------
    url : str
        What was requested.
    connected : socket.socket
        Where the answer arrives.
    done : callable
        Called with True when the request has ended if the connection can be used again, else with False.
    waits : bool
        Wait for the headers. Without, the caller calls `receive` when the socket has something.

    Attributes
    ----------
    status : int
        The status.
    headers : dict of str
        By name in lower case; lines of one name are joined.
    waited_s : float
        Seconds between the request and the headers, where the sender has set it.
    is_complete : bool
        Whether all of the body is there, or all that the server has sent before it closed the connection.

    Raises
    ------
    ConnectionError
        If the answer is not HTTP, or the server closes the connection before its headers end.
    OSError
        If the server does not answer in time.
    """

    def __init__(self, url: str, connected: socket.socket, done: Callable[[bool], None], waits: bool = True) -> None:
        self.url, self.status = url, 0
        self.headers: dict[str, str] = {}
        self.is_complete = self._is_reusable = False
        self._socket, self._done, self._waits = connected, done, waits
        self._parser = HttpResponseParser(_Parts(self))
        self._body: deque[bytes | memoryview] = deque()
        self._of_head = self._of_body = 0
        # Bytes of the body that are not received yet, where it has a length: the parser does not see them.
        self._missing = 0
        self._buffer: memoryview | None = None
        self._filled = 0
        self.waited_s = 0.0
        while waits and not self.status:
            self.receive()

    @property
    def size(self) -> int:
        """Number of bytes of the body that are there and not read."""
        return sum(map(len, self._body)) + self._filled

    def pieces(self, most: int) -> Iterator[bytes | memoryview]:
        """Yield the next `most` bytes of the body, or fewer at its end, as they are sent: they may be compressed."""
        while most > 0:
            while self._waits and not self._body and not self.is_complete:
                self.receive()
            if not self._body:
                return
            piece = self._body.popleft()
            if len(piece) > most:
                self._body.appendleft(piece[most:])
                piece = piece[:most]
            most -= len(piece)
            yield piece

    def read_up_to(self, most: int) -> bytes | memoryview:
        """Return the next `most` bytes of the body, or fewer at its end; many of them in a buffer."""
        self.expect(most)
        while self._buffer is not None and self._waits:
            self.receive()
        if len(self._body) == 1 and (len(self._body[0]) == most or (self.is_complete and len(self._body[0]) < most)):
            return self._body.popleft()
        return b"".join(self.pieces(most))

    def expect(self, most: int) -> None:
        """Receive the next `most` bytes of a body whose length is known into one buffer."""
        if self._missing and self._buffer is None and (room := min(most, self.size + self._missing)) > self.size:
            buffer, filled = np.empty(room, np.uint8).data, 0
            for piece in self._body:
                buffer[filled : filled + len(piece)] = piece
                filled += len(piece)
            self._body.clear()
            self._buffer, self._filled = buffer, filled

    def check_length(self, received: int, most: int) -> None:
        """Raise if a body of which up to `most` bytes were read is shorter than its ``Content-Length``."""
        promised = content_length(self.headers)
        if promised is not None and received <= most and promised != received:
            raise ConnectionError(f"the body was truncated: {received} of {promised} bytes")

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None and self._waits:
                self.read_up_to(UNUSED_AT_MOST)
        finally:
            self._done(kind is None and self.is_complete and self._is_reusable)

    def receive(self) -> int:
        """Receive some bytes, and return their number."""
        return self._receive_body() if self._missing else self._receive_parsed()

    def _receive_parsed(self) -> int:
        scratch = _scratch()
        received = self._socket.recv_into(scratch)
        allow_for(received)
        if not received:
            self._end()
        try:
            self._parser.feed_data(scratch[:received])
        except (HttpParserError, HttpParserUpgrade) as error:
            raise ConnectionError(f"its answer is not HTTP: {error}") from None
        if not self.status:
            self._of_head += received
            if self._of_head > LARGEST_HEAD:
                raise ConnectionError(f"its headers have more than {LARGEST_HEAD} bytes")
        elif not self.is_complete and "transfer-encoding" not in self.headers:
            self._missing = max(0, (content_length(self.headers) or 0) - self._of_body)
            self._is_reusable = self._is_reusable or (self._missing > 0 and self._parser.should_keep_alive())
        return received

    def _receive_body(self) -> int:
        if self._buffer is None:
            self._buffer = np.empty(min(self._missing, PIECE), np.uint8).data
        received = self._socket.recv_into(self._buffer[self._filled :])
        allow_for(received)
        self._filled += received
        self._missing -= received
        if not received:
            self._missing, self._is_reusable = 0, False  # `check_length` says how much is missing
        self.is_complete = not self._missing
        if self.is_complete or self._filled == len(self._buffer):
            if self._filled:
                self._body.append(self._buffer[: self._filled])
            self._buffer, self._filled = None, 0
        return received

    def _end(self) -> None:
        """End the answer, since the server has closed the connection."""
        if not self.status:
            raise ConnectionError("the server closed the connection without an answer")
        if "chunked" in self.headers.get("transfer-encoding", ""):
            raise ConnectionError("the body was truncated")
        # Without a length, this is its end.
        self.is_complete, self._is_reusable = True, False

    def _begin(self, headers: dict[str, str]) -> None:
        status = self._parser.get_status_code()
        if status not in CONTINUE:  # another answer follows
            self.status, self.headers = status, headers

    def _finish(self) -> None:
        if self.status:
            self.is_complete, self._is_reusable = True, self._parser.should_keep_alive()


class _Parts:
    """What the parser calls with the parts of an answer."""

    def __init__(self, response: Response) -> None:
        self._response, self._headers = response, dict[str, str]()

    def on_message_begin(self) -> None:
        self._headers = {}
        self._response._is_reusable = False  # more than one answer

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = _lower(name), str(value, "latin-1").strip()
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        if not self._response.is_complete:
            self._response._begin(self._headers)

    def on_body(self, content: bytes) -> None:
        if not self._response.is_complete:
            self._response._body.append(content)
            self._response._of_body += len(content)

    def on_message_complete(self) -> None:
        if not self._response.is_complete:
            self._response._finish()


@lru_cache(maxsize=256)
def _lower(name: bytes) -> str:
    return str(name, "latin-1").lower()


_of_thread = threading.local()


def _scratch() -> memoryview:
    """Return memory that is used by each answer of this thread in turn."""
    scratch: memoryview | None = getattr(_of_thread, "scratch", None)
    if scratch is None:
        scratch = _of_thread.scratch = memoryview(bytearray(PIECE))
    return scratch
