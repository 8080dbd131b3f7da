"""Connect to the cluster that `--cluster` names, and close what was opened."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client
from distributed.client import default_client
from distributed.comm import CommClosedError
from distributed.security import Security

from imagery_dask.cluster import WAIT_S
from imagery_dask.cluster.batch_jobs import describe_jobs, is_job_queue, job_details, submitted_ids, system_of
from imagery_dask.cluster.files import load_cluster_file
from imagery_dask.cluster.growing import Grower
from imagery_dask.cluster.joining import check_scheduler, scheduler_address
from imagery_dask.cluster.replacing import Replacer
from imagery_dask.cluster.starting import Started, WorkerCount, from_file, processes_here, threads_here
from imagery_dask.cluster.worker_plugin import prepare_workers
from imagery_dask.errors import ClusterLostError, ImageryDaskError
from imagery_dask.humanize import time_in_seconds
from imagery_dask.validate import expanded_path, integer

if TYPE_CHECKING:
    from distributed.deploy import Cluster

__all__ = ["LOST", "Connection", "connect", "connection", "dashboard_address"]

CLOSE_S = 2.0
# Interval at which the wait for the first worker checks whether it has become hopeless.
LOOK_S = 1.0
# A warning says that no worker has come: first after this time, then at this interval.
WARN_S = (30.0, 300.0)
YAML = (".yaml", ".yml")
LOST = (
    "The connection to the cluster's scheduler is lost. Finished blocks are kept; run the same command again to "
    "resume, on this cluster or another one."
)


_logger = logging.getLogger(__name__)


class _Client(Client):
    """A client that closes at once if connecting is interrupted; dask's own would delay the exit by a minute."""

    def start(self, **options: object) -> Any:
        try:
            return super().start(**options)
        except BaseException:
            with suppress(Exception):
                self.close(timeout=CLOSE_S)
            self.status = "closed"
            raise


@dataclass(frozen=True, slots=True)
class Connection:
    """A client, and what adds workers to its cluster, if anything does."""

    client: Client
    grower: Grower | None = None


@contextmanager
def connect(
    spec: Any = None, workers: int | None = None, wait_s: float = WAIT_S, retire_before_s: float | None = None
) -> Iterator[Client]:
    """Connect to the cluster that a specification names, as a context manager that yields a dask client.

    Parameters
    ----------
    spec : None, str, path, distributed.Client or cluster object
        None uses the current client, or else starts a cluster of threads in this process. ``"local"`` starts one
        worker process per core. An address (``tcp://...``, ``tls://...``) or a scheduler file (``.json``) is connected
        to. A YAML file names a cluster class and its arguments (see ``cluster_configs/``). A client or cluster that
        exists is used as it is.
    workers : int, optional
        Number of workers to start. Workers that end are replaced. Not for a cluster that runs already.
    wait_s : float
        Seconds to wait for the first worker.
    retire_before_s : float, optional
        Seconds before the walltime of their jobs at which workers leave, if a cluster file starts them on a batch
        system. Overrides the file. By default a tenth of the walltime, at most 10 minutes.

    Yields
    ------
    distributed.Client
        Connected, with at least one worker. On leaving, only what was opened here is closed.

    Raises
    ------
    ValueError, ImportError, OSError
        If the specification is invalid, a package is not installed, or the address does not answer.
    TimeoutError
        If no worker came in time.
    VersionMismatchError
        If workers run other versions of packages.
    ClusterLostError
        If the connection to the scheduler was lost.
    """
    if workers is not None:
        integer("workers", workers)
    with connection(spec, WorkerCount(workers), wait_s, retire_before_s) as opened:
        yield opened.client


@contextmanager
def connection(
    spec: Any, count: WorkerCount, wait_s: float = WAIT_S, retire_before_s: float | None = None
) -> Iterator[Connection]:
    """Connect as `connect` does, with a number of workers that may follow what they achieve."""
    count = count.checked()
    if not (spec is None or isinstance(spec, (str, os.PathLike, Client)) or hasattr(spec, "scheduler_address")):
        raise TypeError(
            f"cluster must be 'local', a file, an address, or a dask client or cluster; got {spec!r} "
            f"({type(spec).__name__})."
        )
    if getattr(spec, "asynchronous", False):
        raise TypeError(f"cluster is asynchronous; start it without asynchronous=True: {spec}.")
    if retire_before_s is not None:
        _check_retiring(spec, retire_before_s)
    current = spec if isinstance(spec, Client) else _current_client() if spec is None else None
    if current is not None:
        _refuse_workers(count, current)
        with _raising_if_lost(current):
            prepare_workers(current)
            yield Connection(current)
        return
    with ExitStack() as stack:
        started, security = stack.enter_context(_cluster(spec, count, retire_before_s))
        stack.enter_context(_logs_kept_short())
        client = stack.enter_context(_Client(started.cluster, security=security, set_as_default=False))
        try:
            with _raising_if_lost(client):
                _wait_for_worker(client, started.cluster, wait_s, started.replacer)
                prepare_workers(client)
                yield Connection(client, started.grower)
        except ClusterLostError:
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it logs tracebacks when it closes
            raise


