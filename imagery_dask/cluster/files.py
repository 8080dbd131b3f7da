"""Cluster files: YAML with a cluster class and its arguments, or an address. Errors name file, line and key."""

from __future__ import annotations

import importlib
import importlib.util
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import SSHCluster
from distributed.security import Security
from distributed.utils import import_term

from imagery_dask.annotations import Keywords
from imagery_dask.cluster.batch_jobs import is_job_queue
from imagery_dask.cluster.classes import (
    EXTRAS,
    UnfitError,
    WorkerSettings,
    accepted_names,
    as_jobqueue_expects,
    fitted,
    is_cluster_class,
    is_process_class,
    job_names,
    takes_security,
)
from imagery_dask.cluster.old_names import with_configured, with_new_names
from imagery_dask.cluster.retiring import retiring
from imagery_dask.cluster.yaml_lines import Lines, close_word, read_lines
from imagery_dask.humanize import size_in_bytes, time_in_seconds
from imagery_dask.validate import expanded_path

__all__ = ["AUTO", "ClusterFile", "load_cluster_file"]

# The number of workers that follows what they achieve.
AUTO = "auto"

STARTED_ONLY = (
    "adapt", "arguments", "driver", "environment", "preload", "retire_before", "worker_memory", "workers",
)  # fmt: skip
KEYS = ("address", "cluster", "security", *STARTED_ONLY)
SECURITY = {"ca": "tls_ca_file", "cert": "tls_{role}_cert", "key": "tls_{role}_key"}
ROLES = ("client", "scheduler", "worker")
# Arguments, and keys within them, that name classes to call.
PROCESS_CLASSES = {"cls", "job_cls", "scheduler_cls", "worker_class"}
# Arguments that `imagery_dask.cluster.driver` sets itself.
NOT_DRIVERS = {"name", "scheduler"}
# A smaller size is probably a number whose unit was forgotten.
LEAST_MEMORY = 2**20
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """The content of a cluster file.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    cluster : callable or None
        The cluster class; None if the file has the address of a running cluster.
    arguments : dict
        Keyword arguments of the class, including those made from ``environment``, ``preload`` and ``worker_memory``.
    workers : int or None
        Number of workers to start.
    adapt : tuple of int, or None
        Smallest and largest number of workers of an adaptive cluster.
    address : str or None
        Address of the scheduler to join.
    security : distributed.security.Security or None
        Certificates.
    driver : dict
        Arguments of the job of ``imagery-dask submit`` that differ from those of the workers.
    """

    path: Path
    cluster: Any
    arguments: Keywords
    workers: int | None = None
    adapt: tuple[int, int] | None = None
    address: str | None = None
    security: Security | None = None
    driver: Keywords = field(default_factory=dict)

    def check_count(self, workers: int | str | None, most: int | None = None) -> None:
        """Raise ValueError if neither the file of a batch system nor `workers` gives a number of workers."""
        if workers == AUTO:
            self.limits(most)
            return
        if is_job_queue(self.cluster) and not (
            workers or self.workers or self.adapt or self.arguments.get("n_workers")
        ):
            raise ValueError(f"{self.path} asks for no workers; set 'workers' or 'adapt', or pass --workers N.")

    def limits(self, most: int | None) -> tuple[int, int]:
        """Return the smallest and largest number of workers for ``workers="auto"``.

        Parameters
        ----------
        most : int or None
            The largest number, if it is given; else it is that of the file.

        Raises
        ------
        ValueError
            There is no largest number, or the cluster cannot get more workers.
        """
        if self.cluster is SSHCluster:
            raise ValueError(
                f"{self.path}: workers='auto' (--workers auto) is not for SSHCluster, whose workers all start at once; "
                "give a number."
            )
        least, adapt_most = self.adapt or (1, None)
        most = most or adapt_most or self.workers
        if most is None:
            raise ValueError(
                f"{self.path}: workers='auto' (--workers auto) needs a largest number: max_workers (--max-workers N), "
                "or 'workers' or 'adapt' in the file."
            )
        return min(least, most), most


