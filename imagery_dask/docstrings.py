"""Docstrings whose parameters are described once and shared by several functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["fill_parameters"]

Function = TypeVar("Function", bound=Callable[..., object])


def fill_parameters(function: Function, prose: Mapping[str, str]) -> Function:
    """Replace ``{parameters}`` in a docstring by the prose of the parameters that it does not describe itself.

    Parameters
    ----------
    function : callable
        Its docstring is changed.
    prose : mapping of str to str
        Description of each parameter, in the form of numpydoc.

    Returns
    -------
    callable
        The function.
    """
    document = inspect.cleandoc(function.__doc__ or "")
    described = {line.split(" : ")[0].strip() for line in document.splitlines() if " : " in line}
    names = [name for name in inspect.signature(function).parameters if name in prose and name not in described]
    function.__doc__ = document.replace("{parameters}", "\n".join(prose[name] for name in names))
    return function
