"""A file server that waits before each answer, in its own process.

    python benchmarks/slow_server.py FOLDER SECONDS

It prints its port. It sends ``NAME.gz`` for NAME, as gzip, where that is stored, and ranges of files. It answers
``/counts`` with the number of requests, the bytes of their answers, the largest number that waited at once and their
mean over the time in which any waited, all since the last such request.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path

RANGE = re.compile(rb"\r\nrange: *bytes=(\d*)-(\d*)", re.IGNORECASE)


class SlowServer:
    """Serves the files of a folder, each after `latency_s` seconds."""

    def __init__(self, root: Path, latency_s: float) -> None:
        self._root, self._latency_s = root, latency_s
        self._waiting, self._most, self._area, self._busy, self._since = 0, 0, 0.0, 0.0, time.monotonic()
        self._requests = self._bytes = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection, one after another."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode().partition("?")[0]
                writer.write(self._counts() if path == "/counts" else await self._file(path, head))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _file(self, path: str, head: bytes) -> bytes:
        self._requests += 1
        self._changed(1)
        await asyncio.sleep(self._latency_s)
        self._changed(-1)
        file = self._root / path.lstrip("/")
        packed = file.with_name(f"{file.name}.gz")
        if packed.is_file():
            content, status, fields = packed.read_bytes(), b"200 OK", b"Content-Encoding: gzip\r\n"
        elif not file.is_file():
            return _answer(b"404 Not Found", b"")
        elif asked := RANGE.search(head):
            with file.open("rb") as opened:
                size = opened.seek(0, 2)
                first, last = asked.groups()
                start = int(first) if first else max(0, size - int(last))
                stop = min(size, int(last) + 1) if first and last else size
                opened.seek(start)
                content = opened.read(stop - start)
            status, fields = b"206 Partial Content", b"Content-Range: bytes %d-%d/%d\r\n" % (start, stop - 1, size)
        else:
            content, status, fields = file.read_bytes(), b"200 OK", b"Accept-Ranges: bytes\r\n"
        content = b"" if head.startswith(b"HEAD") else content
        self._bytes += len(content)
        return _answer(status, content, fields)

    def _changed(self, by: int) -> None:
        now = time.monotonic()
        self._area += self._waiting * (now - self._since)
        self._busy += (now - self._since) if self._waiting else 0.0
        self._since, self._waiting = now, self._waiting + by
        self._most = max(self._most, self._waiting)

    def _counts(self) -> bytes:
        self._changed(0)
        mean = self._area / self._busy if self._busy else 0.0
        content = {"requests": self._requests, "bytes": self._bytes, "at once": self._most, "at once, mean": mean}
        self._requests, self._bytes, self._most, self._area, self._busy = 0, 0, self._waiting, 0.0, 0.0
        return _answer(b"200 OK", json.dumps(content).encode())


def _answer(status: bytes, content: bytes, fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(content), fields, content)


async def main() -> None:
    """Serve until the process is ended."""
    slow = SlowServer(Path(sys.argv[1]), float(sys.argv[2]))
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
