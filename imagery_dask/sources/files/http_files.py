"""Read files over HTTP, and tell data from answers that are none.

Only 200 and 206 are data, and only 404 and 410 mean that a file does not exist. Other answers (204, redirects without
a target, login pages) are errors. Each request is limited in bytes and in time, whatever the server sends.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from imagery_dask.config import config
from imagery_dask.humanize import printable
from imagery_dask.urls import file_url, redacted, server_of, without_values

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session
    from requests.adapters import HTTPAdapter

    Auth = Callable[[PreparedRequest], PreparedRequest]

__all__ = [
    "Answer",
    "HttpFiles",
    "TooSlowError",
    "adapter_with_deadlines",
    "check_length",
    "deadline_of",
    "let_buckets_obey",
    "read_body",
]

CONNECTIONS = 64
REDIRECTS = 10
GONE = (404, 410)
HTML = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(?:\d+|\*)\s*", re.I)
# An error of a bucket may be larger than a file that was asked for.
LARGEST_ERROR = 2**16
# Bytes of a body that are read at once; the slowest server that is waited for sends them within the timeouts.
PIECE = 2**17


class Answer(NamedTuple):
    """Bytes of a file as stored, their headers, and the reason why they are not what was asked for, if any."""

    content: bytes
    headers: Any
    whole: bool
    damage: str = ""


class TooSlowError(TimeoutError):
    """A server sends so slowly that the whole request takes too long."""


class HttpFiles:
    """Files below a URL. Safe to use from many threads.

    Parameters
    ----------
    url : str
        An HTTP URL, in which characters are escaped that a URL cannot hold. Its query is sent with each request.
    auth : callable
        Returns requests' ``auth`` of a request, or None.
    """

    def __init__(self, url: str, auth: Callable[[], Auth | None]) -> None:
        self._url, self._auth = url, auth
        self._local = threading.local()

    def get(self, key: str, start: int | None, stop: int | None, most: int, fresh: bool) -> Answer | None:
        """Return a file, or its bytes ``start .. stop - 1``; None if it does not exist.

        Parameters
        ----------
        key : str
            Name of the file below the URL.
        start, stop : int or None
            Range of bytes; None for the whole file.
        most : int
            Largest possible size of the file. A larger one is damaged, and only `most` of its bytes are received.
        fresh : bool
            Bypass caches.

        Raises
        ------
        Exception
            Of requests, urllib3 or sockets. A ``requests.HTTPError`` has the answer as its ``response``.
        """
        headers = {"Cache-Control": "no-cache"} if fresh else {}
        if start is not None and stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
            most = stop - start
        with deadline_of(sum(config.get("requests.timeout_s"))), ExitStack() as stack:
            response, redirected = self._answer(file_url(self._url, key), headers)
            stack.enter_context(response)
            if response.status_code in GONE and (not redirected or _is_asked(response.url, key)):
                return None
            _check_status(response, redirected, ranged="Range" in headers)
            if response.status_code == 206:
                return _part(response, start or 0, stop, most)
            return _whole(response, start, most)

    def _answer(self, url: str, headers: dict[str, str]) -> tuple[Response, bool]:
        """Return the answer at the end of all redirects, whose bodies are not read, and True if there were any."""
        session, auth = self._session(), self._auth()
        server = server_of(url)
        for number in range(REDIRECTS):
            # The token, and the user and password of the URL, are only for the server that was asked.
            if server_of(url) != server:
                auth = None
            environment = self._environment(session, url)
            response = session.get(
                url, headers=headers, auth=auth or environment.login, stream=True,
                timeout=config.get("requests.timeout_s"), allow_redirects=False, **environment.options,
            )  # fmt: skip
            target = session.get_redirect_target(response)
            if target is None:
                return response, number > 0
            response.close()
            url = urljoin(response.url, target)
        raise ValueError(f"it redirects more than {REDIRECTS} times")

    def _session(self) -> Session:
        session: Session | None = getattr(self._local, "session", None)
        if session is None:
            from requests import Session

            session = self._local.session = Session()
            session.trust_env = False  # see `_environment`
            self._local.environments = {}
            for scheme in ("http://", "https://"):
                session.mount(scheme, _adapter(os.getpid()))
        return session

    def _environment(self, session: Session, url: str) -> _Environment:
        """Return what the environment says of a server, read once: requests would read it for each request."""
        known: dict[str, _Environment] = self._local.environments
        server = server_of(url)
        if server not in known:
            from requests.utils import get_netrc_auth

            session.trust_env = True
            settings = session.merge_environment_settings(url, {}, True, None, None)
            session.trust_env = False
            known[server] = _Environment({name: settings[name] for name in ("proxies", "verify")}, get_netrc_auth(url))
        return known[server]


class _Environment(NamedTuple):
    """What the environment says of a server: proxies and certificates, and the login of ``.netrc``."""

    options: dict[str, Any]
    login: tuple[str, str] | None


def _is_asked(url: str, key: str) -> bool:
    """Return True if a request was redirected to the same file elsewhere, not to a page such as a login."""
    return unquote(urlsplit(url).path).endswith("/" + key.lstrip("/"))


def _check_status(response: Response, redirected: bool, ranged: bool) -> None:
    """Raise `requests.HTTPError` unless an answer is data."""
    from requests import HTTPError

    status = response.status_code
    if status == 200 or (status == 206 and ranged):
        return
    via = f" at {redacted(response.url)}, to which the request was redirected" if redirected else ""
    meaning = "" if status >= 400 else ", which is neither data nor a missing file"
    text = f"HTTP {status}{via}{meaning}"
    if status in GONE:  # of another page; the file itself may exist
        raise ValueError(text)
    raise HTTPError(text, response=response)


def _part(response: Response, start: int, stop: int | None, most: int) -> Answer:
    """Return the answer to a request for a range."""
    content = read_body(response, most + 1)
    check_length(response, len(content), most)
    sent = response.headers.get("Content-Range")
    match = CONTENT_RANGE.fullmatch(sent or "")
    damage = _html_damage(content)
    if sent is not None and (match is None or int(match[1]) != start or (stop is not None and int(match[2]) >= stop)):
        damage = damage or f"bytes {start} to {stop} were requested, and the server sent {sent!r}"
    if len(content) > most:  # several parts, or another range
        damage = damage or f"bytes {start} to {stop} were requested, and the server sent more"
    return Answer(content[:most], response.headers, False, damage)


def _whole(response: Response, start: int | None, most: int) -> Answer:
    """Return an answer with the whole file, cut to the requested range, which a server may ignore."""
    page = ""
    for number, piece in enumerate(_pieces(response, start or 0)):
        page = _html_damage(piece) if number == 0 else page
    content = read_body(response, most if start is not None else most + 1)
    if start is not None:
        return Answer(content, response.headers, False, page or (_html_damage(content) if start == 0 else ""))
    check_length(response, len(content), most)
    damage = _html_damage(content)
    if len(content) > most:
        damage = damage or f"it has more than {most} bytes, more than it can have"
    return Answer(content[:most], response.headers, not damage, damage)


def read_body(response: Response, most: int) -> bytes:
    """Return the next `most` bytes of a body, or fewer at its end, without decompressing them."""
    return b"".join(_pieces(response, most))


def _pieces(response: Response, most: int) -> Iterator[bytes]:
    """Yield the next bytes of a body, and allow the request the time that they take at the slowest rate."""
    deadline: _Deadline | None = getattr(_current, "deadline", None)
    seconds_per_byte = 1 / config.get("requests.slowest_bytes_per_s")
    while most > 0 and (piece := response.raw.read(min(PIECE, most), decode_content=False)):
        if deadline is not None:
            deadline.end += seconds_per_byte * len(piece)
        most -= len(piece)
        yield piece


def _html_damage(content: bytes) -> str:
    if not HTML.match(content[:1024]):
        return ""
    title = re.search(rb"<title[^>]*>(.*?)</title>", content[:65536], re.I | re.S)
    name = without_values(redacted(printable(title[1].decode(errors="replace"))))[:100] if title else ""
    return f"the server answered with an HTML page{f' ({name!r})' if name else ''} instead of data"


def _content_length(response: Any) -> int | None:
    try:
        return int(response.headers["Content-Length"])
    except (KeyError, ValueError):
        return None


def check_length(response: Response, received: int, most: int) -> None:
    """Raise if a body that was read up to a limit is shorter than its ``Content-Length``."""
    promised = _content_length(response)
    if promised is not None and received <= most and promised != received:
        raise ConnectionError(f"the body was truncated: {received} of {promised} bytes")


class _Deadline:
    """The time at which a request must be complete, and the socket that is closed if it is not."""

    def __init__(self, end: float, most: int | None) -> None:
        self.end, self.most = end, most
        self.socket: socket.socket | None = None
        self.passed = self.is_too_large = False

    def begin(self, connected: socket.socket | None) -> None:
        """Take note of the socket of a request, or of another attempt at it."""
        self.socket = connected
        if self.passed:
            self.stop()

    def answered(self, length: int | None) -> None:
        """Allow the time that a body takes at the slowest rate, where others read it; stop it if it is too large."""
        if self.most is None:
            return
        self.is_too_large = (length or 0) > max(self.most + 1, LARGEST_ERROR)
        if self.is_too_large:
            self.stop()
        self.end += (self.most if length is None else length) / config.get("requests.slowest_bytes_per_s")

    def stop(self) -> None:
        """Shut the socket down."""
        if self.socket is not None:
            _shut_down(self.socket)

    def check(self, error: Exception | None = None) -> None:
        """Raise if the request was stopped."""
        if self.is_too_large:
            raise ValueError(f"it has more than {self.most} bytes, more than it can have") from error
        if self.passed:
            raise TooSlowError("the answer was not complete in time; the server sends too slowly") from error


class _Watch(threading.Thread):
    """A thread that shuts down the sockets of requests that take too long.

    Timeouts of sockets begin anew with each byte, so that a server which sends a byte a second holds a request for
    ever.
    """

    def __init__(self) -> None:
        super().__init__(name="imagery-dask-deadlines", daemon=True)
        self._deadlines: set[_Deadline] = set()
        self._changed = threading.Condition()

    def add(self, deadline: _Deadline) -> None:
        with self._changed:
            self._deadlines.add(deadline)
            if len(self._deadlines) == 1:
                self._changed.notify()

    def remove(self, deadline: _Deadline) -> None:
        with self._changed:
            self._deadlines.discard(deadline)

    def run(self) -> None:
        """Look at all requests twice a second, as long as there are any."""
        while True:
            with self._changed:
                self._changed.wait(0.5 if self._deadlines else None)
                now = time.monotonic()
                for deadline in [one for one in self._deadlines if one.end <= now]:
                    self._deadlines.discard(deadline)
                    deadline.passed = True
                    deadline.stop()


def _shut_down(connected: socket.socket) -> None:
    with suppress(OSError):  # closed meanwhile
        # Not the method of TLS sockets, which first detaches the TLS layer that another thread is reading from.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


_current = threading.local()


@contextmanager
def deadline_of(seconds: float, most: int | None = None) -> Iterator[None]:
    """End the request of this thread inside the block after some seconds, and those its body takes, with an error.

    Parameters
    ----------
    seconds : float
        Time without that of the body, which `read_body` adds.
    most : int, optional
        Largest body, where it is not read by `read_body`: one that is announced to be larger is an error, too.
    """
    deadline, watch = _Deadline(time.monotonic() + seconds, most), _watch(os.getpid())
    _current.deadline = deadline
    watch.add(deadline)
    try:
        yield
    except Exception as error:
        deadline.check(error)
        raise
    finally:
        watch.remove(deadline)
        _current.deadline = None
    deadline.check()  # the end of a body without a length may look like its regular end


@lru_cache(maxsize=1)
def _watch(process: int) -> _Watch:
    # Threads do not survive a fork, hence the process id.
    del process
    watch = _Watch()
    watch.start()
    return watch


@lru_cache(maxsize=1)
def _adapter(process: int) -> HTTPAdapter:
    del process
    return adapter_with_deadlines()


def adapter_with_deadlines() -> HTTPAdapter:
    """Return an adapter of requests whose connections obey `deadline_of`."""
    from requests.adapters import HTTPAdapter
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    pools = {"http": _watched(HTTPConnectionPool), "https": _watched(HTTPSConnectionPool)}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = pools

    return Adapter(pool_connections=8, pool_maxsize=CONNECTIONS)


def let_buckets_obey(protocol: str, connection: Any) -> None:
    """Let the requests of a connection of cloud-files to a bucket obey `deadline_of`.

    The pools of boto3 are private. A version that has others has only its own timeouts, between two pieces of a body.
    """
    if protocol == "gs":
        session = connection._bucket.client._http
        for scheme in ("http://", "https://"):
            session.mount(scheme, _adapter(os.getpid()))
    elif protocol == "s3":
        with suppress(AttributeError):
            session = connection._conn._endpoint.http_session
            pools = session._pool_classes_by_scheme  # of all its managers
            if not issubclass(pools["http"].ConnectionCls, _Watched):
                pools |= {scheme: _watched(pool) for scheme, pool in pools.items()}
                session._manager.clear()


class _Watched:
    """A connection of urllib3 that names its socket to the deadline of the thread's request."""

    sock: socket.socket | None

    def getresponse(self, *arguments: Any, **keywords: Any) -> Any:
        deadline: _Deadline | None = getattr(_current, "deadline", None)
        if deadline is not None:
            deadline.begin(self.sock)
        response = super().getresponse(*arguments, **keywords)  # type: ignore[misc]
        if deadline is not None:
            deadline.answered(_content_length(response))
        return response


def _watched(pool: Any) -> Any:
    """Return a class of pools of urllib3 whose connections are watched."""
    connection = pool.ConnectionCls
    return type("Pool", (pool,), {"ConnectionCls": type("Connection", (_Watched, connection), {})})
