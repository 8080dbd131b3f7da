"""Requests follow the environment: proxies, and logins of ``.netrc``."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from imagery_dask.sources.files.http_files import Asked, HttpFiles


@pytest.fixture
def asked() -> list[tuple[str, str | None]]:
    """What the server was asked for: the request's target, and its login."""
    return []


@pytest.fixture
def server(asked: list[tuple[str, str | None]]) -> Iterator[str]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def read(url: str) -> None:
    files = HttpFiles(url, lambda _: {})
    for _ in range(2):
        answer = files.get(Asked("info", None, None, 10, fresh=False))
        assert answer is not None
        assert answer.content == b"ok"


def test_a_proxy_is_used(server: str, asked: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server)
    read("http://volumes.invalid/em")
    assert asked == [("http://volumes.invalid/em/info", None)] * 2


def test_hosts_without_proxy_are_asked_directly(
    server: str, asked: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid")
    read(f"{server}/em")  # no_proxy has 127.0.0.1
    assert asked == [("/em/info", None)] * 2


def test_a_login_of_netrc_is_sent(
    server: str, asked: list[tuple[str, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    read(f"{server}/em")
    assert asked == [("/em/info", f"Basic {base64.b64encode(b'ann:secret').decode()}")] * 2
