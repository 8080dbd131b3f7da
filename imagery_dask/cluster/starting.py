"""Start clusters on this machine, or from cluster files, and close them."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
from distributed import LocalCluster, SSHCluster
from distributed.core import Status
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from imagery_dask.annotations import Keywords
from imagery_dask.cluster.batch_jobs import is_job_queue, job_details
from imagery_dask.cluster.classes import UnfitError, sized
from imagery_dask.cluster.files import AUTO, ClusterFile
from imagery_dask.cluster.gateway import check_gateway, closed_for_good, is_gateway
from imagery_dask.cluster.growing import Grower, first_count
from imagery_dask.cluster.replacing import Replacer, replacing_workers
from imagery_dask.cluster.resources import cores
from imagery_dask.sources import tokens_for_own_workers
from imagery_dask.validate import integer, whole_number

if TYPE_CHECKING:
    from distributed.deploy import Cluster

__all__ = ["Started", "WorkerCount", "from_file", "processes_here", "threads_here"]


# Loopback only: a dask scheduler runs any code that is sent to it.
LOOPBACK = "127.0.0.1"
DASHBOARD = f"{LOOPBACK}:0"
# Ctrl-C in a terminal reaches all processes. Workers ignore it: the driver ends them, without tracebacks.
LEAVE_INTERRUPTS = """
import logging, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)  # it logs cancelled blocks as warnings
logging.getLogger("distributed.worker").addFilter(  # when the scheduler closes
    lambda record: "communicate with scheduler during heartbeat" not in record.getMessage()
)
"""
# dask's profiler samples frames from another thread, which can deadlock Python (3.11.7; python/cpython#106883).
NO_PROFILE = {"distributed.worker.profile.enabled": False}
# SSHCluster sends dask's configuration to its processes, and waits without limit for a line logged at this level.
HEARD = {"logging.distributed": "info"}


@dataclass(frozen=True, slots=True)
class WorkerCount:
    """How many workers to start.

    Parameters
    ----------
    workers : int, "auto" or None
        The number; ``"auto"`` begins with a few and adds more while that helps; None leaves it to the cluster file.
    most : int, optional
        Largest number for ``"auto"``.
    threads : int
        Threads of each process of this machine.
    """

    workers: int | str | None = None
    most: int | None = None
    threads: int = 1

    def checked(self) -> WorkerCount:
        """Return the same with integers of Python; raise TypeError or ValueError for other values."""
        workers, most = self.workers, self.most
        if workers is not None and workers != AUTO:
            workers = whole_number("workers", integer("workers", workers))
        if most is not None:
            most = whole_number("max_workers", integer("max_workers", most))
            if workers != AUTO:
                raise ValueError("max_workers (--max-workers) is for workers='auto' (--workers auto).")
        return WorkerCount(workers, most, whole_number("threads", integer("threads", self.threads)))

    @property
    def fixed(self) -> int | None:
        """The number, if it is given."""
        return self.workers if isinstance(self.workers, int) else None

    @property
    def is_auto(self) -> bool:
        """True if the number follows what the workers achieve."""
        return self.workers == AUTO


@dataclass(frozen=True, slots=True)
class Started:
    """A cluster that was started here.

    Parameters
    ----------
    cluster : cluster object
        The cluster, possibly before its workers connect.
    replacer : Replacer or None
        None if dask or a server replaces workers.
    grower : Grower or None
        Adds workers, for ``"auto"``.
    """

    cluster: Any
    replacer: Replacer | None = None
    grower: Grower | None = None


def threads_here(threads: int | None) -> LocalCluster:
    """Start a cluster of threads of this process.

    It has no dashboard, whose address nobody would learn, and whose import of bokeh takes longer than a small export.
    """
    with dask.config.set(NO_PROFILE), _failed_start():
        return LocalCluster(
            n_workers=1, threads_per_worker=threads or cores(), processes=False, dashboard_address=DASHBOARD,
            scheduler_kwargs={"dashboard": False},
        )  # fmt: skip


@contextmanager
def processes_here(count: WorkerCount) -> Iterator[Started]:
    """Start a cluster of processes on this machine, one for each core by default, and replace those that end."""
    most = (count.most if count.is_auto else count.fixed) or cores()
    first = first_count(1, most) if count.is_auto else most
    # By default dask divides the memory by the number of cores, whatever the number of threads.
    memory = {"memory_limit": MEMORY_LIMIT // most} if count.is_auto or count.threads > 1 else {}
    with _kill_warnings_dropped():
        with dask.config.set(NO_PROFILE), _failed_start():
            started = LocalCluster(
                n_workers=first, threads_per_worker=count.threads, host=LOOPBACK, dashboard_address=DASHBOARD,
                **memory, **_own_processes({}),
            )  # fmt: skip
        with started as cluster, replacing_workers(cluster, NO_PROFILE) as replacer:
            yield Started(cluster, replacer, Grower(cluster.scale, first, most) if count.is_auto else None)


@contextmanager
def from_file(file: ClusterFile, wanted: WorkerCount) -> Iterator[Started]:
    """Start the cluster of a cluster file, replace workers that end, and close it on leaving.

    Parameters
    ----------
    file : ClusterFile
        A file with a cluster class.
    wanted : WorkerCount
        Overrides the number in the file.

    Yields
    ------
    Started
        The cluster, possibly before its workers connect.

    Raises
    ------
    ValueError, ImportError
        If the class refuses its arguments.
    OSError
        If the batch system refuses a job (with its output), or a gateway does not answer or refuses this user.
    """
    workers, least, most = wanted.fixed, 1, None
    if wanted.is_auto:
        least, most = file.limits(wanted.most)
        workers = first_count(least, most)
    count = workers or file.workers
    file = _secured(file)
    arguments, scaled = dict(file.arguments), None
    if most is not None and _is_local(file.cluster):  # which would divide all cores and memory by the first workers
        arguments = {"threads_per_worker": 1, "memory_limit": MEMORY_LIMIT // most} | arguments
    if is_job_queue(file.cluster) and count:
        for name in ("n_workers", "n_jobs"):  # they would override `count`
            arguments.pop(name, None)
    try:
        if count:
            scaled = sized(file.cluster, arguments, count)
    except UnfitError as error:
        raise ValueError(f"{file.path}: {error}") from None
    if _is_local(file.cluster) and arguments.get("processes") is not False:
        own = _own_processes(arguments)
        arguments |= own
        scaled = {**scaled, **own} if scaled else None
    if file.security is not None:
        arguments["security"] = file.security
        scaled = {**scaled, "security": file.security} if scaled else None
    file.check_count(workers)
    if is_gateway(file.cluster):
        check_gateway(arguments, str(file.path))
    with _kill_warnings_dropped(), _made(file, arguments if scaled is None else scaled) as cluster:
        adapts = file.adapt is not None and not workers
        if file.adapt is not None and adapts:
            _adapt(cluster, *file.adapt)
        elif count and scaled is None:
            _scale(cluster, count)
        # An adaptive cluster of processes on this machine replaces workers itself.
        grower = None
        if most is not None and count is not None:
            is_slow = is_job_queue(file.cluster)  # each job takes a while to be submitted
            grower = Grower(partial(_submit_later, cluster) if is_slow else cluster.scale, count, most)
        if is_job_queue(file.cluster) or (not adapts and (file.cluster is SSHCluster or _is_local(file.cluster))):
            with replacing_workers(cluster, _configuration(file.cluster)) as replacer:
                yield Started(cluster, replacer, grower)
        else:
            yield Started(cluster, None, grower)


@contextmanager
def _failed_start() -> Iterator[None]:
    """Raise OSError, with one line, if a cluster on this machine does not start: a worker was killed, say."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise OSError(
            f"The workers on this machine did not start: {reason.rstrip('.')}. One of them may have been killed, "
            "perhaps for want of memory; run the same command again, or with fewer workers (--workers)."
        ) from error


