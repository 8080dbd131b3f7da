"""Functions of dask that ask this package first, where dask has no hook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["wrap"]


def wrap(step: str, wrapper: Callable[[Any], Any]) -> bool:
    """Replace a function of dask in its module and where dask has imported it.

    Parameters
    ----------
    step : str
        Its module and name, such as ``dask.array.core:Array.__getitem__``.
    wrapper : callable
        Takes the function, and returns the one in its place.

    Returns
    -------
    bool
        False if this version of dask has no such function.
    """
    place, _, name = step.rpartition(".")
    module_name, _, class_name = place.partition(":")
    try:
        module = import_module(module_name)
        owner = getattr(module, class_name) if class_name else module
        function = getattr(owner, name)
    except (ImportError, AttributeError):
        return False
    wrapped = wrapper(function)
    setattr(owner, name, wrapped)
    for key, other in list(sys.modules.items()):
        if key.partition(".")[0] == "dask" and vars(other).get(name) is function:
            setattr(other, name, wrapped)
    return True
