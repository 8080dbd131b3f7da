"""What the arguments of all writers have in common: fields of options that are flags of the command line too.

Each format has a frozen dataclass of options, validated when it is made: `ZarrOptions`, `PrecomputedOptions`,
`ImageOptions`. Its fields are the keywords of the public function, the ``options`` of a plan's JSON, and, where they
have a `Flag`, options of ``imagery-dask export`` and ``imagery-dask plan``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Flag", "flags_of", "option", "option_by_name"]

FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field of options is given on the command line: ``--name-of-the-field``."""

    #: Help text.
    help: str
    #: Syntax of the value: "shape", "levels", "window" or "colors"; "" reads what the field's type says.
    syntax: str = ""
    #: Words that are accepted, where the field's type does not list them.
    choices: tuple[str, ...] = ()
    #: Smallest and largest number.
    minimum: int | None = None
    maximum: int | None = None
    #: Default on the command line, where it is written differently there.
    default: Any = None


def option(default: Any, help: str, /, **flag: Any) -> Any:
    """Return a dataclass field with a default that is also a flag; keywords as for `Flag`."""
    return field(default=default, metadata={FLAG: {"": Flag(help, **flag)}})


def option_by_name(default: Any, /, **flags: Flag) -> Any:
    """Return a dataclass field that maps names to words: ``--NAME-FIELD`` for each name."""
    return field(default=default, metadata={FLAG: flags})


def flags_of(metadata: Mapping[str, Any]) -> Mapping[str, Flag]:
    """Return the flags in the metadata of a field by name; the name is "" where the field has only one."""
    flags: Mapping[str, Flag] = metadata.get(FLAG, {})
    return flags
