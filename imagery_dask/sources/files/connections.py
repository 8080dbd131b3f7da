"""HTTP requests over connections that this process keeps open.

A request of requests costs five times as much Python, more than decoding a small chunk. Proxies, certificates and
logins are those that requests would take from the environment.
"""

from __future__ import annotations

import atexit
import base64
import os
import re
import select
import ssl
import threading
import time
from collections.abc import Mapping
from functools import lru_cache, partial
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies

from imagery_dask.config import config
from imagery_dask.sources.files.deadlines import name_socket
from imagery_dask.sources.files.response import Response
from imagery_dask.urls import server_of

__all__ = [
    "NoConnectionError",
    "Prepared",
    "Server",
    "basic_auth",
    "close_idle",
    "escaped",
    "give_back",
    "open_idle",
    "prepared",
    "send",
    "take_idle",
    "variables",
]

# Servers to which connections are kept while no request uses them, and connections to each.
SERVERS_KEPT = 8
CONNECTIONS_KEPT = 256
PORTS = {"http": 80, "https": 443}
# All that `decompress` knows.
ACCEPTED = "gzip, deflate, br, zstd"
# Variables of the environment that requests follow.
VARIABLES = [
    *(name for kind in ("http", "https", "all", "no") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())),
    "NETRC", "HOME", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
]  # fmt: skip
INVALID = re.compile(r"[^\x21-\x7e]")
LINE_END = re.compile(r"[\r\n\0]")
END_OF_HOST = re.compile(r"[/?#]")
# Values of the variables; they are parts of keys, in memory only.
Variables = tuple[str | None, ...]


class NoConnectionError(ConnectionError):
    """No connection to a server can be made."""


def send(
    method: str,
    url: str,
    headers: Mapping[str, str],
    authorization: str | None = None,
    body: bytes | None = None,
    timeout_s: tuple[float, float] | None = None,
) -> Response:
    """Send a request, which follows no redirect.

    Parameters
    ----------
    method : str
        Such as "GET".
    url : str
        An HTTP URL without characters that have to be escaped. It may hold a user and a password.
    headers : dict of str
        Headers beside those that every request has.
    authorization : str, optional
        The ``Authorization`` header. Without, the login in ``.netrc`` or in the URL is sent.
    body : bytes, optional
        What is sent.
    timeout_s : tuple of 2 float, optional
        Seconds to connect, and between two pieces of the answer; ``requests.timeout_s`` by default.

    Raises
    ------
    NoConnectionError
        If there is no connection to the server.
    OSError, ValueError
        If the server does not answer, its answer is not HTTP, its certificate is not trusted, or the URL is invalid.
    """
    server, content = prepared(method, url, headers, authorization, body)
    connect_s, read_s = timeout_s or config.get("requests.timeout_s")
    connection = take_idle(server) or _connected(server, connect_s)
    try:
        connection.sock.settimeout(read_s)
        name_socket(connection.sock)
        connection.sock.sendall(content)
        sent = time.monotonic()
        response = Response(url, connection.sock, partial(give_back, server, connection))
        response.waited_s = time.monotonic() - sent
        return response
    except BaseException:
        connection.close()
        raise


class Prepared(NamedTuple):
    """The bytes of a request, and the server that they are sent to."""

    server: Server
    content: bytes


def variables() -> Variables:
    """Return the variables of the environment on which requests depend."""
    return tuple(map(os.environ.get, VARIABLES))


def prepared(
    method: str,
    url: str,
    headers: Mapping[str, str],
    authorization: str | None = None,
    body: bytes | None = None,
    known: Variables | None = None,
) -> Prepared:
    """Return a request and the server that it is sent to; see `send`.

    `known` are the `variables` of now, where many requests are made at once.
    """
    scheme, _, rest = url.partition("://")
    end = END_OF_HOST.search(rest)
    host, path = (rest, "/") if end is None else (rest[: end.start()], rest[end.start() :].partition("#")[0])
    start = _start(scheme, host, known or variables())
    sent = dict(headers)
    authorization = authorization or sent.pop("Authorization", None) or start.login
    if authorization:
        sent["Authorization"] = authorization
    if body is not None:
        sent["Content-Length"] = str(len(body))
    target = path if path.startswith("/") else f"/{path}"
    lines = [f"{name}: {value}" for name, value in sent.items()]
    if INVALID.search(target) or any(map(LINE_END.search, lines)):
        raise ValueError("the URL, or a header, has characters that it cannot have")
    head = "\r\n".join([f"{method} {start.before_target}{target} HTTP/1.1", *start.lines, *lines, "", ""])
    return Prepared(start.server, head.encode("latin-1") + (body or b""))


class _Start(NamedTuple):
    """What all requests to a server have in common (RFC 9112)."""

    server: Server
    lines: list[str]
    login: str | None
    before_target: str


@lru_cache(maxsize=256)
def _start(scheme: str, netloc: str, known: Variables) -> _Start:
    url = f"{scheme}://{netloc}"
    parts, environment = urlsplit(url), _environment(server_of(url), known)
    if scheme not in PORTS or not parts.hostname:
        raise ValueError(f"{scheme}://{parts.hostname or ''} is not a server of HTTP")
    server = Server(scheme, parts.hostname, parts.port or PORTS[scheme], environment)
    host, proxy = netloc.rpartition("@")[2], environment.proxy
    sent = {"Host": host, "User-Agent": "imagery-dask", "Accept": "*/*", "Accept-Encoding": ACCEPTED}
    if proxy is not None and scheme == "http" and (login := _login_of(proxy)):
        sent["Proxy-Authorization"] = login
    if INVALID.search(host):
        raise ValueError("the URL has characters that it cannot have")
    lines = [f"{name}: {value}" for name, value in sent.items()]
    through_proxy = proxy is not None and scheme == "http"
    return _Start(server, lines, environment.login or _login_of(parts), f"http://{host}" if through_proxy else "")


