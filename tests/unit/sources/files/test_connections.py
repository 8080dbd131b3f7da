"""Connections are used again, replaced once the server has closed them, limited in number, and trusted if encrypted."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cluster.certificates import Certificates, certificates

from imagery_dask.errors import SourceError
from imagery_dask.sources.files import connections
from imagery_dask.sources.files.connections import NoConnectionError, close_idle, send
from imagery_dask.sources.files.response import UNUSED_AT_MOST
from imagery_dask.sources.requests.transport import Request, Transport


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
        # A client may close a connection before it has received all.
        with suppress(OSError), connection, connection.makefile("rb") as lines:
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


@pytest.mark.parametrize("length", [0, 10, UNUSED_AT_MOST, 2**22])
def test_bodies_that_are_not_read_do_not_reach_the_next_request(length: int) -> None:
    answer = f"HTTP/1.1 404 Not Found\r\nContent-Length: {length}\r\n\r\n".encode() + b"x" * length
    with peer(answer) as server:
        for _ in range(3):
            with send("GET", f"{server.url}/missing", {}) as response:
                assert response.status == 404
        assert server.connections == (1 if length <= UNUSED_AT_MOST else 3)


def test_a_body_without_a_length_ends_its_connection() -> None:
    with peer(b"HTTP/1.1 200 OK\r\n\r\nall", requests=1) as server:
        assert [body(server.url) for _ in range(3)] == [b"all"] * 3
        assert server.connections == 3


def test_a_connection_through_a_proxy_is_not_used_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in connections.VARIABLES:
        if "proxy" in name.lower():
            monkeypatch.delenv(name, raising=False)
    with peer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy") as proxy, peer() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert body(server.url) == b"proxy"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert body(server.url) == b"ok"
        monkeypatch.delenv("no_proxy")
        assert body(server.url) == b"proxy"
        assert (proxy.connections, server.connections) == (1, 1)


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
        assert [(host, len(idle)) for (_, host, *_), idle in kept.items()] == [("127.0.0.1", 1)] * 2
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


# ---------------------------------------------------------------------------------------------------- HTTPS


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


class _Tunnel(BaseHTTPRequestHandler):
    """A proxy that connects to what CONNECT names."""

    logins: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_CONNECT(self) -> None:
        self.logins.append((self.path, self.headers["Proxy-Authorization"]))
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port))) as server:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_relay, args=(server, self.connection), daemon=True)
            back.start()
            _relay(self.connection, server)
            back.join()

    def log_message(self, *_: object) -> None:
        pass


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(2**16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def certified(tmp_path: Path) -> Certificates:
    return certificates(tmp_path / "certificates", "server")


@pytest.fixture
def url(certified: Certificates) -> Iterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certified.cert, certified.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server, ExitStack() as stack:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        stack.callback(server.shutdown)
        stack.callback(close_idle)
        yield f"https://127.0.0.1:{server.server_port}"


@pytest.fixture
def proxy() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Tunnel) as server, ExitStack() as stack:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        stack.callback(server.shutdown)
        stack.callback(close_idle)
        _Tunnel.logins.clear()
        yield f"127.0.0.1:{server.server_port}"


def read(url: str) -> bytes:
    blob = Transport(f"precomputed://{url}/em").get(Request("info"))
    assert blob is not None
    return blob.content


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_authorities_of_the_environment_are_trusted(
    url: str, certified: Certificates, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(certified.ca))
    assert [read(url), read(url)] == [b"ok", b"ok"]


def test_a_certificate_that_is_not_trusted_is_an_error_at_once(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="certificate of 127.0.0.1 is not trusted.*REQUESTS_CA_BUNDLE"):
        read(url)


def test_a_certificate_of_another_host_is_not_trusted(
    url: str, certified: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certified.ca))
    with pytest.raises(ValueError, match="certificate of localhost is not trusted"):
        send("GET", url.replace("127.0.0.1", "localhost"), {})


def test_a_proxy_passes_what_is_encrypted(
    url: str, proxy: str, certified: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certified.ca))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://ann:se%40cret@{proxy}")
    assert [read(url), read(url)] == [b"ok", b"ok"]
    login = f"Basic {base64.b64encode(b'ann:se@cret').decode()}"
    assert _Tunnel.logins == [(url.removeprefix("https://"), login)]
