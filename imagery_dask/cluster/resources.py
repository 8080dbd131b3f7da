"""Threads and memory: of the workers of a cluster, and of this process."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["WorkerResources", "free_memory", "resources_of", "thread_memory"]

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
