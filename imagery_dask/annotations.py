"""Types that many modules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

from numpy.typing import NDArray

__all__ = ["Array", "EachProcess", "JsonObject", "Keywords"]

T = TypeVar("T")

#: A numpy array of any dtype, such as the voxels of a layer.
Array: TypeAlias = NDArray[Any]

#: A JSON object, parsed or about to be written.
JsonObject: TypeAlias = dict[str, Any]

#: Keyword arguments that are passed to a library, which checks them.
Keywords: TypeAlias = dict[str, Any]


class EachProcess(Protocol):
    """What calls a function in each process that will write to a target."""

    def run(self, function: Callable[..., T], *arguments: object) -> Mapping[str, T]:
        """Call a function once in each process, and return the results by worker."""
        ...
