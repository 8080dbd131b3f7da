"""Frozen values (dataclasses) as JSON and back, by their type hints; ids stay integers, whatever reads the JSON."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import lru_cache
from typing import Any, Literal, Union

import numpy as np

__all__ = ["flat", "from_json", "to_json"]

# JSON readers that take numbers for floats (JavaScript, jq) keep integers up to here.
EXACT_AS_FLOAT = 2**53


def to_json(value: Any) -> Any:
    """Plain form of a value: dicts, lists, text, numbers; integers above 2**53 as text.

    Examples
    --------
    >>> to_json((1, 2**60))
    [1, '1152921504606846976']
    """
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, float)):
        return value
    if isinstance(value, np.floating):
        return float(value)
    if hasattr(value, "__index__"):
        number = int(value)
        return number if abs(number) <= EXACT_AS_FLOAT else str(number)
    raise TypeError(f"{value!r} ({type(value).__name__}) has no form in JSON.")


def from_json(kind: Any, value: Any) -> Any:
    """Value of a type from its plain form.

    Parameters
    ----------
    kind : type or type hint
        A dataclass of fields that are such again; tuples, optional values, literals, text and numbers.
    value : object
        What `to_json` made.

    Raises
    ------
    ValueError
        For what is no such value, with both.

    Examples
    --------
    >>> from_json(tuple[int, ...], [1, '1152921504606846976'])
    (1, 1152921504606846976)
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (only,) = (each for each in inner if each is not type(None))
        return from_json(only, value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{value!r} is none of {inner}.")
        return value
    if origin is tuple:
        kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else inner
        return tuple(from_json(each, one) for each, one in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, tuple):  # a generic named tuple
        return origin(*(from_json(inner[0], each) for each in value))
    if kind is int and not isinstance(value, (bool, float)):
        return int(value)
    if kind is float and not isinstance(value, (bool, str)):
        return float(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise ValueError(f"{value!r} is no {kind}.")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by dotted name; lists are leaves.

    Examples
    --------
    >>> flat({'a': {'b': 1, 'c': [2, 3]}})
    {'a.b': 1, 'a.c': [2, 3]}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found |= flat(each, f"{prefix}.{key}" if prefix else str(key))
    return found


def _dataclass(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no {kind.__name__}.")
    hints = _hints(kind)
    unknown = sorted(value.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}.")
    return kind(**{name: from_json(hints[name], each) for name, each in value.items()})


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
