"""What the workers of a cluster have at the moment."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass

import psutil
from distributed import Client

__all__ = ["WorkerResources", "dashboard_address", "resources_of", "thread_memory"]


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """What a cluster has.

    Parameters
    ----------
    threads : int
        Tasks that run at once.
    thread_memory : int
        Bytes that one of them may take.
    """

    threads: int
    thread_memory: int


def resources_of(client: Client) -> WorkerResources:
    """Say what the workers of a cluster have at the moment."""
    return WorkerResources(int(sum(client.nthreads().values())), thread_memory(client))


def dashboard_address(client: Client) -> str | None:
    """Address of the scheduler's dashboard, or None where it has none (bokeh draws it)."""
    try:
        services = client.scheduler_info(n_workers=0).get("services") or {}
        if "dashboard" not in services or importlib.util.find_spec("bokeh") is None:
            return None
        return client.dashboard_link or None
    except (KeyError, ValueError, OSError):
        return None


def thread_memory(client: Client) -> int:
    """Bytes that a task may take: the share of one thread in the smallest worker.

    Workers without a limit share the memory that is free on this machine, such as the threads of this process; of those
    on other machines each is taken to have as much as is free here.
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
