"""Calls of endpoints and their errors, without HTTP."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imagery_dask.testing.cave.graph_layout import Ids
from imagery_dask.testing.cave.world import World

__all__ = ["ApiError", "Call", "Endpoint", "find_endpoint"]


class ApiError(Exception):
    """An answer with an error status, and a JSON body with a message."""

    def __init__(self, status: int, message: str, **details: object) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": status, "message": message, **details}


@dataclass
class Call:
    """One request to an endpoint.

    Attributes
    ----------
    world : World
        The world that the server serves.
    server : str
        The server's own address.
    values : dict
        Names, ids and versions in the path.
    params : dict
        The query's parameters.
    body : bytes
        The request's body, uncompressed.
    """

    world: World
    server: str
    values: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @cached_property
    def json(self) -> Any:
        """The body as JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise ApiError(400, "The body is not JSON") from None

    @property
    def node(self) -> int:
        """The id in the path."""
        return self._integer(self.values["node"])

    @property
    def binary_ids(self) -> Ids:
        """The body as ids, little-endian."""
        if len(self.body) % 8:
            raise ApiError(400, f"A body of {len(self.body)} bytes is not an array of uint64")
        return np.frombuffer(self.body, "<u8")

    def ids(self, name: str) -> list[int]:
        """Return the ids of the JSON body under a name."""
        values = self.json.get(name) if isinstance(self.json, dict) else None
        if not isinstance(values, list):
            raise ApiError(400, f"The body has no list {name!r}")
        return [self._integer(value) for value in values]

    def moment(self, name: str) -> float | None:
        """Return a timestamp of the query in unix seconds, ``None`` if it has none."""
        try:
            moment = float(self.params[name]) if name in self.params else None
            if moment is None or math.isfinite(moment):
                return moment
            raise ValueError
        except ValueError:
            raise ApiError(400, f"[400]: Timestamp parameter {name} is not a valid unix timestamp") from None

    @property
    def stop_layer(self) -> int | None:
        """The ``stop_layer`` of the query, or None."""
        return self._integer(self.params["stop_layer"]) if "stop_layer" in self.params else None

    @property
    def bounds(self) -> npt.NDArray[np.int64] | None:
        """Lower and upper corner of the query's ``x0-x1_y0-y1_z0-z1``, shape (2, 3)."""
        if "bounds" not in self.params:
            return None
        numbers = re.fullmatch(r"(\d+)-(\d+)_(\d+)-(\d+)_(\d+)-(\d+)", self.params["bounds"])
        if numbers is None:
            raise ApiError(400, f"bounds are {self.params['bounds']!r}, not x0-x1_y0-y1_z0-z1")
        return np.array(numbers.groups(), np.int64).reshape(3, 2).T

    def flag(self, name: str) -> bool:
        """Return True if a parameter of the query is true, in Python's or JSON's spelling."""
        return self.params.get(name, "").lower() in ("true", "1")

    def _integer(self, value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise ApiError(400, f"{value!r} is not an integer") from None
        if not 0 <= number < 2**64:
            raise ApiError(400, f"{number} is not an unsigned integer of 64 bits")
        return number


class Endpoint(NamedTuple):
    """An operation of the server; ``answer`` returns bytes, or a value to be encoded as JSON."""

    name: str
    method: str
    path: re.Pattern[str]
    answer: Callable[[Call], object]

    @classmethod
    def at(cls, method: str, path: str, answer: Callable[[Call], object]) -> Endpoint:
        """Return the endpoint of a function, named after it, at a path with ``{values}``."""
        return cls(answer.__name__, method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), answer)


def find_endpoint(endpoints: Sequence[Endpoint], method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
    """Find the endpoint of a request, and the values in its path.

    Raises
    ------
    ApiError
        404 for an unknown path, 405 for a method that the path does not support.
    """
    matches = [(e, match.groupdict()) for e in endpoints if (match := e.path.fullmatch(path.rstrip("/")))]
    if not matches:
        raise ApiError(404, f"The requested URL {path} was not found on the server")
    for endpoint, values in matches:
        if endpoint.method == method:
            return endpoint, values
    raise ApiError(405, f"The method {method} is not allowed for the requested URL {path}")
