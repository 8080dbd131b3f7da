"""What a worker does before its first block: its versions and its threads.

A worker has as many tasks at once as it has threads. Libraries that start a thread for each core inside of each task
would multiply with them: eight workers of one machine with eight cores would run 64 threads, and each switch between
them costs caches. Nothing secret is in the plugin: it lies on the scheduler.
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

import numcodecs.blosc
import zarr
from distributed import Client, WorkerPlugin

from imagery_dask.annotations import Keywords
from imagery_dask.errors import ImageryDaskError, VersionMismatchError

__all__ = ["NAME", "PACKAGES", "WorkerSetup", "check_versions", "prepare_workers"]

NAME = "imagery-dask"
IN_PROCESS = "inproc://"
# Read by libraries when they load, or when they first start threads.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS", "NUMEXPR_NUM_THREADS")

# Those that decide how blocks travel, and what is in them.
PACKAGES = ("dask", "distributed", "zarr", "numpy", "cloud-volume", "imagery_dask")
SCHEDULER = ("dask", "distributed")
SHOWN = 4

_logger = logging.getLogger(__name__)
_prepared: WeakSet[Client] = WeakSet()


class WorkerSetup(WorkerPlugin):
    """Checks versions and bounds the threads of libraries, on each worker as it comes.

    Parameters
    ----------
    versions : dict
        Versions of the client.
    home : tuple
        Host and process of the client: its own threads keep the settings of its user.
    """

    name = NAME

    def __init__(self, versions: dict[str, str], home: tuple[str, int]) -> None:
        self.versions = versions
        self.home = home
        self._limits: Any = None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.versions, self.home)

    def setup(self, worker: Any) -> None:
        """Set a worker up.

        Raises
        ------
        VersionMismatchError
            It runs other versions; a worker that came later also leaves the cluster.
        """
        if _here() == self.home:
            return
        wrong = differing(own_versions(), self.versions)
        if wrong:
            reason = f"worker {worker.address} runs other versions than the client: {', '.join(wrong)}"
            # Of workers that come later dask only logs errors, and gives them blocks.
            worker.loop.add_callback(worker.close, reason=reason)
            raise VersionMismatchError(reason)
        self._limits = bound_threads(int(worker.state.nthreads))
        _load_readers()

    def teardown(self, worker: Any) -> None:
        """Give BLAS its threads back."""
        del worker
        if self._limits is not None:
            self._limits.restore_original_limits()


def _load_readers() -> None:
    """Import what reads and resamples voxels, which takes seconds, before the worker has its first block."""
    import_module("imagery_dask.arrays.lazy")
    import_module("imagery_dask.sources.handle")


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def bound_threads(threads: int) -> Any:
    """Keep libraries from starting threads of their own in a process that runs so many tasks at once.

    Returns
    -------
    object or None
        What takes the limits of BLAS and OpenMP back, where threadpoolctl is installed.
    """
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    # One pool for the process, however many tasks use it: zarrs' (rayon), and zarr's.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    zarr.config.set({"threading.max_workers": threads})
    numcodecs.blosc.set_nthreads(1)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None  # dask's nannies set the variables above before BLAS loads
    return threadpool_limits(limits=1)


def prepare_workers(client: Client) -> None:
    """Check the versions of a cluster, and set up the workers that it has and those that come.

    Threads of this process are left as they are.

    Raises
    ------
    VersionMismatchError
        Which package, on which worker, and the remedy.
    """
    if client in _prepared or client.scheduler.address.startswith(IN_PROCESS):
        return
    setup = WorkerSetup(check_versions(client), _here())
    try:
        client.register_plugin(setup, name=NAME)
    except (ImageryDaskError, OSError):
        raise
    except Exception as error:
        # Of the same version by its number, as checkouts are.
        raise VersionMismatchError(
            f"A worker has other code of imagery_dask than this process: {error}. Install the same on all of them, and "
            "start the workers anew."
        ) from error
    _prepared.add(client)


def own_versions() -> dict[str, str]:
    """Versions of this process: Python's minor version, and `PACKAGES`."""
    return {"python": ".".join(map(str, sys.version_info[:2])), **{name: _version(name) for name in PACKAGES}}


def check_versions(client: Client) -> dict[str, str]:
    """Compare the versions of this process with those of the scheduler and of every worker.

    Returns
    -------
    dict
        Versions of this process.

    Raises
    ------
    VersionMismatchError
        Which package, on which worker, and the remedy.
    """
    own = own_versions()
    # dask answers this without importing anything; a worker may not have this package at all.
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
            "them (pip freeze here, pip install -r there), and start the workers anew."
        )
    return own


def differing(theirs: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Say which versions differ."""
    return [f"{name} {found} (here {own[name]})" for name, found in theirs.items() if found != own[name]]


def _read(answer: Keywords, names: Iterable[str]) -> dict[str, str]:
    packages = answer["packages"]
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"python": python, **{name: str(packages.get(name) or "missing") for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
