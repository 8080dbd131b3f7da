"""Import of a package's public names on first use (Scientific Python's SPEC 1).

A package's ``__init__`` imports its names under ``TYPE_CHECKING``, for type checkers and import-linter; at run time it
takes ``__getattr__`` and ``__dir__`` from `lazy_names`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]], modules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose names are imported on first use.

    Parameters
    ----------
    package : str
        ``__name__`` of the package.
    names : mapping of str to sequence of str
        Public names, by the full name of the module that defines them. No name may equal that of a submodule of the
        package: importing the submodule would replace it.
    modules : sequence of str
        Public modules of the package.
    """
    module_of = {name: module for module, of_module in names.items() for name in of_module}

    def __getattr__(name: str) -> Any:
        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of, *modules})

    return __getattr__, __dir__
