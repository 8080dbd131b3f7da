"""Older names of dask-jobqueue's arguments, translated to the new ones.

dask-jobqueue 0.9 ignores the value of an older name if the new one has a value as well, and the keys ``environment``,
``preload`` and ``retire_before`` of cluster files give the new ones a value: lines would be lost without an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import dask

from imagery_dask.annotations import Keywords
from imagery_dask.cluster.batch_jobs import is_job_queue, system_of
from imagery_dask.cluster.classes import UnfitError, job_names
from imagery_dask.cluster.yaml_lines import Lines

__all__ = ["old_names", "with_configured", "with_new_names"]

NEW_NAMES = {
    "env_extra": "job_script_prologue", "extra": "worker_extra_args", "header_skip": "job_directives_skip",
    "job_extra": "job_extra_directives", "project": "account",
}  # fmt: skip
_logger = logging.getLogger("imagery_dask")


def old_names(cluster_class: Any) -> dict[str, str]:
    """Return the new names of a class's arguments by the older ones; empty if it is of no batch system."""
    if not is_job_queue(cluster_class):
        return {}
    known = job_names(cluster_class)  # `project` is no older name where there is no `account`
    return {old: new for old, new in NEW_NAMES.items() if new in known}


def with_new_names(cluster_class: Any, part: Lines) -> Keywords:
    """Return the values of a mapping of arguments by their new names, with a warning for each older one.

    Raises
    ------
    ValueError
        If an argument has both names, with the line of the older one.
    """
    values = dict(part.values)
    for old, new in old_names(cluster_class).items():
        value = values.pop(old, None)
        if not value:
            continue
        if values.get(new):
            part.refuse(old, f"{old!r} is the older name of {new!r}, which is set as well; set {new!r} alone.")
        _logger.warning("%s: %r is read as %r, its new name in dask-jobqueue.", part.where(old), old, new)
        values[new] = value
    return values


def with_configured(cluster_class: Any, arguments: Mapping[str, object]) -> Keywords:
    """Return arguments with those that dask's configuration (``jobqueue.SYSTEM``) has by their older names.

    Raises
    ------
    UnfitError
        If the configuration has both names.
    """
    result = dict(arguments)
    for old, new in old_names(cluster_class).items():
        section = f"jobqueue.{arguments.get('config_name') or system_of(cluster_class)}"
        older, newer = (f"{section}.{name.replace('_', '-')}" for name in (old, new))
        value = dask.config.get(older, None)
        if not value:
            continue
        if arguments.get(new) is not None:
            _logger.warning("%s of dask's configuration is not used, since 'arguments' have %r.", older, new)
        elif dask.config.get(newer, None):
            raise UnfitError(
                "cluster", f"dask's configuration has {older}, the older name of {newer}, and {newer} as well; set "
                f"{newer} alone."
            )  # fmt: skip
        else:
            _logger.warning("%s of dask's configuration is read as %s, its new name.", older, newer)
            result[new] = value
    return result