@contextmanager
def _kill_warnings_dropped() -> Iterator[None]:
    """Drop the warning of nannies that a process did not end within seconds and was killed."""
    logger = logging.getLogger("distributed.nanny")
    logger.addFilter(_is_relevant)
    try:
        yield
    finally:
        logger.removeFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    return "still alive after" not in record.getMessage()


@contextmanager
def _made(file: ClusterFile, arguments: Keywords) -> Iterator[Any]:
    name = getattr(file.cluster, "__name__", str(file.cluster))
    try:
        with dask.config.set(_configuration(file.cluster)), warnings.catch_warnings():
            # Another user's dashboard may have the default port; the export prints the port of its own.
            warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)
            cluster = file.cluster(**arguments)
    except Exception as error:
        # Errors of cluster classes have many types and long texts: make them one line.
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise ValueError(f"{file.path}: {name} did not start: {reason}") from error
    try:
        with cluster:
            try:
                yield cluster
            finally:
                if is_job_queue(file.cluster):
                    with suppress(RuntimeError):  # the event loop has ended
                        cluster.sync(_submitted, cluster)
                # dask asserts that all jobs are closed, and jobs of dask-jobqueue never set that status.
                for job in getattr(cluster, "_created", ()) if is_job_queue(file.cluster) else ():
                    job.status = Status.closing
    finally:
        if is_gateway(file.cluster):
            closed_for_good(cluster)


