"""Threads and memory of the workers of a cluster, and its dashboard."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["WorkerResources", "dashboard_address", "resources_of", "thread_memory"]


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


def dashboard_address(client: Client) -> str | None:
    """Return the address of the scheduler's dashboard, or None if there is none (bokeh is not installed)."""
    try:
        services = client.scheduler_info(n_workers=0).get("services") or {}
        if "dashboard" not in services or importlib.util.find_spec("bokeh") is None:
            return None
        return client.dashboard_link or None
    except (KeyError, ValueError, OSError):
        return None


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


def _host_of(address: str) -> str:
    return address.partition("://")[2].rpartition(":")[0]
