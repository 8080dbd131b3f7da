"""Cores, threads and memory: of the workers of a cluster, and of this process."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["WorkerResources", "cores", "free_memory", "resources_of", "thread_memory", "threads_of_cores"]

# Largest number of threads for a core. Each holds a block, and Python's lock limits what they gain.
THREADS_PER_CORE = 4

# Limits and use of the memory of a container or job, of versions 2 and 1 of Linux's control groups.
CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """Threads and memory of the workers of a cluster."""

    # Tasks that run at once.
    threads: int
    # Bytes that one task may use.
    thread_memory: int


def cores() -> int:
    """Return the number of cores that this process may use: of its affinity, and of its container or job."""
    from dask.system import cpu_count

    return int(cpu_count())


def threads_of_cores(count: int, waiting: float = 0.0) -> int:
    """Return how many threads keep some cores busy.

    Parameters
    ----------
    count : int
        Number of cores.
    waiting : float
        Fraction of its time that a thread waits for a server or a disk, from 0 to 1.

    Returns
    -------
    int
        One for each core where threads never wait, and at most `THREADS_PER_CORE`.

    Examples
    --------
    >>> threads_of_cores(2), threads_of_cores(2, 0.4), threads_of_cores(2, 0.8)
    (2, 3, 8)
    """
    busy = max(1.0 - waiting, 1.0 / THREADS_PER_CORE)
    return max(count, int(count / busy + 1e-6))  # rounding: 1 / (1 - 0.8) is less than 5


def resources_of(client: Client) -> WorkerResources:
    """Return the present resources of the workers of a cluster."""
    return WorkerResources(int(sum(client.nthreads().values())), thread_memory(client))


def thread_memory(client: Client) -> int:
    """Return the bytes that a task may use: the memory of the smallest worker, divided by its threads.

    Workers without a memory limit share the memory that is free here, divided by the threads of their host.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    free = int(psutil.virtual_memory().available)
    of_host: Counter[str] = Counter()
    for address, worker in workers.items():
        of_host[_host_of(address)] += int(worker["nthreads"])
    shares = [
        int(worker["memory_limit"]) // int(worker["nthreads"])
        if worker["memory_limit"]
        else free // of_host[_host_of(address)]
        for address, worker in workers.items()
    ]
    return min(shares, default=free)


def free_memory() -> int:
    """Return the bytes of memory that are free on this machine, and in the container or job of this process."""
    free = int(psutil.virtual_memory().available)
    for limit, used in CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(1, free)


def _host_of(address: str) -> str:
    return address.partition("://")[2].rpartition(":")[0]
