"""Let workers leave before the walltime of their jobs, when the batch system would kill them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import dask

from imagery_dask.annotations import Keywords
from imagery_dask.cluster.batch_jobs import is_job_queue, system_of
from imagery_dask.cluster.classes import UnfitError

__all__ = ["retiring"]

# By default workers leave a tenth of the walltime before it, at most 10 minutes.
DEFAULT_SHARE, DEFAULT_MOST_S = 10, 600.0
DAY, HOUR, MINUTE = 86_400, 3_600, 60
# Units of the fields of a walltime, by the number of fields: ``{3: (HOUR, MINUTE, 1)}`` for H:M:S.
FIELDS: dict[str, dict[int, tuple[int, ...]]] = {
    # https://slurm.schedmd.com/sbatch.html#OPT_time
    "slurm": {1: (MINUTE,), 2: (MINUTE, 1), 3: (HOUR, MINUTE, 1)},
    # bsub -W [hour:]minute
    "lsf": {1: (MINUTE,), 2: (HOUR, MINUTE)},
    "oar": {1: (HOUR,), 2: (HOUR, MINUTE), 3: (HOUR, MINUTE, 1)},
}
OTHERS = {1: (1,), 2: (MINUTE, 1), 3: (HOUR, MINUTE, 1), 4: (DAY, HOUR, MINUTE, 1)}
SLURM_AFTER_DAYS = {1: (HOUR,), 2: (HOUR, MINUTE), 3: (HOUR, MINUTE, 1)}


def retiring(cluster_class: type, arguments: Mapping[str, object], before_s: float | None) -> Keywords:
    """Add dask's ``--lifetime`` to the arguments of a class, so that workers leave before the walltime of their jobs.

    Each leaves at a random time between once and twice `before_s` before it. Other workers take its blocks.

    Parameters
    ----------
    cluster_class : callable
        The cluster class.
    arguments : mapping
        Its keyword arguments.
    before_s : float or None
        Seconds. By default a tenth of the walltime, at most 10 minutes, if there is a walltime and `arguments` have
        no lifetime.

    Raises
    ------
    UnfitError
        If the class has no walltime, it is shorter than `before_s`, or `arguments` have a lifetime.
    """
    if not is_job_queue(cluster_class):
        if before_s is None:
            return dict(arguments)
        name = getattr(cluster_class, "__name__", cluster_class)
        raise _unfit(f"workers of {name} have no walltime.")
    section = arguments.get("config_name") or system_of(cluster_class)

    def setting(name: str) -> Any:
        own = arguments.get(name)
        return dask.config.get(f"jobqueue.{section}.{name.replace('_', '-')}", None) if own is None else own

    words = setting("worker_extra_args") or []
    words = [words] if isinstance(words, str) else list(words)
    walltime_s = walltime_seconds(system_of(cluster_class), setting("walltime"))
    if any(flag.startswith("--lifetime") for word in words for flag in str(word).split()):
        if before_s is None:
            return dict(arguments)
        raise _unfit("worker_extra_args have '--lifetime' as well; remove one of the two.")
    if walltime_s is None:
        if before_s is None:
            return dict(arguments)
        raise _unfit(f"there is no walltime (walltime: {setting('walltime')!r}).")
    if before_s is None:
        before_s = min(walltime_s / DEFAULT_SHARE, DEFAULT_MOST_S)
    if before_s >= walltime_s:
        raise _unfit(
            f"{before_s:g} s is not less than the walltime of {walltime_s:g} s ({setting('walltime')!r}); "
            "set less, or ask for a longer walltime."
        )
    # dask draws the lifetime between lifetime - stagger and lifetime + stagger.
    stagger = min(before_s / 2, (walltime_s - before_s) / 4)
    lifetime = walltime_s - before_s - stagger
    flags = ["--lifetime", f"{lifetime:g}s", "--lifetime-stagger", f"{stagger:g}s"]
    return {**arguments, "worker_extra_args": [*words, *flags]}


def walltime_seconds(system: str, walltime: object) -> float | None:
    """Return a walltime in seconds, read as the batch system reads it; None if there is none or its form is unknown.

    Parameters
    ----------
    system : str
        dask-jobqueue's name of the batch system.
    walltime : object
        The argument ``walltime`` of the cluster class.

    Examples
    --------
    >>> walltime_seconds("slurm", "1-12"), walltime_seconds("slurm", "90"), walltime_seconds("pbs", "90")
    (129600.0, 5400.0, 90.0)
    """
    text, fields = str(walltime).strip(), FIELDS.get(system, OTHERS)
    days, dash, after = text.partition("-")
    if system == "slurm" and dash:
        text, fields = after, SLURM_AFTER_DAYS
    elif system == "lsf":
        days, text = "0", text.partition("/")[0]  # hours:minutes/host
    else:
        days = "0"
    parts = text.split(":")
    if len(parts) not in fields or not all(re.fullmatch(r"\d+", part) for part in [days, *parts]):
        return None
    units = fields[len(parts)]
    seconds = int(days) * DAY + sum(int(part) * unit for part, unit in zip(parts, units, strict=True))
    return float(seconds) if seconds else None


def _unfit(message: str) -> UnfitError:
    return UnfitError("retire_before", f"'retire_before' (--retire-before): {message}")