def load_cluster_file(path: Path, retire_before_s: float | None = None) -> ClusterFile:
    """Read a cluster file.

    Parameters
    ----------
    path : pathlib.Path
        YAML with the keys

        - ``cluster`` (dotted name of a cluster class) and ``arguments`` (its keyword arguments);
        - ``workers`` (how many to start), or ``adapt`` (``{minimum: 1, maximum: 20}``);
        - ``environment`` (variables of the workers), ``preload`` (modules that they load first), ``worker_memory``
          (of each worker process);
        - ``retire_before`` (time before the walltime of their jobs at which workers leave);
        - ``security``: ``{ca: FILE, cert: FILE, key: FILE}``, or ``temporary`` for certificates made for this run;
        - ``driver``: arguments of the driver's own job (``imagery-dask submit``), such as ``{walltime: "24:00:00"}``;
        - or ``address``, in place of ``cluster``: a running scheduler, with ``security`` if it is encrypted.
    retire_before_s : float, optional
        Seconds; overrides the file's ``retire_before``.

    Raises
    ------
    ValueError, ImportError, FileNotFoundError
        With the file, the line and the key, or the package that is missing.
    """
    file = read_lines(path)
    file.check_names(KEYS)
    if "cluster" in file.values and "address" in file.values:
        file.refuse("address", "'cluster' starts a cluster and 'address' joins one; a file has one of them.")
    if "address" in file.values:
        for name in STARTED_ONLY:
            if name in file.values:
                file.refuse(name, f"{name!r} is for clusters that are started; 'address' joins a running one.")
        if retire_before_s is not None:
            file.refuse(
                "address", "--retire-before (retire_before) is for clusters that are started; this file joins one."
            )
        address, security = _address(file), _security(file)
        if security is not None and address.startswith("tcp://"):
            file.refuse("address", "'security' is for an encrypted scheduler, whose address is tls://HOST:PORT.")
        return ClusterFile(path, None, {}, address=address, security=security)
    if "cluster" not in file.values:
        file.refuse(None, "a cluster file must have a key 'cluster' with the name of a cluster class (or 'address').")
    arguments, workers, adapt = _arguments(file), _count(file, "workers"), _adapt(file)
    before_s = _retire_before(file)
    if workers and adapt:
        file.refuse("adapt", "'workers' sets a fixed number and 'adapt' one that follows the work; give one of them.")
    settings = WorkerSettings(_environment(file), _preload(file), _memory(file))
    security = _security(file)
    cluster_class = _class(file)
    if security is not None and not takes_security(cluster_class):
        file.refuse(
            "security",
            f"{file.values['cluster']} takes no certificates here; set distributed.comm.tls in dask's configuration, "
            "or start scheduler and workers by hand and join them by 'address'.",
        )
    if "arguments" in file.parts:
        if (known := accepted_names(cluster_class)) is not None:
            file.parts["arguments"].check_names(known, "argument")
        _check_process_classes(file.parts["arguments"])
        arguments = with_new_names(cluster_class, file.parts["arguments"])
    driver = _driver(file, cluster_class)
    try:
        arguments = with_configured(cluster_class, arguments)
        arguments = fitted(cluster_class, as_jobqueue_expects(cluster_class, arguments), settings)
        arguments = retiring(cluster_class, arguments, before_s if retire_before_s is None else retire_before_s)
    except UnfitError as error:
        file.refuse(error.key, str(error))
    return ClusterFile(path, cluster_class, arguments, workers, adapt, security=security, driver=driver)


def _arguments(file: Lines) -> Keywords:
    arguments = file.values.get("arguments") or {}
    if not isinstance(arguments, dict):
        file.refuse("arguments", f"'arguments' must be a mapping of names to values; got {arguments!r}.")
    return dict(arguments)


def _check_process_classes(part: Lines) -> None:
    """Refuse names of schedulers and workers, which the cluster class calls, that are no classes of dask."""
    for name in PROCESS_CLASSES & part.values.keys():
        value = named = part.values[name]
        # A class that is not found may be one that only the workers have.
        with suppress(ImportError, AttributeError, ValueError), _interrupts_kept():
            named = import_term(value) if isinstance(value, str) else value
        if named is not value and not is_process_class(named):
            part.refuse(name, f"{name!r} names no class of a scheduler, a worker or a job: {value!r}.")
    for inner in part.parts.values():
        _check_process_classes(inner)


def _driver(file: Lines, cluster_class: type) -> Keywords:
    given = file.values.get("driver")
    if given is None:
        return {}
    if not is_job_queue(cluster_class):
        file.refuse(
            "driver", f"'driver' is for the job of imagery-dask submit, and {file.values['cluster']} submits no jobs."
        )
    part = file.parts.get("driver")
    if part is None:
        file.refuse("driver", f"'driver' must be a mapping of names to values, like 'arguments'; got {given!r}.")
    part.check_names(job_names(cluster_class) - NOT_DRIVERS, "argument")
    return as_jobqueue_expects(cluster_class, with_new_names(cluster_class, part))


def _count(file: Lines, name: str) -> int | None:
    count = file.values.get(name)
    if count is not None and not _is_count(count):
        file.refuse(name, f"{name!r} must be a whole number from 1; got {count!r}.")
    return count


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _adapt(file: Lines) -> tuple[int, int] | None:
    if file.values.get("adapt") is None:
        return None
    part = file.parts.get("adapt")
    if part is None or not part.values:
        file.refuse("adapt", f"'adapt' must be {{minimum: N, maximum: N}}; got {file.values['adapt']!r}.")
    part.check_names(("minimum", "maximum"))
    # At least one, since an export asks for the resources of its workers before it submits blocks.
    minimum, maximum = _count(part, "minimum") or 1, _count(part, "maximum")
    if maximum is None:
        part.refuse(None, "'adapt' needs a 'maximum'.")
    if maximum < minimum:
        part.refuse("maximum", f"'maximum' is less than 'minimum': {maximum} < {minimum}.")
    return minimum, maximum


