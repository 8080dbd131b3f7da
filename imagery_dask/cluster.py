"""From a word, a YAML file or an address to a dask `Client`; what was opened here is closed here."""

from __future__ import annotations

import importlib
import logging
import os
from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import psutil
import yaml
from distributed import Client, LocalCluster
from distributed.client import default_client
from distributed.comm import CommClosedError

from imagery_dask.errors import ClusterLostError, ImageryDaskError
from imagery_dask.sources import tokens_for_own_workers

__all__ = ["LOST", "Room", "connect", "load_cluster_file", "room_of", "thread_memory"]

KEYS = {"cluster", "arguments", "workers"}
WAIT_S = 600
LOST = (
    "The connection to the cluster's scheduler is lost. What is written stays; the same call goes on with another "
    "cluster."
)
# Ctrl-C reaches every process of a terminal; this process ends the others itself, without their tracebacks.
LEAVE_INTERRUPTS = """
import logging, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)  # cancelled blocks are no news
"""


@contextmanager
def connect(spec: Any = None, workers: int | None = None, wait_s: float = WAIT_S) -> Iterator[Client]:
    """Client of the cluster that a specification names.

    Parameters
    ----------
    spec : None, str, path, distributed.Client or cluster object
        None uses the current client, or else starts a cluster of threads in this process. ``"local"`` starts one
        worker process per core. An address (``tcp://...``, ``tls://...``) or a scheduler file (``.json``) is connected
        to. A YAML file names a cluster class and its arguments (see ``cluster_configs/``). A client or cluster that
        exists is used as it is.
    workers : int, optional
        Number of workers to ask for, where a cluster is started.
    wait_s : float
        Seconds to wait for the first worker.

    Yields
    ------
    distributed.Client
        Connected, with at least one worker. On leaving, only what was opened here is closed.

    Raises
    ------
    ValueError, ImportError, OSError
        For a specification that is not understood, a package that is not installed, an address that does not answer.
    TimeoutError
        When no worker came in time.
    ClusterLostError
        When the scheduler was lost meanwhile.
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
        raise TypeError(f"workers must be a whole number; got {workers!r}.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}.")
    if not (spec is None or isinstance(spec, (str, os.PathLike, Client)) or hasattr(spec, "scheduler_address")):
        raise TypeError(
            f"cluster must be 'local', a file, an address, or a dask client or cluster; got {spec!r} "
            f"({type(spec).__name__})."
        )
    current = spec if isinstance(spec, Client) else _current_client() if spec is None else None
    if current is not None:
        with _lost_is_said(current):
            yield current
        return
    with _cluster(spec, workers) as address, _loud_again(), Client(address, set_as_default=False) as client:
        try:
            client.wait_for_workers(1, timeout=wait_s)
        except TimeoutError as error:
            raise TimeoutError(
                f"No worker came within {wait_s:.0f} s. Look at the batch system's queue and at the job's log."
            ) from error
        try:
            with _lost_is_said(client):
                yield client
        except ClusterLostError:
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it would log tracebacks as it closes
            raise


@contextmanager
def _loud_again() -> Iterator[None]:
    logger = logging.getLogger("distributed.client")
    level = logger.level
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _lost_is_said(client: Client) -> Iterator[None]:
    """Turn what dask raises when the scheduler is gone, in whatever was asked of it, into one error that says so."""
    try:
        yield
    except ImageryDaskError:
        raise
    except (Exception, CancelledError) as error:
        if client.status == "running" and not isinstance(error, CommClosedError):
            raise
        raise ClusterLostError(LOST) from error


@contextmanager
def _cluster(spec: Any, workers: int | None) -> Iterator[Any]:
    """Address or cluster object for a specification, closed afterwards when it was started here."""
    if spec is not None and not isinstance(spec, (str, os.PathLike)):
        yield spec
        return
    text = "" if spec is None else os.fspath(spec)
    if "://" in text:
        yield text
    elif text.endswith(".json"):
        yield _scheduler_address(Path(text))
    else:
        with _start(text, workers) as cluster:
            yield cluster


def _start(text: str, workers: int | None) -> Any:
    cores = os.cpu_count() or 1
    # Loopback only: a dask scheduler runs any code that is sent to it.
    dashboard = "127.0.0.1:0"
    if text in ("", "local"):
        # dask's profiler samples frames from another thread, which can deadlock Python (seen in 3.11.7;
        # python/cpython#106883); a run has no use for it.
        with dask.config.set({"distributed.worker.profile.enabled": False}):
            if text == "local":
                return LocalCluster(
                    n_workers=workers or cores, threads_per_worker=1, host="127.0.0.1", dashboard_address=dashboard,
                    env=dict(tokens_for_own_workers()),  # from nanny to worker: no token passes the scheduler
                    preload=[LEAVE_INTERRUPTS],
                )  # fmt: skip
            return LocalCluster(
                n_workers=1, threads_per_worker=workers or cores, processes=False, dashboard_address=dashboard
            )
    if Path(text).suffix in (".yaml", ".yml"):
        cluster_class, arguments, configured = load_cluster_file(Path(text))
        cluster = cluster_class(**arguments)
        count = workers or configured
        if count:
            cluster.scale(count)
        return cluster
    raise ValueError(
        f"A cluster is 'local', a YAML file, a scheduler file (.json) or an address (tcp://host:8786); got {text!r}."
    )


def load_cluster_file(path: Path) -> tuple[Any, dict[str, Any], int | None]:
    """Read a cluster file.

    Parameters
    ----------
    path : pathlib.Path
        YAML with the keys ``cluster`` (dotted name of a cluster class), ``arguments`` (its keyword arguments) and
        ``workers`` (how many to ask for).

    Returns
    -------
    cluster_class : type
        The class.
    arguments : dict
        Its keyword arguments.
    workers : int or None
        Number of workers.

    Raises
    ------
    ValueError, ImportError, FileNotFoundError
        Naming the key, or the package that is missing.
    """
    with open(path) as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, Mapping) or "cluster" not in content:
        raise ValueError(f"{path} must have a key 'cluster' with the name of a cluster class.")
    unknown = sorted(map(str, set(content) - KEYS))
    if unknown:
        raise ValueError(f"{path} has the unknown key {unknown[0]!r}; the keys are {', '.join(sorted(KEYS))}.")
    arguments = content.get("arguments") or {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"{path}: 'arguments' must be names with values; got {arguments!r}.")
    workers = content.get("workers")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ValueError(f"{path}: 'workers' must be a whole number from 1; got {workers!r}.")
    return _class(str(content["cluster"]), path), dict(arguments), workers


def _class(name: str, path: Path) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{path}: {name} needs the package {error.name!r}; pip install 'imagery_dask[clusters]'."
        ) from error
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path}: 'cluster' names no class: {name!r}.") from error
    if not callable(found):
        raise ValueError(f"{path}: 'cluster' names no class: {name!r} is a {type(found).__name__}.")
    return found


def _scheduler_address(path: Path) -> str:
    return str(yaml.safe_load(path.read_text())["address"])


def _current_client() -> Client | None:
    try:
        return default_client()
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Room:
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


def room_of(client: Client) -> Room:
    """Say what the workers of a cluster have at the moment."""
    return Room(int(sum(client.nthreads().values())), thread_memory(client))


def thread_memory(client: Client) -> int:
    """Bytes that a task may take: the share of one thread in the smallest worker.

    Workers without a limit, such as the threads of this process, share the memory that is free on this machine.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    free = int(psutil.virtual_memory().available)
    threads = sum(int(worker["nthreads"]) for worker in workers)
    shares = [
        int(worker["memory_limit"]) // int(worker["nthreads"]) if worker["memory_limit"] else free // threads
        for worker in workers
    ]
    return min(shares, default=free)
