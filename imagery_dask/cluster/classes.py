"""Translate settings of cluster files, which are the same for all classes, into arguments of the class.

========================  ======================  ==============================  =======================
class                     environment             preload                         worker_memory
========================  ======================  ==============================  =======================
``LocalCluster``          ``env``                 ``preload``                     ``memory_limit``
``SSHCluster``            ``worker_options: env``  ``worker_options: preload``     ``worker_options: memory_limit``
``dask_jobqueue.*``       ``job_script_prologue``  ``worker_extra_args``           ``memory`` (times processes)
``KubeCluster``           ``env``                 ``worker_command``              ``resources``
========================  ======================  ==============================  =======================
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dask
from dask.utils import format_bytes
from distributed import LocalCluster, Nanny, SSHCluster, Worker
from distributed.core import Server
from distributed.deploy import Cluster
from distributed.deploy.spec import ProcessInterface, SpecCluster

from imagery_dask.annotations import Keywords
from imagery_dask.cluster.batch_jobs import is_job_queue, system_of
from imagery_dask.validate import expanded_path

__all__ = [
    "EXTRAS",
    "NO_SHELL",
    "UnfitError",
    "WorkerSettings",
    "accepted_names",
    "fitted",
    "is_cluster_class",
    "is_process_class",
    "job_names",
    "sized",
    "takes_security",
    "as_jobqueue_expects",
]

# Extras of this package, by the cluster class or package that needs them.
EXTRAS = {
    "dask_jobqueue.SLURMCluster": "slurm", "dask_jobqueue.LSFCluster": "lsf", "dask_jobqueue.PBSCluster": "pbs",
    "dask_jobqueue.SGECluster": "sge", "dask_jobqueue": "clusters", "asyncssh": "ssh", "dask_kubernetes": "kubernetes",
    "dask_gateway": "gateway",
}  # fmt: skip
# Arguments that hold further keyword arguments.
PASSED_ON = ("base_class_kwargs",)
# Arguments of dask-jobqueue that are lists of lines or words.
LISTS_OF_JOBQUEUE = ("job_directives_skip", "job_extra_directives", "job_script_prologue", "worker_extra_args")
# Classes whose jobs run no shell script, so that variables cannot be exported in it.
NO_SHELL = ("HTCondorCluster",)
GATEWAY = "dask_gateway.client.GatewayCluster"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of workers that mean the same for every cluster class."""

    # Environment variables.
    environment: Mapping[str, str]
    # Modules, files or code that workers load before their first block.
    preload: tuple[str, ...]
    # Bytes of one worker process.
    memory: int | None

    def names(self) -> list[str]:
        """Return the keys of the cluster file that are set."""
        values = {"environment": self.environment, "preload": self.preload, "worker_memory": self.memory}
        return [name for name, value in values.items() if value]


class UnfitError(ValueError):
    """A cluster class does not support a key of the cluster file, or `arguments` contradict it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def is_cluster_class(value: Any) -> bool:
    """Return True for dask's cluster classes and their subclasses; whatever a file names is called."""
    if value is SSHCluster:  # a function
        return True
    if not inspect.isclass(value):
        return False
    # dask-gateway's class has no base class.
    gateway = any(f"{base.__module__}.{base.__name__}" == GATEWAY for base in value.__mro__)
    return gateway or issubclass(value, Cluster)


def is_process_class(value: Any) -> bool:
    """Return True for classes of schedulers, workers, nannies, and jobs of a batch system."""
    return inspect.isclass(value) and issubclass(value, (Server, ProcessInterface))


def takes_security(cluster_class: type) -> bool:
    """Return True if a class passes certificates to its scheduler and workers."""
    return is_job_queue(cluster_class) or (inspect.isclass(cluster_class) and issubclass(cluster_class, LocalCluster))


def as_jobqueue_expects(cluster_class: type, arguments: Mapping[str, object]) -> Keywords:
    """Return arguments as dask-jobqueue expects them.

    Multi-line strings are split where it expects a list, since it would iterate over the characters, and the home
    folder in ``log_directory`` is expanded.
    """
    result = dict(arguments)
    for name in LISTS_OF_JOBQUEUE if is_job_queue(cluster_class) else ():
        if isinstance(text := result.get(name), str):
            result[name] = [line for line in text.splitlines() if line.strip()]
    # dask-jobqueue makes this folder, and neither it nor a batch system expands "~".
    if is_job_queue(cluster_class) and isinstance(folder := result.get("log_directory"), str):
        result["log_directory"] = expanded_path(folder)
    return result


def accepted_names(cluster_class: type) -> set[str] | None:
    """Return the names of the keyword arguments of a class, or None if they cannot be determined."""
    if is_job_queue(cluster_class):
        return _names_of(_with_own_arguments(cluster_class)) | job_names(cluster_class)
    elif inspect.isclass(cluster_class) and issubclass(cluster_class, LocalCluster):
        classes = [LocalCluster, Nanny, Worker]
    elif cluster_class is SSHCluster:
        classes = [SSHCluster, SpecCluster]
    elif _is_kube(cluster_class):
        classes = [cluster_class]
    else:
        return None
    return _names_of(classes)


def job_names(cluster_class: Any) -> set[str]:
    """Return the names of the keyword arguments of the job class of a batch system."""
    return _names_of(_with_own_arguments(cluster_class.job_cls))


def _with_own_arguments(kind: type) -> list[Any]:
    return [base for base in getattr(kind, "__mro__", ()) if "__init__" in vars(base) and base is not object]


def _names_of(classes: Iterable[Any]) -> set[str]:
    names = {name for kind in classes for name in inspect.signature(kind).parameters}
    return names - {"self", "args", "kwargs", "job_kwargs", "worker_kwargs", "loop", "asynchronous", *PASSED_ON}


