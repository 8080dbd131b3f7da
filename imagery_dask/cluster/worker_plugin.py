"""Prepare workers before their first block: compare versions, bound the threads of libraries, import readers.

A worker runs as many tasks at once as it has threads. If a library starts one thread per core inside each task, these
multiply: eight workers on a machine with eight cores would run 64 threads and evict each other's caches. The plugin
holds no secrets, since the scheduler keeps it.
"""

from __future__ import annotations

import logging
import os
import socket
from importlib import import_module
from typing import Any
from weakref import WeakSet

from distributed import Client, WorkerPlugin
from distributed.comm import CommClosedError

from imagery_dask.cluster.versions import check_versions, differing, own_versions
from imagery_dask.errors import ImageryDaskError, VersionMismatchError

__all__ = ["NAME", "WorkerSetup", "prepare_workers"]

NAME = "imagery-dask"
# Attempts to prepare workers of which one ends meanwhile, and seconds that dask has to start it again.
ATTEMPTS = 4
RESTART_S = 60.0
IN_PROCESS = "inproc://"
# Variables that libraries read when they load, or when they first start threads.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS", "NUMEXPR_NUM_THREADS")

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
    """Import the modules that most blocks need, before the first block.

    CloudVolume (for rare encodings) and dask.array (for computed arrays) take a second of CPU each: they are imported
    by the workers whose blocks need them.
    """
    import_module("imagery_dask.arrays.cutout_array")
    import_module("imagery_dask.run.block")


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
    OSError
        If workers end while they are prepared, several times.
    """
    if client in _prepared or client.scheduler.address.startswith(IN_PROCESS):
        return
    setup = WorkerSetup(check_versions(client), _here())
    try:
        _register(client, setup)
    except (ImageryDaskError, OSError):
        raise
    except Exception as error:
        # Checkouts may have the same version number and other code.
        raise VersionMismatchError(
            f"A worker has other code of imagery_dask than this process: {error}. Install the same code on all of them "
            "and restart the workers."
        ) from error
    _prepared.add(client)


def _register(client: Client, setup: WorkerSetup) -> None:
    """Register the plugin, again if a worker ended meanwhile: dask then raises the error of the connection to it."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            client.register_plugin(setup, name=NAME)
            return
        except CommClosedError as error:
            if client.status != "running":
                raise
            if attempt == ATTEMPTS:
                raise OSError(
                    f"A worker ended while it was prepared, {attempt} times in a row. It may have been killed, perhaps "
                    "for want of memory; the logs of the workers may say why."
                ) from error
        client.wait_for_workers(1, timeout=RESTART_S)
