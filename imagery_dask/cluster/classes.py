"""What each cluster class calls the things that a cluster file says in one way.

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
from distributed.deploy.spec import SpecCluster

from imagery_dask.cluster.batch_jobs import is_job_queue, system_of

__all__ = [
    "EXTRAS",
    "NO_SHELL",
    "UnfitError",
    "Wishes",
    "accepted_names",
    "fitted",
    "job_names",
    "sized",
    "takes_security",
    "with_lists",
]

# Package, or class, to the extra of this package that installs it.
EXTRAS = {
    "dask_jobqueue.SLURMCluster": "slurm", "dask_jobqueue.LSFCluster": "lsf", "dask_jobqueue.PBSCluster": "pbs",
    "dask_jobqueue.SGECluster": "sge", "dask_jobqueue": "clusters", "asyncssh": "ssh", "dask_kubernetes": "kubernetes",
    "dask_gateway": "gateway",
}  # fmt: skip
# Arguments of a job that pass others on.
OF_JOBQUEUE = ("base_class_kwargs",)
# Lines of its jobs' script, and words of its workers' command.
LISTS_OF_JOBQUEUE = ("job_directives_skip", "job_extra_directives", "job_script_prologue", "worker_extra_args")
# Its jobs have no script of a shell that variables could be set in.
NO_SHELL = ("HTCondorCluster",)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What workers should have.

    Parameters
    ----------
    environment : mapping
        Variables.
    preload : tuple of str
        Modules, files or code that workers load first.
    memory : int or None
        Bytes of one worker process.
    """

    environment: Mapping[str, str]
    preload: tuple[str, ...]
    memory: int | None

    def names(self) -> list[str]:
        """Name the keys of the file that are set."""
        said = {"environment": self.environment, "preload": self.preload, "worker_memory": self.memory}
        return [name for name, value in said.items() if value]


class UnfitError(ValueError):
    """A class cannot have what a key of the file asks for."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def takes_security(cluster_class: Any) -> bool:
    """Whether a class hands certificates on to its scheduler and workers."""
    return is_job_queue(cluster_class) or (inspect.isclass(cluster_class) and issubclass(cluster_class, LocalCluster))


def with_lists(cluster_class: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in which text that stands for a list is one, of its lines: dask-jobqueue would take it by letters."""
    made = dict(arguments)
    for name in LISTS_OF_JOBQUEUE if is_job_queue(cluster_class) else ():
        if isinstance(given := made.get(name), str):
            made[name] = [line for line in given.splitlines() if line.strip()]
    return made


def accepted_names(cluster_class: Any) -> set[str] | None:
    """Names of the keyword arguments that a class takes, or None where it passes them on to who knows what."""
    if is_job_queue(cluster_class):
        return _names_of(_with_own_arguments(cluster_class)) | job_names(cluster_class)
    elif inspect.isclass(cluster_class) and issubclass(cluster_class, LocalCluster):
        takers = [LocalCluster, Nanny, Worker]
    elif cluster_class is SSHCluster:
        takers = [SSHCluster, SpecCluster]
    elif _is_kube(cluster_class):
        takers = [cluster_class]
    else:
        return None
    return _names_of(takers)


def job_names(cluster_class: Any) -> set[str]:
    """Names of the keyword arguments of a job of a batch system."""
    return _names_of(_with_own_arguments(cluster_class.job_cls))


def _with_own_arguments(kind: Any) -> list[Any]:
    return [each for each in getattr(kind, "__mro__", ()) if "__init__" in vars(each) and each is not object]


def _names_of(takers: Iterable[Any]) -> set[str]:
    names = {name for taker in takers for name in inspect.signature(taker).parameters}
    return names - {"self", "args", "kwargs", "job_kwargs", "worker_kwargs", "loop", "asynchronous", *OF_JOBQUEUE}


