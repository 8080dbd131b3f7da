"""Many files of a server, requested and received by one thread, which waits for all of them at once.

A thread for each request in flight would take twice the time: with every call that waits, threads hand Python's lock
to each other. Requests that need more than one answer (redirects, other regions), and those that fail, are left to
`HttpFiles.get`.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection

from imagery_dask.config import config
from imagery_dask.errors import REFUSED_STATUS
from imagery_dask.sources.files.connections import Server, give_back, open_idle, take_idle, variables
from imagery_dask.sources.files.deadlines import TooSlowError
from imagery_dask.sources.files.failures import THROTTLING_STATUS
from imagery_dask.sources.files.http_files import Answer, Asked, HttpFiles, StatusError
from imagery_dask.sources.files.in_flight import MOST
from imagery_dask.sources.files.response import Response

__all__ = ["NotDirectError", "fetch"]

# Seconds after which the limits of time are looked at.
LOOK_S = 0.5
# An answer for which this process waited longer than this has not waited for it.
WAITED_S = 0.0001


class NotDirectError(Exception):
    """The file is not received in one request."""


# A file, None if it does not exist, or why it was not received.
Outcome = Answer | None | Exception


def fetch(
    files: HttpFiles, asked: Sequence[Asked], run: Callable[[Callable[[], None]], object]
) -> Generator[tuple[int, Outcome], None, None]:
    """Yield the number of each file, and the file, in the order of arrival.

    Parameters
    ----------
    files : HttpFiles
        Where the files are.
    asked : sequence of Asked
        The files.
    run : callable
        Runs a function in another thread, in which a connection is opened.
    """
    loop = _Loop(files, asked, run)
    with files.link.used():
        try:
            while loop.is_busy:
                loop.start()
                done = loop.wait()
                loop.start()
                for index, outcome in done:
                    began = time.monotonic()
                    yield index, outcome
                    loop.paused_s += time.monotonic() - began
        finally:
            loop.close()


class _Flight:
    """A request in flight."""

    __slots__ = ("asked", "connection", "end", "heard", "index", "is_answered", "number", "response", "sent")

    def __init__(self, index: int, asked: Asked, url: str, server: Server, connection: HTTPConnection) -> None:
        self.index, self.asked, self.connection = index, asked, connection
        self.response = Response(url, connection.sock, partial(give_back, server, connection), waits=False)
        self.is_answered, self.number = False, connection.sock.fileno()
        self.sent = self.heard = self.end = 0.0


class _Loop:
    def __init__(self, files: HttpFiles, asked: Sequence[Asked], run: Callable[[Callable[[], None]], object]) -> None:
        self._files, self._asked, self._run = files, asked, run
        self._waiting = deque(range(len(asked)))
        self._flights: dict[int, _Flight] = {}
        self._done: list[tuple[int, Outcome]] = []
        self._poll, self._looked = select.poll(), time.monotonic()
        self._variables = variables()
        self._timeouts: tuple[float, float] = config.get("requests.timeout_s")
        self._slowest: float = config.get("requests.slowest_bytes_per_s")
        self._largest = max((one.size_limit for one in asked), default=1)
        # Connections that other threads open become idle ones, and a byte says so.
        self._opening, self._failed = 0, deque[Exception | None]()
        self._told, self._teller = socket.socketpair()
        self._told.setblocking(False)
        self._poll.register(self._told, select.POLLIN)
        #: Seconds in which this thread did something else, for which no server is to blame.
        self.paused_s = 0.0

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._flights or self._done)

    def start(self) -> None:
        """Send requests, as many as may be in flight, over idle connections; have more of them opened."""
        room = self._files.link.share(self._largest) - len(self._flights)
        while self._waiting and room > 0:
            index = self._waiting[0]
            asked = self._asked[index]
            try:
                url, request = self._files.request(asked, self._variables)
            except Exception as error:
                self._waiting.popleft()
                self._done.append((index, error))
                continue
            connection = take_idle(request.server)
            if connection is None:
                for _ in range(min(room, len(self._waiting)) - self._opening):
                    self._opening += 1
                    self._run(partial(self._open, request.server))
                return
            self._waiting.popleft()
            self._send(_Flight(index, asked, url, request.server, connection), request.content)
            room -= 1

    def wait(self) -> list[tuple[int, Outcome]]:
        """Wait until something arrives; return the files that are complete, and those that failed."""
        began = time.monotonic()
        ready = self._poll.poll(0 if self._done else 1000 * LOOK_S)
        now = time.monotonic()
        for number, _ in ready:
            if number == self._told.fileno():
                self._opened()
            else:
                self._receive(self._flights[number], now, now - began > WAITED_S)
        if now - self._looked > LOOK_S:
            self._end_slow(now - self.paused_s)
            self._looked = now
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Close what is in flight still."""
        for flight in self._flights.values():
            flight.connection.close()
        self._told.close()
        self._teller.close()

    def _open(self, server: Server) -> None:
        """Open a connection, in another thread."""
        failure = None
        try:
            open_idle(server, self._timeouts[0])
        except Exception as error:
            failure = error
        self._failed.append(failure)
        with suppress(OSError):  # the read has ended
            self._teller.send(b"1")

    def _opened(self) -> None:
        for _ in self._told.recv(MOST):
            self._opening -= 1
            failure = self._failed.popleft()
            if failure is not None and self._waiting:
                self._done.append((self._waiting.popleft(), failure))

    def _send(self, flight: _Flight, content: bytes) -> None:
        connected = flight.connection.sock
        try:
            connected.setblocking(False)
            connected.sendall(content)
        except Exception as error:
            flight.connection.close()
            self._done.append((flight.index, error))
            return
        flight.sent = time.monotonic()
        flight.heard = flight.sent - self.paused_s
        flight.end = flight.heard + sum(self._timeouts)
        self._flights[flight.number] = flight
        self._poll.register(connected, select.POLLIN)

    def _receive(self, flight: _Flight, now: float, has_waited: bool) -> None:
        """Receive what is there; with the last of it, the file is done."""
        response, connected = flight.response, flight.connection.sock
        limit = flight.asked.size_limit + 1
        try:
            while True:
                received = response.receive()
                flight.heard = now - self.paused_s
                flight.end += received / self._slowest
                if response.status and not flight.is_answered:
                    flight.is_answered = True
                    self._files.link.answered(now - flight.sent, has_waited)
                    response.expect(limit)
                if response.is_complete or response.size >= limit:
                    break
                if not (isinstance(connected, ssl.SSLSocket) and connected.pending()):
                    return
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except Exception as error:
            self._finish(flight, error)
            return
        self._finish(flight, self._outcome(flight))

    def _outcome(self, flight: _Flight) -> Outcome:
        try:
            with flight.response as response:
                if not self._files.is_last(response, flight.asked.start is not None):
                    raise NotDirectError
                try:
                    return self._files.answer(response, flight.asked)
                except StatusError as error:
                    if not _is_refused(error):
                        raise
                    return error  # a whole answer, after which the connection is used again
        except StatusError as error:
            if error.code in THROTTLING_STATUS:
                self._files.link.overloaded(flight.sent)
            return error
        except Exception as error:
            return error

    def _finish(self, flight: _Flight, outcome: Outcome) -> None:
        del self._flights[flight.number]
        self._poll.unregister(flight.number)
        if isinstance(outcome, Exception) and not _is_refused(outcome):
            flight.connection.close()
        self._done.append((flight.index, outcome))

    def _end_slow(self, now: float) -> None:
        """End requests that take longer than those of `send` may take."""
        for flight in list(self._flights.values()):
            if now > flight.end:
                self._finish(flight, TooSlowError("the answer was not complete in time; the server sends too slowly"))
            elif now > flight.heard + self._timeouts[1]:
                self._finish(flight, TimeoutError("timed out"))


def _is_refused(outcome: Outcome) -> bool:
    return isinstance(outcome, StatusError) and outcome.code in REFUSED_STATUS
