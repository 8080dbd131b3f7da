"""An HTTP server for a folder, with a request log and faults on demand.

It behaves like a static file server or a bucket: it serves whole files, ranges of files, and files stored compressed
(``NAME.gz``, ``NAME.br``) under their plain name with ``Content-Encoding``. A range of a compressed file is a range of
its stored bytes, as in object stores. CORS headers allow pages of any origin.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from imagery_dask.testing.cave import http_base
from imagery_dask.testing.cave.http_base import FaultHook, Handler, LoggingServer, corrupted

__all__ = ["Fault", "FaultHook", "FileServer", "Request"]

ENCODINGS = (("", None), (".gz", "gzip"), (".br", "br"))
#: Also sent with errors; otherwise a web page cannot tell a missing chunk from an unreachable server.
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*"}
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Fault(http_base.Fault):
    """A fault of a file server.

    Attributes
    ----------
    reset
        Reset the connection (RST) instead of answering; logged with status 0.
    """

    reset: bool = False


class Request(NamedTuple):
    """One answered request. ``path`` is unquoted, ``query`` and the headers are as sent."""

    method: str
    path: str
    range: str | None
    status: int
    cache_control: str | None = None
    authorization: str | None = None
    query: str = ""


class FileServer(LoggingServer[Request]):
    """Serve ``root`` on an ephemeral port of 127.0.0.1 while the ``with`` block lasts.

    Attributes
    ----------
    url : str
        ``http://127.0.0.1:PORT``, without a final slash.
    requests : list of Request
        A copy of the log, in the order of the answers.
    max_in_flight : int
        Largest number of requests answered at the same time since the last `reset`. A request whose answer is being
        sent does not count, because its client may already send the next one.
    latency_s : float
        Every request waits this long before it is answered.
    absent : tuple of int and bytes
        Status and body of the answer for a file that does not exist.
    faults : callable or None
        ``faults(path, n)``, as in `LoggingServer`; ``n`` counts requests of all methods and ranges.
    """

    def __init__(self, root: str | Path, *, latency_s: float = 0.0, faults: FaultHook | None = None) -> None:
        self.root = Path(root).resolve()
        self.absent: tuple[int, bytes] = HTTPStatus.NOT_FOUND, b"not found"
        super().__init__(_Handler, latency_s=latency_s, faults=faults)

    def count(self, which: str | Callable[[Request], bool] = "") -> int:
        """Return the number of answered requests whose path contains a string, or that satisfy a predicate."""
        if isinstance(which, str):
            return sum(which in request.path for request in self.requests)
        return sum(bool(which(request)) for request in self.requests)

    def find(self, path: str) -> tuple[Path, str | None] | None:
        """Return the file behind a URL path and its content encoding, or ``None`` if there is none."""
        for suffix, encoding in ENCODINGS:
            file = Path(f"{self.root}/{path.lstrip('/')}{suffix}").resolve()
            if file.is_relative_to(self.root) and file.is_file():
                return file, encoding
        return None


class _Handler(Handler):
    def do_GET(self) -> None:
        owner = self.server.owner
        path = unquote(urlsplit(self.path).path)
        try:
            with owner.answering(path) as nth:
                fault = owner.fault(path, nth)
                status, headers, body = self._answer(owner, path, fault)
            if getattr(fault, "reset", False):
                self._reset(path)
            else:
                self._send(path, status, {**headers, **fault.headers}, body, fault.cut)
        except ConnectionError:
            self.close_connection = True
        except BaseException as error:
            owner.failed(error)
            self._send(path, HTTPStatus.INTERNAL_SERVER_ERROR, {}, repr(error).encode(), None)

    do_HEAD = do_GET

    def _answer(self, owner: FileServer, path: str, fault: http_base.Fault) -> tuple[int, Mapping[str, str], bytes]:
        status, headers, body = self._read(owner, path)
        if fault.status is not None:
            status, headers, body = fault.status, {"Content-Type": "text/plain"}, fault.body
        return status, headers, corrupted(body) if fault.corrupt else body

    def _reset(self, path: str) -> None:
        self._record(path, 0)
        self.close_connection = True
        # Close the descriptor now; closing the file objects made from it would send a FIN before the RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def _read(self, owner: FileServer, path: str) -> tuple[int, dict[str, str], bytes]:
        file_and_encoding = owner.find(path)
        content: bytes | None = None
        if file_and_encoding is not None:
            file, encoding = file_and_encoding
            with suppress(FileNotFoundError):  # removed since
                content = file.read_bytes()
        if content is None:
            status, body = owner.absent
            return status, {"Content-Type": "text/plain"}, body
        size = len(content)
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if encoding is not None:
            headers["Content-Encoding"] = encoding
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None or match.group() == "bytes=-":
            return HTTPStatus.OK, headers, content
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= stop:
            return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"}, b""
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return HTTPStatus.PARTIAL_CONTENT, headers, content[start:stop]

    def _send(self, path: str, status: int, headers: Mapping[str, str], body: bytes, cut: int | None) -> None:
        self._record(path, int(status))
        self.send_answer(status, CORS | dict(headers), body, cut)

    def _record(self, path: str, status: int) -> None:
        headers = self.headers
        request = Request(
            self.command, path, headers.get("Range"), status, headers.get("Cache-Control"),
            headers.get("Authorization"), urlsplit(self.path).query,
        )  # fmt: skip
        self.server.owner.record(request)