def take_idle(server: Server) -> HTTPConnection | None:
    """Return an open connection that no request uses, if there is one."""
    return _idle(os.getpid()).take(server)


def open_idle(server: Server, connect_s: float) -> None:
    """Open a connection for a request to come."""
    give_back(server, _connected(server, connect_s), True)


def give_back(server: Server, connection: HTTPConnection, is_reusable: bool) -> None:
    """Keep a connection for the next request, or close it."""
    _idle(os.getpid()).done(server, connection, is_reusable)


def close_idle() -> None:
    """Close the connections that no request uses."""
    _idle(os.getpid()).close()


def basic_auth(user: str, password: str) -> str:
    """Return the ``Authorization`` header of a user and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class _Environment(NamedTuple):
    """What the environment says of a server: its proxy, certificates of authorities, and the login in ``.netrc``."""

    proxy: SplitResult | None
    authorities: str
    login: str | None


class Server(NamedTuple):
    """A server, and how it is reached: connections through a proxy are not used without it."""

    scheme: str
    host: str
    port: int
    environment: _Environment


@lru_cache(maxsize=256)
def _environment(server: str, variables: tuple[str | None, ...]) -> _Environment:
    """Read what the environment says of a server, again only if one of its variables has changed."""
    del variables
    proxy = login = None
    # requests, whose import takes a tenth of a second, knows more of `no_proxy` than the standard library.
    if getproxies():
        from requests.utils import get_environ_proxies, select_proxy

        proxy = select_proxy(server, get_environ_proxies(server))
    if any(path.exists() for path in _login_files()):
        from requests.utils import get_netrc_auth

        found = get_netrc_auth(server)
        login = basic_auth(*found) if found else None
    authorities = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or ""
    return _Environment(_proxy(proxy), authorities, login)


def _login_files() -> list[Path]:
    named = os.environ.get("NETRC")
    return [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]


def _proxy(url: str | None) -> SplitResult | None:
    if not url:
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the environment names a proxy of {parts.scheme}://, and only http:// is supported")
    return parts


class _Idle:
    """Open connections that no request uses, by server; the servers that were not asked for longest come first."""

    def __init__(self) -> None:
        self._connections: dict[Server, list[HTTPConnection]] = {}
        self._lock = threading.Lock()

    def take(self, server: Server) -> HTTPConnection | None:
        """Return a connection that is open still, if there is one."""
        while True:
            with self._lock:
                connections = self._connections.get(server)
                if not connections:
                    return None
                connection = connections.pop()
            if _is_quiet(connection):
                return connection
            connection.close()

    def done(self, server: Server, connection: HTTPConnection, is_reusable: bool) -> None:
        """Keep a connection for the next request, or close it."""
        unused = [connection]
        if is_reusable and connection.sock is not None:
            with self._lock:
                connections = self._connections[server] = self._connections.pop(server, [])
                connections.append(connection)
                unused = connections[:-CONNECTIONS_KEPT]
                del connections[:-CONNECTIONS_KEPT]
                if len(self._connections) > SERVERS_KEPT:
                    unused += self._connections.pop(next(iter(self._connections)))
        for connection in unused:
            connection.close()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for connections in self._connections.values():
                for connection in connections:
                    connection.close()
            self._connections.clear()


@lru_cache(maxsize=1)
def _idle(process: int) -> _Idle:
    # Connections do not survive a fork, hence the process id.
    del process
    idle = _Idle()
    atexit.register(idle.close)
    return idle


def _is_quiet(connection: HTTPConnection) -> bool:
    """Return False if the server has closed a connection, or sent what nobody asked for."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)


def _connected(server: Server, connect_s: float) -> HTTPConnection:
    """Return a new connection to a server."""
    scheme, host, port, environment = server
    proxy = environment.proxy
    place = (host, port) if proxy is None else (proxy.hostname or "", proxy.port or PORTS["http"])
    if scheme == "http":
        connection = HTTPConnection(*place, timeout=connect_s)
    else:
        connection = HTTPSConnection(*place, timeout=connect_s, context=_context(environment.authorities, os.getpid()))
        if proxy is not None:
            login = _login_of(proxy)
            connection.set_tunnel(host, port, {"Proxy-Authorization": login} if login else {})
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise ValueError(
            f"the certificate of {host} is not trusted ({error.verify_message}); REQUESTS_CA_BUNDLE names a file with "
            "the authorities to trust"
        ) from error
    except OSError as error:
        connection.close()
        raise NoConnectionError(f"no connection: {error}") from error
    return connection


@lru_cache(maxsize=8)
def _context(authorities: str, process: int) -> ssl.SSLContext:
    import certifi

    del process
    is_folder = os.path.isdir(authorities)
    return ssl.create_default_context(
        cafile=None if is_folder else authorities or certifi.where(), capath=authorities if is_folder else None
    )


def _login_of(parts: SplitResult) -> str | None:
    """Return the login that a URL holds."""
    if not (parts.username or parts.password):
        return None
    return basic_auth(unquote(parts.username or ""), unquote(parts.password or ""))


def escaped(target: str) -> str:
    """Return the target of a redirect, a header, with those characters escaped that a URL cannot hold."""
    return quote(target.encode("latin-1"), safe="!#$%&'()*+,/:;=?@[]~")