def fitted(cluster_class: Any, arguments: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    """Arguments of a class with what a file wishes for its workers.

    Raises
    ------
    UnfitError
        When the class has no way for it, or `arguments` say it already.
    """
    if not wishes.names():
        return dict(arguments)
    if inspect.isclass(cluster_class) and issubclass(cluster_class, LocalCluster):
        return _local(arguments, wishes)
    if cluster_class is SSHCluster:
        options = _worker_options(arguments.get("worker_options") or {}, wishes)
        return {**arguments, "worker_options": options}
    if is_job_queue(cluster_class) and cluster_class.__name__ not in NO_SHELL:
        return _job_queue(cluster_class, arguments, wishes)
    if _is_kube(cluster_class):
        return _kube(arguments, wishes)
    key = wishes.names()[0]
    raise UnfitError(
        key, f"this package does not know what {_name(cluster_class)} calls {key!r}; say it in 'arguments', as its "
        "documentation has it (with dask-gateway: an option that the server offers)."
    )  # fmt: skip


def sized(cluster_class: Any, arguments: Mapping[str, Any], workers: int) -> dict[str, Any] | None:
    """Arguments with which a class starts so many workers; None where it is to be scaled once it is there.

    Raises
    ------
    UnfitError
        For more workers than there are hosts.
    """
    if (inspect.isclass(cluster_class) and issubclass(cluster_class, LocalCluster)) or _is_kube(cluster_class):
        return {**arguments, "n_workers": workers}
    if cluster_class is not SSHCluster:
        return None
    # With several workers to a host, a host more or less is the finest step.
    each = int((arguments.get("worker_options") or {}).get("n_workers", 1))
    needed, hosts = -(-workers // each) + 1, list(arguments.get("hosts") or ())
    if needed > len(hosts):
        raise UnfitError(
            "workers", f"{workers} workers need {needed} hosts, the first of which is the scheduler's; 'hosts' has "
            f"{len(hosts)} (a host that is there twice gets two workers)."
        )  # fmt: skip
    return {**arguments, "hosts": hosts[:needed]}


def _is_kube(cluster_class: Any) -> bool:
    return str(getattr(cluster_class, "__module__", "")).startswith("dask_kubernetes.")


def _name(cluster_class: Any) -> str:
    return str(getattr(cluster_class, "__name__", cluster_class))


def _local(arguments: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    if arguments.get("processes") is False and wishes.environment:
        raise UnfitError("environment", "threads of this process ('processes: false') have no own environment.")
    return _worker_options(arguments, wishes)


def _worker_options(options: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    made = dict(options)
    if wishes.environment:
        if not isinstance(options.get("env") or {}, Mapping):
            raise UnfitError("environment", f"'env' in 'arguments' is no names with values: {options['env']!r}.")
        made["env"] = {**(options.get("env") or {}), **wishes.environment}
    if wishes.preload:
        made["preload"] = [*_list(options.get("preload")), *wishes.preload]
    if wishes.memory:
        _say_once(options, "memory_limit")
        made["memory_limit"] = wishes.memory
    return made


def _job_queue(cluster_class: Any, arguments: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    section = arguments.get("config_name") or system_of(cluster_class)

    def own(name: str) -> list[str]:
        given = arguments.get(name)
        return _list(dask.config.get(f"jobqueue.{section}.{name.replace('_', '-')}") if given is None else given)

    made = dict(arguments)
    if wishes.environment:
        # First, so that what the file's own lines activate sees them.
        exports = [f"export {name}={shlex.quote(value)}" for name, value in wishes.environment.items()]
        made["job_script_prologue"] = [*exports, *own("job_script_prologue")]
    if wishes.preload:
        flags = [word for each in wishes.preload for word in ("--preload", shlex.quote(each))]
        made["worker_extra_args"] = [*own("worker_extra_args"), *flags]
    if wishes.memory:
        _say_once(arguments, "memory")
        processes = arguments.get("processes") or dask.config.get(f"jobqueue.{section}.processes") or 1
        made["memory"] = format_bytes(wishes.memory * int(processes)).replace(" ", "")
    return made


def _kube(arguments: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    made = dict(arguments)
    if wishes.environment:
        own = arguments.get("env") or {}
        extra = [{"name": name, "value": value} for name, value in wishes.environment.items()]
        made["env"] = [*own, *extra] if isinstance(own, list) else {**own, **wishes.environment}
    if wishes.preload:
        command = arguments.get("worker_command") or ["dask", "worker"]
        flags = [word for each in wishes.preload for word in ("--preload", each)]
        made["worker_command"] = [*(command.split() if isinstance(command, str) else command), *flags]
    if wishes.memory:
        resources = {kind: dict(each) for kind, each in (arguments.get("resources") or {}).items()}
        for kind in ("requests", "limits"):
            of_kind = resources.setdefault(kind, {})
            _say_once(of_kind, "memory", f"resources: {kind}: memory")
            of_kind["memory"] = str(wishes.memory)  # bytes: Kubernetes writes Gi for GiB
        made["resources"] = resources
    return made


def _say_once(given: Mapping[str, Any], name: str, called: str = "") -> None:
    if given.get(name) is not None:
        raise UnfitError(
            "worker_memory", f"the memory is said twice: by 'worker_memory' and by {called or name!r} in 'arguments'."
        )


def _list(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
