"""Prepare workers before their first block: compare versions, and bound the threads of libraries.

A worker runs as many tasks at once as it has threads. If a library starts one thread per core inside each task, these
multiply: eight workers on a machine with eight cores would run 64 threads and evict each other's caches. The plugin
holds no secrets, since the scheduler keeps it.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from weakref import WeakSet

from distributed import Client, WorkerPlugin

from imagery_dask.annotations import Keywords
from imagery_dask.errors import ImageryDaskError, VersionMismatchError

__all__ = ["NAME", "PACKAGES", "WorkerSetup", "check_versions", "prepare_workers"]

NAME = "imagery-dask"
IN_PROCESS = "inproc://"
# Variables that libraries read when they load, or when they first start threads.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS", "NUMEXPR_NUM_THREADS")

# Packages that determine how blocks are sent and what is in them.
PACKAGES = ("dask", "distributed", "zarr", "numpy", "cloud-volume", "imagery_dask")
# Packages whose versions matter on the scheduler.
SCHEDULER = ("dask", "distributed")
# Addresses that a message lists.
SHOWN = 4

_logger = logging.getLogger(__name__)
_prepared: WeakSet[Client] = WeakSet()


class WorkerSetup(WorkerPlugin):
    """Worker plugin that checks versions and bounds the threads of libraries on each worker when it connects.

    Parameters
    ----------
    versions : dict
        Versions of the client.
    home : tuple
        Host name and process id of the client, whose own process is left as it is.
    """

    name = NAME

    def __init__(self, versions: dict[str, str], home: tuple[str, int]) -> None:
        self.versions = versions
        self.home = home
        self._limits: Any = None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.versions, self.home)

    def setup(self, worker: Any) -> None:
        """Check and prepare a worker.

        Raises
        ------
        VersionMismatchError
            If the worker runs other versions than the client; it also leaves the cluster.
        """
        if _here() == self.home:
            return
        wrong = differing(own_versions(), self.versions)
        if wrong:
            reason = f"worker {worker.address} runs other versions than the client: {', '.join(wrong)}"
            # If setup fails on a worker that connects later, dask only logs the error, and sends it blocks.
            worker.loop.add_callback(worker.close, reason=reason)
            raise VersionMismatchError(reason)
        self._limits = bound_threads(int(worker.state.nthreads))
        _load_readers()

    def teardown(self, worker: Any) -> None:
        """Restore the thread limits of BLAS and OpenMP."""
        del worker
        if self._limits is not None:
            self._limits.restore_original_limits()


def _load_readers() -> None:
    """Import the modules that read and resample voxels, which takes seconds, before the first block."""
    import_module("imagery_dask.arrays.lazy")
    import_module("imagery_dask.sources.handle")
    import_module("imagery_dask.sources.shards")  # with CloudVolume


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def bound_threads(threads: int) -> Any:
    """Keep libraries from starting threads of their own in a process that runs `threads` tasks at once.

    Returns
    -------
    threadpoolctl.threadpool_limits or None
        Restores the limits of BLAS and OpenMP; None if threadpoolctl is not installed.
    """
    import numcodecs.blosc
    import zarr

    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    # zarrs (rayon) and zarr each have one pool per process, which all tasks share.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    zarr.config.set({"threading.max_workers": threads})
    numcodecs.blosc.set_nthreads(1)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None  # the variables above do, which dask's nannies set before BLAS loads
    return threadpool_limits(limits=1)


def prepare_workers(client: Client) -> None:
    """Check the versions of a cluster, and prepare its present and future workers.

    Workers that are threads of this process are left as they are.

    Raises
    ------
    VersionMismatchError
        If a worker or the scheduler runs other versions of packages.
    """
    if client in _prepared or client.scheduler.address.startswith(IN_PROCESS):
        return
    setup = WorkerSetup(check_versions(client), _here())
    try:
        client.register_plugin(setup, name=NAME)
    except (ImageryDaskError, OSError):
        raise
    except Exception as error:
        # Checkouts may have the same version number and other code.
        raise VersionMismatchError(
            f"A worker has other code of imagery_dask than this process: {error}. Install the same code on all of them "
            "and restart the workers."
        ) from error
    _prepared.add(client)


def own_versions() -> dict[str, str]:
    """Return the versions of this process by name: Python's minor version, and `PACKAGES`."""
    return {"python": ".".join(map(str, sys.version_info[:2])), **{name: _version(name) for name in PACKAGES}}


def check_versions(client: Client) -> dict[str, str]:
    """Compare the versions of this process with those of the scheduler and of every worker.

    Returns
    -------
    dict
        Versions of this process by name.

    Raises
    ------
    VersionMismatchError
        If they differ; with the packages, the addresses and the remedy.
    """
    own = own_versions()
    # A worker answers this without imports; this package may be missing there.
    answers = client.get_versions(packages=list(PACKAGES))
    problems = {}
    if wrong := differing(_read(answers["scheduler"], SCHEDULER), own):
        problems["the scheduler"] = wrong
    for address, answer in answers["workers"].items():
        if answer and (wrong := differing(_read(answer, PACKAGES), own)):
            problems[f"worker {address}"] = wrong
    if problems:
        shown = "; ".join(f"{where}: {', '.join(wrong)}" for where, wrong in list(problems.items())[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise VersionMismatchError(
            f"The cluster runs other versions than this process: {shown}{more}. Install the same environment on all of "
            "them (pip freeze here, pip install -r there), and restart the workers."
        )
    return own


def differing(theirs: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Return a description of each version that differs: ``"zarr 3.0.1 (here 3.1.0)"``."""
    return [f"{name} {other} (here {own[name]})" for name, other in theirs.items() if other != own[name]]


def _read(answer: Keywords, names: Iterable[str]) -> dict[str, str]:
    packages = answer["packages"]
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"python": python, **{name: str(packages.get(name) or "missing") for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
