"""``--config FILE``: the options of an export in a YAML or JSON file, and the file that reproduces an export.

Keys are the names of options without dashes before them, and ``export`` (a format) and ``out``. Values are written as
on the command line, or as lists and numbers of YAML. Options that are given on the command line win.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from imagery_dask.annotations import Keywords
from imagery_dask.urls import without_secrets

if TYPE_CHECKING:
    from imagery_dask.cluster.yaml_lines import Lines
    from imagery_dask.export.core.base import Export

__all__ = ["CONFIG", "FORMAT", "config_option", "defaults_of", "keep_config", "names_of", "read_config"]

# Name of the file among the records of an export.
CONFIG = "config.yaml"
FORMAT = "export"
# Options that say how one call behaves, and are not what an export is.
OF_A_CALL = ("overwrite", "repair", "redo_missing", "report")
# Options that say how an export runs: kept where they are given.
OF_A_RUN = ("cluster", "workers", "wait", "retire_before", "max_missing", "max_requests", "block_mib")
SOURCES = ("image_source", "segmentation_source")

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command, others: Collection[str]) -> Command:
    """Add ``--config`` to a command that has the options of a format of exports.

    Parameters
    ----------
    command : callable
        The command's function.
    others : collection of str
        Names that a file may have too, although the command has no such options.
    """
    return click.option(
        "--config", type=click.Path(exists=True, dir_okay=False), metavar="FILE", is_eager=True, expose_value=False,
        callback=partial(_apply, others),
        help="YAML or JSON file with options by name; options on the command line win.",
    )(command)  # fmt: skip


def read_config(path: str) -> Lines:
    """Return the options in a file, and the lines that they are on.

    Raises
    ------
    ValueError
        The file is not a mapping in YAML or JSON.
    """
    from imagery_dask.cluster.yaml_lines import read_lines

    return read_lines(Path(path), "it must have options by name, such as 'bounds'")


def defaults_of(config: Lines, command: click.Command, others: Collection[str] = ()) -> Keywords:
    """Return the values of a command's parameters in a file, as click takes them for defaults.

    Parameters
    ----------
    config : Lines
        The file.
    command : click.Command
        Which command.
    others : collection of str
        Names that are left out.

    Raises
    ------
    ValueError
        A name is unknown, or a value is of another kind; the message has the line.
    """
    known = names_of(command)
    given = {name.replace("_", "-"): name for name in config.values}
    for name, written in given.items():
        if name not in {FORMAT, *others, *known}:
            from imagery_dask.cluster.yaml_lines import close_word

            config.refuse(written, f"unknown option {written!r}{close_word(name, known)}.")
    form = config.values.get(FORMAT, command.name)
    if form != command.name:
        config.refuse(FORMAT, f"it has options of {form!r}, and this is an export to {command.name}.")
    return {
        str(known[name].name): _value(config, written, known[name])
        for name, written in given.items()
        if name in known and config.values[written] is not None
    }


def names_of(command: click.Command) -> dict[str, click.Parameter]:
    """Return the parameters of a command by their names in files."""
    named = {}
    for parameter in command.params:
        name = parameter.opts[0].lstrip("-")
        if name not in ("config", "help"):
            named[name] = parameter
    return named


def _apply(others: Collection[str], context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Take the values in a file for the defaults of a command."""
    del parameter
    if path is not None:
        context.default_map = defaults_of(read_config(path), context.command, others)


def _value(config: Lines, written: str, parameter: click.Parameter) -> Any:
    """Return a value as on the command line."""
    value = config.values[written]
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    if is_flag != isinstance(value, bool):
        config.refuse(written, f"{written} must be {'true or false' if is_flag else 'a value'}; got {value!r}.")
    if is_flag or isinstance(value, dict):
        return value
    if parameter.nargs != 1:
        return [str(item) for item in (value.split() if isinstance(value, str) else _listed(value))]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return config.texts.get(written, str(value))


def _listed(value: Any) -> list[Any]:
    """Return the numbers of a list of numbers, or of corners."""
    if not isinstance(value, list):
        return [value]
    return [number for item in value for number in (item if isinstance(item, list) else [item])]


# ---------------------------------------------------------------------------------------------- what an export writes


def keep_config(context: click.Context, built: Export, out: str) -> None:
    """Write the file that reproduces an export among its records, if these are of this export.

    Parameters
    ----------
    context : click.Context
        Context of the command of a format.
    built : Export
        What was run.
    out : str
        Its target.
    """
    from imagery_dask.export.core.plans import fingerprint_of, timestamp_in
    from imagery_dask.records.runs import runs_in

    files = built.records
    if files is None:
        return
    fingerprint = fingerprint_of(built.fingerprint_fields)
    if any(run.plan.get("fingerprint") == fingerprint for run in runs_in(files)):
        moment = timestamp_in(built.fingerprint_fields)
        others = {} if moment is None or context.params.get("version") else {"timestamp": str(moment)}
        files.put(CONFIG, _text(context, {"out": out} | others).encode(), "application/yaml")


def _text(context: click.Context, others: Keywords) -> str:
    """Return the content of the file: JSON values, which are YAML too."""
    lines = [
        "# Arguments of an export; imagery-dask export --config FILE runs it again.",
        f"{FORMAT}: {json.dumps(context.command.name)}",
    ]
    values = context.params | others
    for name, parameter in names_of(context.command).items():
        own = str(parameter.name)
        is_default = context.get_parameter_source(own) is ParameterSource.DEFAULT and own not in others
        if own in OF_A_CALL or (own in OF_A_RUN and is_default):
            continue
        value = values[own]
        if value is None:
            if "none" not in parameter.type.name.split("|"):  # it was not given
                continue
            value = "none"
        if own in SOURCES or own in ("out", "cluster"):
            value = _place(value)
        if own == "max_missing" and isinstance(value, float):
            value = f"{100 * value:.12g}%"
        if own in ("bounds", "resolution"):
            value = _numbers(value)
        if own == "regions":
            value = {region: [_numbers(box[:3]), _numbers(box[3:])] for region, box in value.items()}
        if value != () and value != []:
            lines.append(f"{name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _numbers(values: Iterable[float]) -> list[float]:
    return [int(number) if float(number).is_integer() else number for number in values]


def _place(path: str) -> str:
    """Return a URL without its secrets, or a local path from the root of the file system."""
    is_path = "://" not in path and (os.path.exists(path) or os.path.exists(os.path.dirname(path) or "."))
    return os.path.abspath(os.path.expanduser(path)) if is_path and path != "local" else without_secrets(path)
