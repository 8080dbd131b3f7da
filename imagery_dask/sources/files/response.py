"""Answers of HTTP servers, parsed by httptools (llhttp), which takes a tenth of the time of `http.client`."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from imagery_dask.sources.files.deadlines import allow_for, content_length

__all__ = ["Response"]

# Bytes that are received at once; the slowest server that is waited for sends them within the timeouts.
PIECE = 2**17
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

    Attributes
    ----------
    status : int
        The status.
    headers : dict of str
        By name in lower case; lines of one name are joined.

    Raises
    ------
    ConnectionError
        If the answer is not HTTP, or the server closes the connection before its headers end.
    OSError
        If the server does not answer in time.
    """

    def __init__(self, url: str, connected: socket.socket, done: Callable[[bool], None]) -> None:
        self.url, self.status = url, 0
        self.headers: dict[str, str] = {}
        self._socket, self._done = connected, done
        self._parser = HttpResponseParser(_Parts(self))
        self._body: deque[bytes] = deque()
        self._is_complete = self._is_reusable = False
        received = 0
        while not self.status:
            received += self._receive()
            if received > LARGEST_HEAD:
                raise ConnectionError(f"its headers have more than {LARGEST_HEAD} bytes")

    def pieces(self, most: int) -> Iterator[bytes]:
        """Yield the next `most` bytes of the body, or fewer at its end, as they are sent: they may be compressed."""
        while most > 0:
            while not self._body and not self._is_complete:
                self._receive()
            if not self._body:
                return
            piece = self._body.popleft()
            if len(piece) > most:
                self._body.appendleft(piece[most:])
                piece = piece[:most]
            most -= len(piece)
            yield piece

    def read_up_to(self, most: int) -> bytes:
        """Return the next `most` bytes of the body, or fewer at its end."""
        return b"".join(self.pieces(most))

    def check_length(self, received: int, most: int) -> None:
        """Raise if a body of which up to `most` bytes were read is shorter than its ``Content-Length``."""
        promised = content_length(self.headers)
        if promised is not None and received <= most and promised != received:
            raise ConnectionError(f"the body was truncated: {received} of {promised} bytes")

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.read_up_to(UNUSED_AT_MOST)
        finally:
            self._done(kind is None and self._is_complete and self._is_reusable)

    def _receive(self) -> int:
        """Receive some bytes, and return their number."""
        content = self._socket.recv(PIECE)
        allow_for(len(content))
        if not content:
            self._end()
        try:
            self._parser.feed_data(content)
        except (HttpParserError, HttpParserUpgrade) as error:
            raise ConnectionError(f"its answer is not HTTP: {error}") from None
        return len(content)

    def _end(self) -> None:
        """End the answer, since the server has closed the connection."""
        if not self.status:
            raise ConnectionError("the server closed the connection without an answer")
        if "chunked" in self.headers.get("transfer-encoding", ""):
            raise ConnectionError("the body was truncated")
        # Without a length, this is its end. With one, `check_length` says how much is missing.
        self._is_complete, self._is_reusable = True, False

    def _begin(self, headers: dict[str, str]) -> None:
        status = self._parser.get_status_code()
        if status not in CONTINUE:  # another answer follows
            self.status, self.headers = status, headers

    def _finish(self) -> None:
        if self.status:
            self._is_complete, self._is_reusable = True, self._parser.should_keep_alive()


class _Parts:
    """What the parser calls with the parts of an answer."""

    def __init__(self, response: Response) -> None:
        self._response, self._headers = response, dict[str, str]()

    def on_message_begin(self) -> None:
        self._headers = {}
        self._response._is_reusable = False  # more than one answer

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        if not self._response._is_complete:
            self._response._begin(self._headers)

    def on_body(self, content: bytes) -> None:
        if not self._response._is_complete:
            self._response._body.append(content)

    def on_message_complete(self) -> None:
        if not self._response._is_complete:
            self._response._finish()
