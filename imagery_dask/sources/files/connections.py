"""HTTP requests over connections that this process keeps open.

On `http.client` of the standard library: a request of requests costs four times as much Python, more than decoding a
small chunk. Proxies, certificates and logins are those that requests would take from the environment.
"""

from __future__ import annotations

import atexit
import base64
import os
import select
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies

from imagery_dask.config import config
from imagery_dask.sources.files.deadlines import allow_for, content_length, name_socket
from imagery_dask.urls import server_of

__all__ = ["NoConnectionError", "Response", "basic_auth", "close_idle", "escaped", "send"]

# Servers to which connections are kept while no request uses them, and connections to each.
SERVERS_KEPT = 8
CONNECTIONS_KEPT = 128
# A body that is not used is received up to this size, so that the connection can be used again.
UNUSED_AT_MOST = 2**16
PORTS = {"http": 80, "https": 443}
# All that `decompress` knows.
ACCEPTED = "gzip, deflate, br, zstd"
# Bytes of a body that are read at once; the slowest server that is waited for sends them within the timeouts.
PIECE = 2**17
# Variables of the environment that requests follow.
VARIABLES = [
    *(name for kind in ("http", "https", "all", "no") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())),
    "NETRC", "HOME", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
]  # fmt: skip
# Scheme, host and port.
Server = tuple[str, str, int]


class NoConnectionError(ConnectionError):
    """No connection to a server can be made."""


class Response:
    """The answer to a request; its body is read in pieces. A context manager that ends the request.

    Parameters
    ----------
    url : str
        What was requested.
    raw : http.client.HTTPResponse
        The answer, of which the body is not read yet.
    done : callable
        Called with True when the request has ended if the connection can be used again, else with False.
    """

    def __init__(self, url: str, raw: HTTPResponse, done: Callable[[bool], None]) -> None:
        self.url, self.status = url, raw.status
        #: By name in lower case; lines of one name are joined.
        self.headers: dict[str, str] = {}
        for name, value in raw.headers.items():
            name = name.lower()
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self._raw, self._done = raw, done

    def pieces(self, most: int) -> Iterator[bytes]:
        """Yield the next `most` bytes of the body, or fewer at its end, as they are sent: they may be compressed."""
        while most > 0 and (piece := self._raw.read(min(PIECE, most))):
            allow_for(len(piece))
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
            if kind is None and not self._raw.isclosed() and self._raw.length is not None:
                self._raw.read(UNUSED_AT_MOST)
        finally:
            # A body closes itself at its end.
            self._done(kind is None and self._raw.isclosed())


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
    OSError, http.client.HTTPException, ValueError
        If the server does not answer, its answer is not HTTP, its certificate is not trusted, or the URL is invalid.
    """
    parts, environment = urlsplit(url), _environment(server_of(url), tuple(map(os.environ.get, VARIABLES)))
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"{parts.scheme}://{parts.hostname or ''} is not a server of HTTP")
    key = (parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme])
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = {"User-Agent": "imagery-dask", "Accept": "*/*", "Accept-Encoding": ACCEPTED, **headers}
    authorization = authorization or environment.login or _login_of(parts)
    if authorization:
        sent["Authorization"] = authorization
    if environment.proxy is not None and parts.scheme == "http":
        target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
        if login := _login_of(environment.proxy):
            sent["Proxy-Authorization"] = login
    idle = _idle(os.getpid())
    connection = idle.take(key) or _connected(*key, environment, timeout_s or config.get("requests.timeout_s"))
    try:
        connection.request(method, target, body, sent)
        name_socket(connection.sock)
        return Response(url, connection.getresponse(), partial(idle.done, key, connection))
    except BaseException:
        connection.close()
        raise


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


def _connected(
    scheme: str, host: str, port: int, environment: _Environment, timeout_s: tuple[float, float]
) -> HTTPConnection:
    """Return a new connection to a server."""
    proxy = environment.proxy
    place = (host, port) if proxy is None else (proxy.hostname or "", proxy.port or PORTS["http"])
    connect_s, read_s = timeout_s
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
    connection.sock.settimeout(read_s)
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
    """Return the target of a redirect with those characters escaped that a URL cannot hold."""
    return quote(target, safe="!#$%&'()*+,/:;=?@[]~")
