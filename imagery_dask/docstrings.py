"""Parameter descriptions that several docstrings share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["fill_parameters"]

Function = TypeVar("Function", bound=Callable[..., object])


def fill_parameters(function: Function, prose: Mapping[str, str]) -> Function:
    """Replace ``{parameters}`` in a docstring with the shared descriptions of the function's parameters.

    Parameters that the docstring describes itself are left out.

    Parameters
    ----------
    function : callable
        Function whose docstring is changed in place.
    prose : mapping of str to str
        Description of each parameter, in numpydoc format.

    Returns
    -------
    callable
        `function`.
    """
    document = inspect.cleandoc(function.__doc__ or "")
    described = {line.split(" : ")[0].strip() for line in document.splitlines() if " : " in line}
    names = [name for name in inspect.signature(function).parameters if name in prose and name not in described]
    function.__doc__ = document.replace("{parameters}", "\n".join(prose[name] for name in names))
    return function