def _wait_for_worker(client: Client, cluster: Cluster, wait_s: float, replacer: Replacer | None) -> None:
    """Wait for the first worker.

    Raises
    ------
    TimeoutError
        If no worker came within `wait_s`, or the replacer gave up. On a batch system the message has the state, log
        and script of the jobs.
    """
    started = time.monotonic()
    deadline, warn_at = started + wait_s, started + WARN_S[0]
    while True:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=max(0.01, min(LOOK_S, deadline - time.monotonic())))
            return
        hopeless, now = replacer is not None and replacer.hopeless, time.monotonic()
        if hopeless or now > deadline:
            break
        if now > warn_at:
            warn_at = now + WARN_S[1]
            jobs = ""
            if is_job_queue(type(cluster)):
                jobs = f"\n{describe_jobs(system_of(type(cluster)), submitted_ids(cluster))}"
            _logger.warning("No worker yet, after %.0f s of %.0f (--wait).%s", now - started, wait_s, jobs)
    when = ": each time, all of them ended before they connected" if hopeless else f" within {wait_s:.3g} s (--wait)"
    details = job_details(cluster)
    remedy = f"\n{details}" if details else (
        " Start workers (dask worker ADDRESS), or look at the batch system's queue and at the logs of the "
        "workers."
    )  # fmt: skip
    raise TimeoutError(f"No worker came{when}.{remedy}")


def _check_retiring(spec: Any, retire_before_s: float) -> None:
    if isinstance(retire_before_s, str) or time_in_seconds(retire_before_s) is None:
        raise ValueError(f"retire_before_s must be a number of seconds above 0; got {retire_before_s!r}.")
    if not (isinstance(spec, (str, os.PathLike)) and os.fspath(spec).endswith(YAML)):
        raise ValueError(
            "retire_before_s (--retire-before) is for workers that a cluster file (YAML) starts on a batch system; the "
            f"cluster is {('local' if spec is None else spec)!r}."
        )


def _refuse_workers(count: WorkerCount, running: object) -> None:
    if count.workers is not None:
        raise ValueError(
            f"workers (--workers) is for clusters that are started here; {running} runs already. Got {count.workers}: "
            "leave it out, or scale that cluster."
        )


@contextmanager
def _logs_kept_short() -> Iterator[None]:
    """Drop asyncio's tracebacks for connections to workers that ended; afterwards restore the level of the client."""
    logger, of_asyncio = logging.getLogger("distributed.client"), logging.getLogger("asyncio")
    level = logger.level
    of_asyncio.addFilter(_is_no_closed_connection)
    try:
        yield
    finally:
        of_asyncio.removeFilter(_is_no_closed_connection)
        logger.setLevel(level)


def _is_no_closed_connection(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], CommClosedError))


@contextmanager
def _raising_if_lost(client: Client) -> Iterator[None]:
    """Raise ClusterLostError instead of dask's various errors if the scheduler is gone."""
    try:
        yield
    except ImageryDaskError:
        raise
    except (Exception, CancelledError) as error:
        if client.status == "running" and not isinstance(error, CommClosedError):
            raise
        raise ClusterLostError(LOST) from error


@contextmanager
def _cluster(spec: Any, count: WorkerCount, retire_before_s: float | None) -> Iterator[tuple[Started, Security | None]]:
    """Yield a cluster or address, and its certificates; on leaving, close what was started here."""
    if spec is not None and not isinstance(spec, (str, os.PathLike)):
        _refuse_workers(count, spec)
        yield Started(spec), None
        return
    text = "" if spec is None else os.fspath(spec)
    if not text:
        if count.is_auto:
            raise ValueError("workers='auto' (--workers auto) needs a cluster: 'local' or a cluster file.")
        with threads_here(count.fixed) as cluster:
            yield Started(cluster), None
    elif text == "local":
        with processes_here(count) as started:
            yield started, None
    elif "://" in text or text.endswith(".json"):
        _refuse_workers(count, text)
        yield Started(_running(text, None)), None
    elif text.endswith(YAML):
        file = load_cluster_file(Path(expanded_path(text)), retire_before_s)
        if file.address is not None:
            _refuse_workers(count, file.address)
            yield Started(_running(file.address, file.security)), file.security
        else:
            with from_file(file, count) as started:
                yield started, None
    else:
        raise ValueError(
            f"A cluster is 'local', a YAML file, a scheduler file (.json) or an address (tcp://host:8786); got "
            f"{text!r}."
        )


def _running(spec: str, security: Security | None) -> str:
    """Return the address of a running scheduler, given as an address or a scheduler file."""
    scheduler_file = None if "://" in spec else Path(expanded_path(spec))
    address = spec if scheduler_file is None else scheduler_address(scheduler_file)
    check_scheduler(address, security, scheduler_file)
    return address


def _current_client() -> Client | None:
    try:
        return default_client()
    except ValueError:
        return None


def dashboard_address(client: Client) -> str | None:
    """Return the address of the scheduler's dashboard, or None if there is none (bokeh is not installed)."""
    try:
        services = client.scheduler_info(n_workers=0).get("services") or {}
        if "dashboard" not in services or importlib.util.find_spec("bokeh") is None:
            return None
        return client.dashboard_link or None
    except (KeyError, ValueError, OSError):
        return None
