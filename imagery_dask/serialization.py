"""Conversion of frozen dataclasses to JSON and back, by their type hints; ids stay exact in every JSON reader."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, cast

import numpy as np

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

__all__ = ["NEWER", "flat", "from_json", "json_object", "to_json"]

T = TypeVar("T")

# JSON readers that parse all numbers as floats (JavaScript, jq) keep integers exact up to this.
EXACT_AS_FLOAT = 2**53
DIGITS = re.compile(r"-?[0-9]+")
ERRORS_SHOWN = 3
# Metadata of a field that earlier versions did not have: it is left out of the JSON where it has its default.
NEWER = {"newer": True}


def json_object(content: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object that a file holds; None if there is no file, or if it holds anything else."""
    with suppress(ValueError, RecursionError):
        value = json.loads(content or b"null")
        return value if isinstance(value, dict) else None
    return None


def to_json(value: object) -> Any:
    """Return a value as JSON types: dicts, lists, strings, numbers; integers above 2**53 become strings.

    Examples
    --------
    >>> to_json((1, 2**60))
    [1, '1152921504606846976']
    """
    if dataclasses.is_dataclass(value):
        return {name: to_json(item) for name, item in _written(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, float)):
        return value
    if isinstance(value, np.floating):
        return float(value)
    if hasattr(value, "__index__"):
        number = int(value)
        return number if abs(number) <= EXACT_AS_FLOAT else str(number)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON.")


def _written(value: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if not ("newer" in field.metadata and item == field.default):
            yield field.name, item


def from_json(kind: type[T], value: object) -> T:
    """Return a value of a type from JSON types.

    Lists become tuples, decimal strings become ints where an int is expected, and ints become floats. Nothing else is
    converted: bools and floats are refused for ints, and unknown fields are refused.

    Parameters
    ----------
    kind : type or type hint
        A dataclass, a tuple, an optional type, a literal, ``str``, ``int``, ``float`` or ``bool``.
    value : object
        JSON types, as `to_json` returns them.

    Raises
    ------
    ValueError
        When the value does not have that type; the message names the fields and their values.

    Examples
    --------
    >>> from_json(tuple[int, ...], [1, '1152921504606846976'])
    (1, 1152921504606846976)
    >>> from_json(tuple[int, ...], [1, True])
    Traceback (most recent call last):
    ValueError: [1]: Input should be a valid integer; got True.
    """
    from pydantic import ValidationError

    try:
        read: tuple[T] = _adapter(cast(Hashable, kind)).validate_python((value,))
    except ValidationError as error:
        raise ValueError(_message(kind, error)) from None
    return read[0]


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """Return the leaves of nested dicts by their dotted names; lists are leaves.

    Examples
    --------
    >>> flat({'a': {'b': 1, 'c': [2, 3]}})
    {'a.b': 1, 'a.c': [2, 3]}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, object] = {}
    for key, item in value.items():
        leaves |= flat(item, f"{prefix}.{key}" if prefix else str(key))
    return leaves


# ------------------------------------------------------------------------------------------------- types for pydantic


@cache
def _adapter(kind: object) -> TypeAdapter[Any]:
    # Imported on first use: pydantic takes longer to import than all light modules of this package together.
    from pydantic import TypeAdapter

    return TypeAdapter(tuple[_hint(kind)])  # type: ignore[misc]


def _hint(kind: object) -> Any:
    """Return the type hint with which pydantic reads what `to_json` writes, and nothing else.

    Pydantic's strict mode refuses lists for tuples and strings for integers; its lax mode accepts bools and floats for
    integers. Neither fits.
    """
    from pydantic import AfterValidator, BeforeValidator, Strict

    if dataclasses.is_dataclass(kind):
        return Annotated[_fields(kind), AfterValidator(_maker(kind))]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return Union[tuple(_hint(option) for option in inner)]  # noqa: UP007  # of options in a tuple
    if origin is Literal or kind is type(None):
        return kind
    if origin is tuple:
        return tuple[tuple(option if option is Ellipsis else _hint(option) for option in inner)]  # type: ignore[misc]
    if isinstance(origin, type) and issubclass(origin, tuple):  # a named tuple whose fields have one type
        (item,) = inner
        plain = tuple[(_hint(item),) * len(origin._fields)]  # type: ignore[attr-defined, misc, valid-type]
        return Annotated[plain, AfterValidator(lambda values: origin(*values))]
    if kind is int:
        return Annotated[int, Strict(), BeforeValidator(_digits)]
    if kind in (str, float, bool):
        return Annotated[kind, Strict()]
    raise TypeError(f"{kind} cannot be read from JSON.")


def _fields(kind: Any) -> Any:
    """Return a TypedDict with the fields of a dataclass."""
    from typing import NotRequired

    from pydantic import ConfigDict, with_config
    from typing_extensions import TypedDict

    hints = typing.get_type_hints(kind)
    read = {}
    for field in dataclasses.fields(kind):
        hint = _hint(hints[field.name])
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        read[field.name] = hint if required else NotRequired[hint]
    return with_config(ConfigDict(extra="forbid"))(TypedDict(kind.__name__, read))  # type: ignore[operator]


def _maker(kind: Any) -> Callable[..., Any]:
    return lambda fields: kind(**fields)


def _digits(value: object) -> Any:
    return int(value) if isinstance(value, str) and DIGITS.fullmatch(value) else value


def _message(kind: object, error: ValidationError) -> str:
    errors = error.errors(include_url=False, include_context=False)
    lines = [f"{_path(kind, item['loc'][1:])}: {item['msg']}; got {_short(item['input'])}" for item in errors]
    omitted = f"; and {len(lines) - ERRORS_SHOWN} more" if len(lines) > ERRORS_SHOWN else ""
    return f"{'; '.join(lines[:ERRORS_SHOWN])}{omitted}."


def _path(kind: object, keys: Sequence[int | str]) -> str:
    """Return the path of a value, such as ``Cutout.target.start[2]``."""
    name = kind.__name__ if isinstance(kind, type) and dataclasses.is_dataclass(kind) else ""
    for key in keys:
        name += f"[{key}]" if isinstance(key, int) else f"{'.' if name else ''}{key}"
    return name or "value"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
