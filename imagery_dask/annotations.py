"""Type aliases that many modules share."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

__all__ = ["Array", "JsonObject", "Keywords"]

#: A numpy array of any dtype, such as the voxels of a layer.
Array: TypeAlias = NDArray[Any]

#: A JSON object, parsed or about to be written.
JsonObject: TypeAlias = dict[str, Any]

#: Keyword arguments that are passed to a library, which checks them.
Keywords: TypeAlias = dict[str, Any]
