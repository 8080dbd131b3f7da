"""Limit the requests in flight to one server, over the whole cluster.

On a dask worker a slot is a lease of a dask semaphore. Acquiring and releasing a lease takes two calls to the
scheduler, as long as a request of a few milliseconds. So a process keeps a lease for its next requests until the lease
was idle for `IDLE_S`, or is `SHARE_S` old, so that other processes get their turn. Leases of a dead process
expire after dask's ``distributed.scheduler.locks.lease-timeout``. Outside of a worker the limit applies to the process.
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
from weakref import WeakKeyDictionary, ref

from imagery_dask.validate import whole_number

if TYPE_CHECKING:
    from distributed import Worker

__all__ = ["limited_requests", "request_slots"]

# A lease that was idle for this long is released.
IDLE_S = 0.05
# A lease older than this is released even if requests wait here, because other processes may have waited longer.
SHARE_S = 0.5
# Largest number of open lease requests of a process to the scheduler; each of them uses a connection.
QUESTIONS_AT_ONCE = 16
# Interval at which a waiting request checks that its worker still runs.
LOOK_S = 5.0

_count: ContextVar[int | None] = ContextVar("imagery_dask_requests_in_flight", default=None)
_lock = threading.Lock()
_of_process: dict[tuple[int, str, int], threading.BoundedSemaphore] = {}
_of_worker: WeakKeyDictionary[object, dict[tuple[str, int], _ClusterSlots]] = WeakKeyDictionary()


@contextmanager
def limited_requests(count: int | None) -> Iterator[None]:
    """Limit the requests in flight to any one server while the block lasts.

    The limit applies to this thread and to threads that run in a copy of its context. All tasks of the cluster with the
    same limit share it; outside of a dask worker, all threads of this process.

    Parameters
    ----------
    count : int or None
        Largest number of requests in flight, from 1. None adds no limit. The smallest of nested limits applies.

    Raises
    ------
    ValueError
        If `count` is less than 1.
    """
    if count is not None:
        whole_number("The limit of requests in flight", count)
    token = _count.set(_smaller(count, _count.get()))
    try:
        yield
    finally:
        _count.reset(token)


def request_slots(server: str, own_limit: int | None = None) -> AbstractContextManager[object]:
    """Return a context manager in which a request to a server waits for its turn and is made.

    Parameters
    ----------
    server : str
        Name of the server, such as ``https://host``.
    own_limit : int, optional
        A limit for this server; the smaller of this and `limited_requests` applies.

    Returns
    -------
    context manager
        Reusable, by several threads at the same time. Without a limit it does nothing.
    """
    limit = _smaller(own_limit, _count.get())
    if limit is None:
        return nullcontext()
    # A dask worker has imported this module.
    module = sys.modules.get("distributed.worker")
    if module is None:
        return _process_slots(server, limit)
    try:
        worker = module.get_worker()
    except ValueError:
        return _process_slots(server, limit)
    return _cluster_slots(server, limit, worker)


def forget_slots() -> None:
    """Forget the slots of this process; those in use stay valid."""
    with _lock:
        _of_process.clear()
        _of_worker.clear()


class _ClusterSlots:
    """Leases of a semaphore of the cluster that one worker holds and reuses for its requests.

    The worker's event loop acquires leases from the scheduler. Threads wait here, for a new lease or for one that
    another request of this process no longer needs, whichever comes first.
    """

    def __init__(self, server: str, limit: int, worker: Worker) -> None:
        from distributed import Semaphore

        self._server, self._limit, self._loop = server, limit, worker.loop
        self._worker = ref(worker)  # weak, as the key of `_of_worker`
        name = f"imagery-dask-requests-{limit}-{server}"
        self._semaphore = Semaphore(limit, name, scheduler_rpc=worker.scheduler, loop=worker.loop)
        self._changed = threading.Condition()
        self._granted: deque[float] = deque()  # times at which leases were acquired, oldest first
        self._idle: deque[float] = deque()  # times since which leases have been idle, oldest first
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
                self._idle.pop()  # the most recently used one, so that leases that are not needed become idle
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
        """Acquire a lease for each waiting request; called with the lock held, like the next two methods."""
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
        from distributed.core import Status

        worker = self._worker()
        if worker is None or worker.status in (Status.closing, Status.closed):
            return  # its connections are closed: the lease expires
        await self._semaphore.release()
        # After the release, so that processes that wait at the scheduler come before this one's next lease request.
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
        slots = _of_worker.setdefault(worker, {})  # by worker, because tests run several workers in one process
        if (server, limit) not in slots:
            slots[server, limit] = _ClusterSlots(server, limit, worker)
        return slots[server, limit]


def _smaller(first: int | None, second: int | None) -> int | None:
    return min((limit for limit in (first, second) if limit is not None), default=None)