def fitted(cluster_class: type, arguments: Keywords, settings: WorkerSettings) -> Keywords:
    """Return the arguments of a cluster class, with the settings of its workers added.

    Raises
    ------
    UnfitError
        If the class does not support a setting, or `arguments` have it already.
    """
    if not settings.names():
        return dict(arguments)
    if inspect.isclass(cluster_class) and issubclass(cluster_class, LocalCluster):
        return _local(arguments, settings)
    if cluster_class is SSHCluster:
        options = _worker_options(arguments.get("worker_options") or {}, settings)
        return {**arguments, "worker_options": options}
    if is_job_queue(cluster_class) and cluster_class.__name__ not in NO_SHELL:
        return _job_queue(cluster_class, arguments, settings)
    if _is_kube(cluster_class):
        return _kube(arguments, settings)
    key = settings.names()[0]
    raise UnfitError(
        key, f"this package does not know what {_name(cluster_class)} calls {key!r}; set it in 'arguments' by the "
        "name in its documentation (for dask-gateway, an option that the server offers)."
    )  # fmt: skip


def sized(cluster_class: type, arguments: Keywords, workers: int) -> Keywords | None:
    """Return the arguments with which a class starts a number of workers; None if the cluster is scaled later.

    Raises
    ------
    UnfitError
        If there are fewer hosts than workers.
    """
    if (inspect.isclass(cluster_class) and issubclass(cluster_class, LocalCluster)) or _is_kube(cluster_class):
        return {**arguments, "n_workers": workers}
    if cluster_class is not SSHCluster:
        return None
    # Hosts are added whole, each with all its workers.
    per_host = int((arguments.get("worker_options") or {}).get("n_workers", 1))
    needed, hosts = -(-workers // per_host) + 1, list(arguments.get("hosts") or ())
    if needed > len(hosts):
        raise UnfitError(
            "workers", f"{workers} workers need {needed} hosts, of which the first runs the scheduler; 'hosts' has "
            f"{len(hosts)} (a host that is listed twice gets two workers)."
        )  # fmt: skip
    return {**arguments, "hosts": hosts[:needed]}


def _is_kube(cluster_class: type) -> bool:
    return str(getattr(cluster_class, "__module__", "")).startswith("dask_kubernetes.")


def _name(cluster_class: type) -> str:
    return str(getattr(cluster_class, "__name__", cluster_class))


def _local(arguments: Keywords, settings: WorkerSettings) -> Keywords:
    if arguments.get("processes") is False and settings.environment:
        raise UnfitError(
            "environment", "threads of this process ('processes: false') have no environment of their own."
        )
    return _worker_options(arguments, settings)


def _worker_options(options: Keywords, settings: WorkerSettings) -> Keywords:
    result = dict(options)
    if settings.environment:
        if not isinstance(options.get("env") or {}, Mapping):
            raise UnfitError(
                "environment", f"'env' in 'arguments' must be a mapping of names to values; got {options['env']!r}."
            )
        result["env"] = {**(options.get("env") or {}), **settings.environment}
    if settings.preload:
        result["preload"] = [*_list(options.get("preload")), *settings.preload]
    if settings.memory:
        _refuse_second_memory(options, "memory_limit")
        result["memory_limit"] = settings.memory
    return result


def _job_queue(cluster_class: type, arguments: Keywords, settings: WorkerSettings) -> Keywords:
    section = arguments.get("config_name") or system_of(cluster_class)

    def own(name: str) -> list[str]:
        value = arguments.get(name)
        return _list(dask.config.get(f"jobqueue.{section}.{name.replace('_', '-')}") if value is None else value)

    result = dict(arguments)
    if settings.environment:
        # Before the file's own lines, which may use the variables.
        exports = [f"export {name}={shlex.quote(value)}" for name, value in settings.environment.items()]
        result["job_script_prologue"] = [*exports, *own("job_script_prologue")]
    if settings.preload:
        flags = [word for module in settings.preload for word in ("--preload", shlex.quote(module))]
        result["worker_extra_args"] = [*own("worker_extra_args"), *flags]
    if settings.memory:
        _refuse_second_memory(arguments, "memory")
        processes = arguments.get("processes") or dask.config.get(f"jobqueue.{section}.processes") or 1
        result["memory"] = format_bytes(settings.memory * int(processes)).replace(" ", "")
    return result


def _kube(arguments: Keywords, settings: WorkerSettings) -> Keywords:
    result = dict(arguments)
    if settings.environment:
        own = arguments.get("env") or {}
        extra = [{"name": name, "value": value} for name, value in settings.environment.items()]
        result["env"] = [*own, *extra] if isinstance(own, list) else {**own, **settings.environment}
    if settings.preload:
        command = arguments.get("worker_command") or ["dask", "worker"]
        flags = [word for module in settings.preload for word in ("--preload", module)]
        result["worker_command"] = [*(command.split() if isinstance(command, str) else command), *flags]
    if settings.memory:
        resources = {kind: dict(amounts) for kind, amounts in (arguments.get("resources") or {}).items()}
        for kind in ("requests", "limits"):
            of_kind = resources.setdefault(kind, {})
            _refuse_second_memory(of_kind, "memory", f"resources: {kind}: memory")
            of_kind["memory"] = str(settings.memory)  # in bytes: Kubernetes spells GiB as Gi
        result["resources"] = resources
    return result


def _refuse_second_memory(arguments: Mapping[str, object], name: str, path: str = "") -> None:
    if arguments.get(name) is not None:
        raise UnfitError(
            "worker_memory", f"the memory is given twice: by 'worker_memory' and by {path or name!r} in 'arguments'."
        )


def _list(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
