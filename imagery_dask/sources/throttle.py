"""How many requests may be in flight to one server, over the whole cluster.

On a dask worker the slots are leases of a semaphore that the scheduler keeps. Asking it twice for each request of a
few milliseconds would take as long as the requests, so that a process keeps the leases that it was given for a moment
and hands them from request to request: until nobody there has needed one for `IDLE_S`, or it is `SHARE_S` old and the
others get their turn. A process that dies loses its leases after dask's
``distributed.scheduler.locks.lease-timeout``. Outside of a worker the slots are those of the process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from imagery_dask.validate import whole_number

if TYPE_CHECKING:
    from distributed import Worker

__all__ = ["limited_requests", "request_slots"]

# A lease that no request of this process has used for so long goes back.
IDLE_S = 0.05
# A lease older than this goes back even if requests wait here: others may have waited longer.
SHARE_S = 0.5
# Questions that a process may have open at the scheduler; each holds a connection.
QUESTIONS_AT_ONCE = 16
# How often a request that waits looks whether its worker still runs.
LOOK_S = 5.0

_count: ContextVar[int | None] = ContextVar("imagery_dask_requests_in_flight", default=None)
_lock = threading.Lock()
_of_process: dict[tuple[int, str, int], threading.BoundedSemaphore] = {}
_of_worker: WeakKeyDictionary[object, dict[tuple[str, int], _ClusterSlots]] = WeakKeyDictionary()


@contextmanager
def limited_requests(count: int | None) -> Iterator[None]:
    """Limit the requests in flight to any one server while the block lasts.

    The limit holds for this thread and those that work in a copy of its context. It is shared by all blocks of the
    cluster that have the same one; outside of a dask worker, by those of this process.

    Parameters
    ----------
    count : int or None
        Requests that may be in flight, from 1. None adds no limit. Inside of another limit the smaller one holds.

    Raises
    ------
    ValueError
        When `count` is less than 1.
    """
    if count is not None:
        whole_number("The limit of requests in flight", count)
    token = _count.set(_smaller(count, _count.get()))
    try:
        yield
    finally:
        _count.reset(token)


def request_slots(server: str, own_limit: int | None = None) -> AbstractContextManager[object]:
    """Slots for requests to a server: each request enters what this returns, and waits there for its turn.

    Parameters
    ----------
    server : str
        Name of the server, such as ``https://host``.
    own_limit : int, optional
        A limit that holds for this server; the smaller of this and `limited_requests` counts.

    Returns
    -------
    context manager
        May be entered many times, and by several threads at once. Without a limit it does nothing.
    """
    limit = _smaller(own_limit, _count.get())
    if limit is None:
        return nullcontext()
    # A process without distributed.worker is no dask worker.
    module = sys.modules.get("distributed.worker")
    if module is None:
        return _process_slots(server, limit)
    try:
        worker = module.get_worker()
    except ValueError:
        return _process_slots(server, limit)
    return _cluster_slots(server, limit, worker)


def forget_slots() -> None:
    """Forget the slots of this process; those that are held stay valid."""
    with _lock:
        _of_process.clear()
        _of_worker.clear()


class _ClusterSlots:
    """Leases of a semaphore of the cluster that one worker holds, handed from request to request.

    Threads wait here, never for the scheduler: whoever asks it is the worker's event loop, so that a waiting request
    takes whichever comes first, a new lease or one that another request of this process is done with.
    """

    def __init__(self, server: str, limit: int, worker: Worker) -> None:
        from distributed import Semaphore

        self._server, self._limit, self._loop = server, limit, worker.loop
        name = f"imagery-dask-requests-{limit}-{server}"
        self._semaphore = Semaphore(limit, name, scheduler_rpc=worker.scheduler, loop=worker.loop)
        self._changed = threading.Condition()
        self._granted: deque[float] = deque()  # when each lease was given, oldest first; leases are all alike
        self._idle: deque[float] = deque()  # since when those not in use are idle, oldest first
        self._waiting = 0
        self._asking = 0
        self._sweeping = False
        self._failures = 0
        self._reason: BaseException | None = None

    def __enter__(self) -> None:
        with self._changed:
            failures = self._failures
            self._waiting += 1
            try:
                while not self._idle:
                    if self._failures > failures or self._loop.asyncio_loop.is_closed():
                        raise ConnectionError(f"the scheduler gave no slot for {self._server}: {self._reason!r}")
                    self._ask()
                    self._changed.wait(LOOK_S)
                self._idle.pop()  # the one that was used last, so that those that are not needed age
            finally:
                self._waiting -= 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            if time.monotonic() - self._granted[0] > SHARE_S:
                self._give_back()
            else:
                self._keep()

    def _ask(self) -> None:
        """Ask for a lease for each request that waits; called with the lock, as are the next two."""
        most = min(self._limit - len(self._granted), QUESTIONS_AT_ONCE)
        while self._asking < min(self._waiting - len(self._idle), most):
            self._asking += 1
            self._loop.add_callback(self._acquire)

    def _keep(self) -> None:
        self._idle.append(time.monotonic())
        self._changed.notify()
        if not self._sweeping:
            self._sweeping = True
            self._loop.add_callback(self._loop.call_later, IDLE_S, self._sweep)

    def _give_back(self) -> None:
        self._granted.popleft()
        self._loop.add_callback(self._release)

    async def _acquire(self) -> None:
        try:
            await self._semaphore.acquire()
        except BaseException as error:
            with self._changed:
                self._asking -= 1
                self._failures += 1
                self._reason = error
                self._changed.notify_all()
            if not isinstance(error, Exception):
                raise
            return
        with self._changed:
            self._asking -= 1
            self._granted.append(time.monotonic())
            self._keep()

    async def _release(self) -> None:
        await self._semaphore.release()
        # Only now, so that those who wait at the scheduler come before this process's next question.
        with self._changed:
            self._ask()

    def _sweep(self) -> None:
        with self._changed:
            self._sweeping = False
            while self._idle and self._idle[0] <= time.monotonic() - IDLE_S:
                self._idle.popleft()
                self._give_back()
            if self._idle:
                self._sweeping = True
                self._loop.call_later(IDLE_S, self._sweep)


def _process_slots(server: str, limit: int) -> threading.BoundedSemaphore:
    key = (os.getpid(), server, limit)  # threads that hold slots do not survive a fork
    with _lock:
        if key not in _of_process:
            _of_process[key] = threading.BoundedSemaphore(limit)
        return _of_process[key]


def _cluster_slots(server: str, limit: int, worker: Worker) -> _ClusterSlots:
    with _lock:
        slots = _of_worker.setdefault(worker, {})  # in tests, several workers live in one process
        if (server, limit) not in slots:
            slots[server, limit] = _ClusterSlots(server, limit, worker)
        return slots[server, limit]


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)
