"""Arguments that all writers share: fields of options that are also flags, and the prose of the run keywords.

Each format has a frozen dataclass of options, validated when it is made: `ZarrOptions`, `PrecomputedOptions`,
`ImageOptions`. Its fields are the keywords of the public function, the ``options`` of a plan's JSON, and, where they
have a `Flag`, options of ``imagery-dask export`` and ``imagery-dask plan``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from imagery_dask.docstrings import fill_parameters

__all__ = ["Flag", "describe_run", "flags_of", "option", "option_by_name"]

FLAG = "flag"
Function = TypeVar("Function", bound=Callable[..., object])

# Keywords of every writer that become `RunOptions`.
RUN_PROSE = {
    "block_mib": """block_mib : float, optional
    Size of the blocks that tasks work on, in MiB. By default 32, less where that leaves workers idle. A block is at
    least one shard, or one chunk.""",
    "overwrite": """overwrite : bool
    Replace a store that exists. On a local disk the new one is written beside it and takes its place when it is
    complete, so that `data` may be read from the store that is replaced; in a bucket the old one is removed first.
    With False (default), the same call resumes an export that was interrupted, and does nothing if it is complete.""",
    "repair": """repair : bool
    Write the blocks again that ``imagery-dask verify`` found damaged.""",
    "redo_missing": """redo_missing : bool
    Write the blocks again of which storage chunks of the source were missing.""",
    "max_missing": """max_missing : float or int, optional
    End early if more storage chunks of the source do not exist: a fraction of those that the export reads (0.001), or
    a number of them (5).""",
    "max_requests": """max_requests : int, optional
    Largest number of requests in flight to one server, from all workers together.""",
    "report": """report : str or path, optional
    HTML file to write at the end: throughput, states of the blocks, pictures, failures.""",
    "cluster": """cluster : optional
    See `imagery_dask.cluster.connect`. By default the current dask client, or threads of this process. A script that
    starts worker processes (``"local"``) needs Python's ``if __name__ == "__main__":`` guard.""",
    "workers": """workers : int or "auto", optional
    Number of workers to start, or of threads of this process; an error for a cluster that runs already. ``"auto"``
    starts a few workers of a cluster, and more as long as they make the export faster.""",
    "max_workers": """max_workers : int, optional
    Largest number of workers for ``workers="auto"``. By default that of the cluster file, or one per core.""",
    "progress": """progress : bool or callable
    Show a progress bar (default), or call with the `RunReport` after each block.""",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field of options is given on the command line: ``--name-of-the-field``."""

    #: Help text.
    help: str
    #: Syntax of the value: "shape", "levels", "window", "colors" or "codec"; "" reads what the field's type says.
    syntax: str = ""
    #: Words that are accepted, where the field's type does not list them.
    choices: tuple[str, ...] = ()
    #: Smallest and largest number.
    minimum: int | None = None
    maximum: int | None = None
    #: Default on the command line, where it is written differently there.
    default: Any = None


def option(default: object, help: str, /, metadata: Mapping[str, Any] = MappingProxyType({}), **flag: Any) -> Any:
    """Return a dataclass field with a default that is also a flag; keywords as for `Flag`."""
    return field(default=default, metadata={**metadata, FLAG: {"": Flag(help, **flag)}})


def option_by_name(default: object, /, metadata: Mapping[str, Any] = MappingProxyType({}), **flags: Flag) -> Any:
    """Return a dataclass field that maps names to words: ``--NAME-FIELD`` for each name."""
    return field(default=default, metadata={**metadata, FLAG: flags})


def flags_of(metadata: Mapping[str, Any]) -> Mapping[str, Flag]:
    """Return the flags in the metadata of a field by name; the name is "" where the field has only one."""
    flags: Mapping[str, Flag] = metadata.get(FLAG, {})
    return flags


def describe_run(function: Function) -> Function:
    """Fill ``{parameters}`` in the docstring of a writer with the prose of the keywords that say how it runs."""
    return fill_parameters(function, RUN_PROSE)