def _environment(file: Lines) -> dict[str, str]:
    given = file.values.get("environment")
    if given is None:
        return {}
    part = file.parts.get("environment")
    if part is None:
        file.refuse("environment", f"'environment' must be a mapping of variables to values; got {given!r}.")
    for name, value in part.values.items():
        if not VARIABLE.fullmatch(name):
            part.refuse(name, f"{name!r} is not a valid name of a variable.")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or "\n" in str(value):
            part.refuse(name, f"the variable {name} must be text or a number; got {value!r} (in quotes it is text).")
    return {name: part.texts[name] for name in part.values}


def _preload(file: Lines) -> tuple[str, ...]:
    given = file.values.get("preload")
    modules = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(modules, list) or not all(isinstance(module, str) and module for module in modules):
        file.refuse("preload", f"'preload' must be a module or a file, or a list of them; got {given!r}.")
    return tuple(modules)


def _memory(file: Lines) -> int | None:
    given = file.values.get("worker_memory")
    if given is None:
        return None
    size = size_in_bytes(given)
    if size is None or size < LEAST_MEMORY:
        file.refuse(
            "worker_memory", f"'worker_memory' must be a size such as 4GiB; got {given!r}{' bytes' if size else ''}."
        )
    return size


def _retire_before(file: Lines) -> float | None:
    given = file.values.get("retire_before")
    seconds = time_in_seconds(given)
    if given is not None and seconds is None:
        file.refuse("retire_before", f"'retire_before' must be a time such as 90s, 10m or 1h; got {given!r}.")
    return seconds


def _address(file: Lines) -> str:
    address = file.values["address"]
    if isinstance(address, str) and address.endswith(".json"):
        return str(_beside(file, address))
    if not isinstance(address, str) or "://" not in address:
        file.refuse(
            "address", f"'address' must be tcp://HOST:PORT, tls://HOST:PORT or a scheduler file; got {address!r}."
        )
    return address


def _security(file: Lines) -> Security | None:
    given = file.values.get("security")
    if given is None:
        return None
    if given == "temporary" and "address" not in file.values:
        return Security.temporary()
    part = file.parts.get("security")
    if part is None:
        file.refuse(
            "security",
            f"'security' must be {{ca: FILE, cert: FILE, key: FILE}}, or 'temporary' with 'cluster'; got {given!r}.",
        )
    part.check_names(SECURITY)
    paths: dict[str, str] = {}
    for name, argument in SECURITY.items():
        value = part.values.get(name)
        if not isinstance(value, str):
            part.refuse(name if name in part.values else None, f"'security' needs {name!r}, the path of a PEM file.")
        path = _beside(file, value)
        if not path.is_file():
            part.refuse(name, f"{name!r}: there is no file {path}.")
        paths |= {argument.format(role=role): str(path) for role in ROLES}
    return Security(require_encryption=True, **paths)


def _beside(file: Lines, name: str) -> Path:
    """Return the path of a file that is named relative to the folder of the cluster file."""
    return (file.path.absolute().parent / Path(expanded_path(name))).absolute()


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Keep the handler of Ctrl-C while dask_jobqueue is imported: 0.9 sets one that ends the process with code 0.

    Outside of the main thread that import would fail, since a handler cannot be set there.
    """
    own = signal.signal

    def but_for_interrupts(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number == signal.SIGINT else own(number, handler)

    signal.signal = but_for_interrupts  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = own


def _class(file: Lines) -> Any:
    name = str(file.values["cluster"])
    module, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")) or not module:
        file.refuse(
            "cluster", f"'cluster' names no class: {name!r}; it must be a dotted name (distributed.LocalCluster)."
        )
    try:
        with _interrupts_kept():
            cluster_class = getattr(importlib.import_module(module), attribute)
        if cluster_class is SSHCluster and importlib.util.find_spec("asyncssh") is None:
            raise ModuleNotFoundError(name="asyncssh")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if importlib.util.find_spec(package) is not None:
            file.refuse("cluster", f"'cluster' names no class: there is no module {error.name!r}.")
        extra = EXTRAS.get(name) or EXTRAS.get(package)
        install = f"'imagery_dask[{extra}]'" if extra else package
        raise ImportError(
            f"{file.where('cluster')}: {name} needs the package {package!r}; pip install {install}."
        ) from None
    except AttributeError:
        near = close_word(
            attribute, [name for name in dir(importlib.import_module(module)) if name.endswith("Cluster")]
        )
        file.refuse("cluster", f"'cluster' names no class: {name!r}{near}.")
    if not is_cluster_class(cluster_class):
        kind = "another class" if isinstance(cluster_class, type) else f"a {type(cluster_class).__name__}"
        file.refuse(
            "cluster",
            f"'cluster' names no class of clusters: {name!r} is {kind}. Accepted are subclasses of "
            "distributed.deploy.Cluster (distributed.LocalCluster, those of dask_jobqueue, dask_kubernetes and "
            "dask_cloudprovider), distributed.SSHCluster and dask_gateway.GatewayCluster.",
        )
    return cluster_class
