"""Read YAML files with the line of each key, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from imagery_dask.annotations import Keywords

__all__ = ["Lines", "close_word", "read_lines"]

BOOLEANS = {form for word in ("yes", "no", "on", "off") for form in (word, word.title(), word.upper())}


@dataclass(frozen=True, slots=True)
class Lines:
    """A mapping of a YAML file, and the lines of its keys."""

    path: Path
    # Line where the mapping begins, from 1.
    line: int
    # Values by name; nested mappings are dicts.
    values: Keywords
    # Lines by name, from 1.
    lines: dict[str, int]
    # Nested mappings by name.
    parts: dict[str, Lines]
    # Scalars by name, as the file spells them: "0755", "1.50".
    texts: dict[str, str]

    def refuse(self, name: str | None, message: str) -> NoReturn:
        """Raise a ValueError that begins with the file and the line of a key."""
        raise ValueError(f"{self.where(name)}: {message}")

    def where(self, name: str | None) -> str:
        """Return the file and the line of a key; without a name, the line where the mapping begins."""
        return f"{self.path}, line {self.lines.get(name, self.line) if name else self.line}"

    def check_names(self, known: Collection[str], what: str = "key") -> None:
        """Raise ValueError if a name is unknown; the message suggests the closest known one."""
        for name in self.values:
            if name not in known:
                keys = ", ".join(sorted(known))
                self.refuse(name, f"unknown {what} {name!r}{close_word(name, known)}; the {what}s are {keys}.")


def close_word(name: str, known: Collection[str]) -> str:
    """Return " (did you mean 'WORD'?)" for the most similar known word, or "" if none is similar."""
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def read_lines(
    path: Path, expected: str = "it must have a key 'cluster' with the name of a cluster class (see cluster_configs/)"
) -> Lines:
    """Read a YAML file whose top level is a mapping.

    Scalars follow YAML 1.2, so that ``12:00:00`` is text. As in YAML 1.1, ``yes``, ``no``, ``on`` and ``off`` are
    booleans.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    expected : str
        What a file must have, for the error of one that is no mapping.

    Raises
    ------
    ValueError
        If the file is not valid YAML, is not a mapping, or has a duplicate key.
    FileNotFoundError
        If the file does not exist.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no cluster file {path} (cluster_configs/ has examples to copy).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error.reason}.") from None
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Resolver = _Constructor, _Resolver
    try:
        content = yaml.load(text)
        if content is None:
            return Lines(path, 1, {}, {}, {}, {})
        if not isinstance(content, _Mapping):
            raise ValueError(f"{path}, line 1: the file is not a mapping; {expected}.")
        return _lines(path, content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        if isinstance(error, _ValueError):
            raise ValueError(f"{path}{line}: {error.problem}.") from None
        raise ValueError(f"{path}{line} is not YAML: {error.problem or error.context}.") from None
    except RecursionError:
        raise ValueError(f"{path}: an anchor (&) contains its own alias (*), or it is nested too deeply.") from None
    except YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


class _Mapping(dict[Any, Any]):
    """A dict with the lines and the spelling of its entries."""

    line: int
    lines: dict[Any, int]
    texts: dict[Any, str]


class _ValueError(ConstructorError):
    """A key or value is invalid in a well-formed YAML file."""


class _Resolver(VersionedResolver):
    """Resolves scalars as in YAML 1.2, and ``yes``, ``no``, ``on`` and ``off`` as booleans."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0] and value in BOOLEANS:
            return Tag(suffix="tag:yaml.org,2002:bool")
        return super().resolve(kind, value, implicit)


class _Constructor(SafeConstructor):
    """Constructs mappings that know the lines of their keys."""

    def construct_lined_map(self, node: MappingNode) -> Iterator[_Mapping]:
        """Construct a mapping: first an empty one, so that its content may refer to it by an alias."""
        mapping = _Mapping()
        yield mapping
        self.flatten_mapping(node)  # moves the entries of `<<: *anchor` to the front
        merged = len(getattr(node, "merge", None) or ())
        own: dict[Any, int] = {}
        mapping.lines, mapping.texts = {}, {}
        for index, (key, value) in enumerate(node.value):
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if not isinstance(name, str):
                raise _ValueError(None, None, f"{name!r} is an unknown key: keys are text", key.start_mark)
            if name in own:
                raise _ValueError(None, None, f"duplicate key {name!r} (first on line {own[name]})", key.start_mark)
            if index >= merged:
                own[name] = line
            try:
                self.construct_object(value)
            except ValueError as error:
                problem = f"the value of {name!r} is invalid: {error} (in quotes it is text)"
                raise _ValueError(None, None, problem, key.start_mark) from None
            mapping.lines[name] = line
            if isinstance(value, ScalarNode):
                mapping.texts[name] = value.value
            else:
                mapping.texts.pop(name, None)
        mapping.line = node.start_mark.line + 1
        mapping.update(self.construct_mapping(node))


_Constructor.add_constructor("tag:yaml.org,2002:map", _Constructor.construct_lined_map)


def _lines(path: Path, mapping: _Mapping) -> Lines:
    parts = {name: _lines(path, value) for name, value in mapping.items() if isinstance(value, _Mapping)}
    values = {name: _plain(value) for name, value in mapping.items()}
    return Lines(path, mapping.line, values, mapping.lines, parts, mapping.texts)


def _plain(value: object) -> Any:
    """Return a value whose mappings are plain dicts."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
