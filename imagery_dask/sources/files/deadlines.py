"""Limits to the time and size of a whole request, whatever the server sends, and whichever library receives it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from imagery_dask.config import config

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

__all__ = [
    "TooSlowError",
    "adapter_with_deadlines",
    "allow_for",
    "content_length",
    "deadline_of",
    "let_buckets_obey",
    "name_socket",
]

CONNECTIONS = 64
# An error of a bucket may be larger than a file that was asked for.
LARGEST_ERROR = 2**16


class TooSlowError(TimeoutError):
    """A server sends so slowly that the whole request takes too long."""


def content_length(headers: Any) -> int | None:
    """Return the length that the headers of an answer promise."""
    try:
        return int(headers["content-length"])
    except (KeyError, TypeError, ValueError):
        return None


def name_socket(connected: socket.socket | None) -> None:
    """Tell the deadline of this thread's request which socket it uses."""
    deadline: _Deadline | None = getattr(_current, "deadline", None)
    if deadline is not None:
        deadline.begin(connected)


def allow_for(received: int) -> None:
    """Allow this thread's request the time that bytes of its body take at the slowest rate."""
    deadline: _Deadline | None = getattr(_current, "deadline", None)
    if deadline is not None:
        deadline.end += received / config.get("requests.slowest_bytes_per_s")


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
        Time without that of the body, which `allow_for` adds.
    most : int, optional
        Largest body, where `allow_for` is not called: one that is announced to be larger is an error, too.
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
        name_socket(self.sock)
        response = super().getresponse(*arguments, **keywords)  # type: ignore[misc]
        deadline: _Deadline | None = getattr(_current, "deadline", None)
        if deadline is not None:
            deadline.answered(content_length(response.headers))
        return response


def _watched(pool: Any) -> Any:
    """Return a class of pools of urllib3 whose connections are watched."""
    connection = pool.ConnectionCls
    return type("Pool", (pool,), {"ConnectionCls": type("Connection", (_Watched, connection), {})})