async def _submitted(cluster: Cluster) -> None:
    """Wait for submissions in progress, so that their jobs are cancelled with the others."""
    async with cluster._lock:
        pass


def _adapt(cluster: Cluster, least: int, most: int) -> None:
    if is_job_queue(type(cluster)):
        _scale(cluster, least)  # a refused job raises here; adapt() would only log a traceback
    cluster.adapt(minimum=least, maximum=most)


def _scale(cluster: Cluster, count: int) -> None:
    if not is_job_queue(type(cluster)):
        cluster.scale(count)
        return

    cluster.sync(partial(_submit, cluster, count))


def _submit_later(cluster: Cluster, count: int) -> Future[None]:
    """Submit the jobs of so many workers in the background."""
    return asyncio.run_coroutine_threadsafe(_submit(cluster, count), cluster.loop.asyncio_loop)


async def _submit(cluster: Cluster, count: int) -> None:
    """Submit the jobs of so many workers; OSError has the output of the batch system where it refuses one."""
    # scale() does the same in the background, where a refused job is only logged.
    while len(cluster.worker_spec) * cluster._dummy_job.worker_processes < count:
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        # An interrupt cancels this coroutine, but not a submission in progress.
        await asyncio.shield(cluster._correct_state())
    except (RuntimeError, OSError, ValueError) as error:
        accepted = sum(job.job_id is not None for job in cluster._created)
        count_words = f"accepted {accepted} of {len(cluster.worker_spec)} jobs" if accepted else "accepted no job"
        raise OSError(f"The batch system {count_words}:\n{error}\n{job_details(cluster)}") from None


def _own_processes(arguments: Keywords) -> Keywords:
    preload = arguments.get("preload") or []
    return {
        # The nanny passes these to its worker, so that tokens do not reach the scheduler.
        "env": {**(arguments.get("env") or {}), **tokens_for_own_workers()},
        "preload": [*([preload] if isinstance(preload, str) else preload), LEAVE_INTERRUPTS],
    }


def _secured(file: ClusterFile) -> ClusterFile:
    """Return the file with temporary certificates if other machines can reach its local cluster.

    Whoever can connect to a scheduler can run code in its processes.
    """
    settings = [file.arguments, file.arguments.get("scheduler_kwargs") or {}]
    reached = not all(
        _is_loopback(kwargs.get("host")) and kwargs.get("interface") in (None, "lo") for kwargs in settings
    )
    if not (_is_local(file.cluster) and reached) or file.security or file.arguments.get("security"):
        return file
    logging.getLogger(__name__).info(
        "Other machines can reach the cluster, so it uses TLS with temporary certificates."
    )
    return replace(file, security=Security.temporary())


def _is_loopback(host: object) -> bool:
    """Return True for a host name or address of the loopback interface, or for None."""
    if host is None:
        return True
    name = str(host).rpartition("://")[2].strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _configuration(cluster_class: type) -> Keywords:
    return NO_PROFILE | (HEARD if cluster_class is SSHCluster else {})


def _is_local(cluster_class: type) -> bool:
    return isinstance(cluster_class, type) and issubclass(cluster_class, LocalCluster)
