"""Limits to the time and size of a whole request, whatever the server sends, and whichever library receives it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from imagery_dask.config import config

__all__ = [
    "TooSlowError",
    "allow_for",
    "content_length",
    "deadline_of",
    "name_socket",
]


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

    def __init__(self, end: float) -> None:
        self.end = end
        self.socket: socket.socket | None = None
        self.passed = False

    def begin(self, connected: socket.socket | None) -> None:
        """Take note of the socket of a request, or of another attempt at it."""
        self.socket = connected
        if self.passed:
            self.stop()

    def stop(self) -> None:
        """Shut the socket down."""
        if self.socket is not None:
            _shut_down(self.socket)

    def check(self, error: Exception | None = None) -> None:
        """Raise if the request was stopped."""
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
def deadline_of(seconds: float) -> Iterator[None]:
    """End the request of this thread inside the block after some seconds, and those its body takes, with an error.

    Parameters
    ----------
    seconds : float
        Time without that of the body, which `allow_for` adds.
    """
    deadline, watch = _Deadline(time.monotonic() + seconds), _watch(os.getpid())
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
