"""HTTPS: certificates that are trusted, directly and through a proxy."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cluster.certificates import Certificates, certificates

from imagery_dask.errors import SourceError
from imagery_dask.sources.files.connections import close_idle, send
from imagery_dask.sources.transport import Request, Transport


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
