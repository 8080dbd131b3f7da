"""``python put_server.py``: a bucket that takes objects, drops all but JSON, and counts them; prints its port.

It speaks as much of S3 as obstore and boto3 need to write objects and to read JSON.
"""

from __future__ import annotations

import asyncio
import json

ANSWER = b'HTTP/1.1 200 OK\r\nETag: "0"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: %d\r\n\r\n'
MISSING = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>There is none.</Message></Error>"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(MISSING)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

objects: dict[bytes, bytes] = {}
counts = {"requests": 0, "bytes": 0}


class Bucket(asyncio.Protocol):
    """A connection, on which one request follows another."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with nothing read."""
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.buffer, self.promised = transport, bytearray(), False

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are complete."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = bytes(self.buffer[:end]).split(b"\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
            size = int(headers.get(b"content-length", 0))
            if len(self.buffer) < end + 4 + size:
                if b"expect" in headers and not self.promised:
                    self.promised = True
                    self.transport.write(CONTINUE)
                return
            body = bytes(self.buffer[end + 4 : end + 4 + size])
            del self.buffer[: end + 4 + size]
            self.promised = False
            method, path, _ = first.split(b" ", 2)
            self.answer(method, path, body)

    def answer(self, method: bytes, path: bytes, body: bytes) -> None:
        """Keep an object, or return one."""
        if method == b"PUT":
            counts["requests"] += 1
            counts["bytes"] += len(body)
            if path.endswith(b".json"):
                objects[path] = body
            self.transport.write(ANSWER % 0)
        elif path == b"/counts":
            body = json.dumps(counts).encode()
            counts.update(requests=0, bytes=0)
            self.transport.write(ANSWER % len(body) + body)
        elif path in objects:
            self.transport.write(ANSWER % len(objects[path]) + (objects[path] if method == b"GET" else b""))
        else:
            self.transport.write(NOT_FOUND + (b"" if method == b"HEAD" else MISSING))


async def main() -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Bucket, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
