"""Connections that are kept: used again, replaced once the server has closed them, and limited in number."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from imagery_dask.sources.files import connections
from imagery_dask.sources.files.connections import NoConnectionError, close_idle, send


class Peer:
    """A server that answers each request of a connection, up to a number of requests, and counts connections."""

    def __init__(self, answer: bytes, requests: int) -> None:
        self.answer, self.requests, self.connections = answer, requests, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            for _ in range(self.requests):
                while line := lines.readline():
                    if line == b"\r\n":
                        connection.sendall(self.answer)
                        break
                else:
                    return


@contextmanager
def peer(answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", requests: int = 1000) -> Iterator[Peer]:
    close_idle()
    served = Peer(answer, requests)
    threading.Thread(target=served.serve, daemon=True).start()
    try:
        yield served
    finally:
        close_idle()
        served.socket.close()


def body(url: str) -> bytes:
    with send("GET", f"{url}/file", {}) as response:
        assert response.status in (200, 404)
        return response.read_up_to(100)


def test_a_connection_is_used_again() -> None:
    with peer() as server:
        assert [body(server.url) for _ in range(5)] == [b"ok"] * 5
        assert server.connections == 1


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    with peer(requests=1) as server:
        for _ in range(4):
            assert body(server.url) == b"ok"
            for kept in connections._idle(os.getpid())._connections.values():
                kept[-1].sock.recv(1, socket.MSG_PEEK)  # returns when the server has closed it
        assert server.connections == 4


@pytest.mark.parametrize("length", [0, 10, connections.UNUSED_AT_MOST, connections.UNUSED_AT_MOST + 1])
def test_bodies_that_are_not_read_do_not_reach_the_next_request(length: int) -> None:
    answer = f"HTTP/1.1 404 Not Found\r\nContent-Length: {length}\r\n\r\n".encode() + b"x" * length
    with peer(answer) as server:
        for _ in range(3):
            with send("GET", f"{server.url}/missing", {}) as response:
                assert response.status == 404
        assert server.connections == (1 if length <= connections.UNUSED_AT_MOST else 3)


def test_a_body_without_a_length_ends_its_connection() -> None:
    with peer(b"HTTP/1.1 200 OK\r\n\r\nall", requests=1) as server:
        assert [body(server.url) for _ in range(3)] == [b"all"] * 3
        assert server.connections == 3


def test_there_are_no_more_connections_than_requests_at_a_time() -> None:
    with peer() as server, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: body(server.url), range(200))) == [b"ok"] * 200
        assert server.connections <= 4


def test_kept_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SERVERS_KEPT", 2)
    monkeypatch.setattr(connections, "CONNECTIONS_KEPT", 1)
    with peer() as first, peer() as second, peer() as third:
        for server in (first, second, third):
            open_requests = [send("GET", server.url, {}) for _ in range(3)]
            for response in open_requests:
                with response:
                    assert response.read_up_to(10) == b"ok"
        kept = connections._idle(os.getpid())._connections
        assert [(host, len(idle)) for (_, host, _), idle in kept.items()] == [("127.0.0.1", 1)] * 2
        assert body(first.url) == b"ok"
        assert (first.connections, second.connections, third.connections) == (4, 3, 3)


def test_a_server_that_does_not_listen_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(NoConnectionError, match="refused"):
        send("GET", url, {})


@pytest.mark.parametrize("url", ["ftp://host/a", "http:///a", "http://host/a b", "http://host/\u00e9"])
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises((ValueError, OSError)):
        send("GET", url, {})


@pytest.mark.parametrize("proxy", ["socks5://host:1080", "https://host"])
def test_proxies_of_other_kinds_are_refused(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ValueError, match=r"proxy of (socks5|https)://"):
        send("GET", "http://volumes.invalid/em", {})
