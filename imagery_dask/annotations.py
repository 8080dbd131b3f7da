"""Names for the types that many modules use and that Python's own names say poorly."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

__all__ = ["Array", "JsonObject", "Keywords"]

#: A numpy array of any dtype, such as the voxels of a layer.
Array: TypeAlias = NDArray[Any]

#: A JSON object that has been parsed or is about to be written.
JsonObject: TypeAlias = dict[str, Any]

#: Keyword arguments that are passed on to a library, which checks them.
Keywords: TypeAlias = dict[str, Any]
