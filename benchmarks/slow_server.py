"""A file server that waits before each answer, in its own process.

    python benchmarks/slow_server.py FOLDER SECONDS

It prints its port. It answers ``/in-flight`` with the number of requests, the largest number that waited at once and
their mean over the time in which any waited, all since the last such request.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path


class SlowServer:
    """Serves the files of a folder, each after `latency_s` seconds."""

    def __init__(self, root: Path, latency_s: float) -> None:
        self._root, self._latency_s = root, latency_s
        self._waiting, self._most, self._area, self._busy, self._since = 0, 0, 0.0, 0.0, time.monotonic()
        self._requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection, one after another."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode().partition("?")[0]
                writer.write(self._figures() if path == "/in-flight" else await self._file(path))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _file(self, path: str) -> bytes:
        self._requests += 1
        self._changed(1)
        await asyncio.sleep(self._latency_s)
        self._changed(-1)
        file = self._root / path.lstrip("/")
        return _answer(b"200 OK", file.read_bytes()) if file.is_file() else _answer(b"404 Not Found", b"")

    def _changed(self, by: int) -> None:
        now = time.monotonic()
        self._area += self._waiting * (now - self._since)
        self._busy += (now - self._since) if self._waiting else 0.0
        self._since, self._waiting = now, self._waiting + by
        self._most = max(self._most, self._waiting)

    def _figures(self) -> bytes:
        self._changed(0)
        mean = self._area / self._busy if self._busy else 0.0
        content = {"requests": self._requests, "most": self._most, "mean": mean}
        self._requests, self._most, self._area, self._busy = 0, self._waiting, 0.0, 0.0
        return _answer(b"200 OK", json.dumps(content).encode())


def _answer(status: bytes, content: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)


async def main() -> None:
    """Serve until the process is ended."""
    slow = SlowServer(Path(sys.argv[1]), float(sys.argv[2]))
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
