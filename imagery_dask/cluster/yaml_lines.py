"""A YAML file whose values know their lines, so that an error can say where."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

__all__ = ["Lines", "close_word", "read_lines"]

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True, slots=True)
class Lines:
    """A mapping of a YAML file.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    line : int
        Where the mapping begins, from 1.
    values : dict
        Names to values; a mapping among them is a dict.
    lines : dict
        Names to the lines that they stand on.
    parts : dict
        The same mappings, as `Lines`.
    texts : dict
        Names to values as they are written, where these are no mappings and no lists.
    """

    path: Path
    line: int
    values: dict[str, Any]
    lines: dict[str, int]
    parts: dict[str, Lines]
    texts: dict[str, str] = field(default_factory=dict)

    def refuse(self, name: str | None, message: str) -> NoReturn:
        """Raise the ValueError that says what is wrong, and on which line."""
        raise ValueError(f"{self.where(name)}: {message}")

    def where(self, name: str | None) -> str:
        """Name the file and the line."""
        return f"{self.path}, line {self.lines.get(name, self.line) if name else self.line}"

    def check_names(self, known: Collection[str], what: str = "key") -> None:
        """Refuse names that are not known, with the one that was probably meant."""
        for name in self.values:
            if name not in known:
                keys = ", ".join(sorted(known))
                self.refuse(name, f"unknown {what} {name!r}{close_word(name, known)}; the {what}s are {keys}.")


def close_word(name: str, known: Collection[str]) -> str:
    """Ask whether a word that is close was meant; nothing where none is."""
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def read_lines(path: Path) -> Lines:
    """Read a YAML file that is a mapping.

    Raises
    ------
    ValueError
        For what is not YAML, no mapping, or has a name twice.
    FileNotFoundError
        For a file that is not there.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no cluster file {path} (cluster_configs/ has some to begin with).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: {error.reason}.") from None
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Lines(path, 1, {}, {}, {})
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(
                f"{path}, line {node.start_mark.line + 1}: a cluster file is a mapping, and must have a key 'cluster' "
                "with the name of a cluster class (see cluster_configs/)."
            )
        return _mapping(path, node, loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line} is not YAML: {error.problem or error.context}.") from None
    except RecursionError:
        raise ValueError(f"{path}: an anchor (&) has its own alias (*) within.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _mapping(path: Path, node: yaml.MappingNode, loader: yaml.SafeLoader) -> Lines:
    own = {id(key) for key, _ in node.value}
    loader.flatten_mapping(node)  # <<: *anchor comes first, and what follows may say something else
    made, written = Lines(path, node.start_mark.line + 1, {}, {}, {}), set()
    for key, value in node.value:
        name, line = loader.construct_object(key, deep=True), key.start_mark.line + 1
        if not isinstance(name, str):
            raise ValueError(f"{path}, line {line}: {name!r} is an unknown key: names are text.")
        if name in written:
            raise ValueError(f"{path}, line {line}: {name!r} is there twice (line {made.lines[name]}).")
        if id(key) in own:
            written.add(name)
        made.parts.pop(name, None)
        if isinstance(value, yaml.MappingNode):  # before it is constructed, which merges
            made.parts[name] = _mapping(path, value, loader)
        elif isinstance(value, yaml.ScalarNode):
            made.texts[name] = value.value
            # YAML 1.1 reads 12:00:00 as a number of base 60, and nobody means that.
            if ":" in value.value and value.tag in NUMBERS:
                value.tag = TEXT
        try:
            made.values[name] = loader.construct_object(value, deep=True)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {line}: the value of {name!r} is none: {error} (quotes make it text)."
            ) from None
        made.lines[name] = line
    return made
