"""Checks of a volume's ``info``, made when the volume is opened: whatever follows from it is not left to the blocks.

The format is Neuroglancer's precomputed volume format
(https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed/volume.md); ``fpzip``, ``kempressed``,
``zfpc``, ``compresso``, ``crackle`` and ``jxl`` are CloudVolume's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import InvalidInfoError
from imagery_dask.urls import redacted, resolved_name

__all__ = ["ENCODINGS", "check_info"]

VOLUME = "neuroglancer_multiscale_volume"
SHARDING = "neuroglancer_uint64_sharded_v1"
# Named by the info that a PyChunkedGraph server answers, and by no flat volume.
GRAPH_FIELDS = ("data_dir", "graph", "app")
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
DATA_TYPES = (*INTEGERS, "float32", "float64")
DEEPEST = 50
LARGEST_LENGTH = 2**40
LARGEST_CHUNK = 2**32
LARGEST_CHANNELS = 2**16
LARGEST_BLOCK = 2**16
ID_BITS = 64
# An index of minishards has 16 bytes for each of them.
LARGEST_MINISHARD_BITS = 24
REMEDY = "Correct the info file, or ask those who made the volume."


@dataclass(frozen=True, slots=True)
class _Encoding:
    """Data types and numbers of channels that an encoding can hold; None for any."""

    data_types: tuple[str, ...] | None = None
    channels: tuple[int, ...] | None = None


ENCODINGS = {
    "raw": _Encoding(),
    "jpeg": _Encoding(("uint8",), (1, 3)),
    "png": _Encoding(("uint8", "uint16"), (1, 2, 3, 4)),
    "compressed_segmentation": _Encoding(("uint32", "uint64")),
    "compresso": _Encoding(INTEGERS, (1,)),
    "crackle": _Encoding(INTEGERS, (1,)),
    "jxl": _Encoding(("uint8",), (1,)),
    "fpzip": _Encoding(("float32", "float64")),
    "kempressed": _Encoding(("float32", "float64")),
    "zfpc": _Encoding(("float32", "float64", "int32", "int64")),
}


def check_info(path: str, info: object, is_graph: bool = False) -> JsonObject:
    """Return a volume's info with names in lower case and all defaults.

    Parameters
    ----------
    path : str
        CloudVolume path, for errors.
    info : object
        The parsed info.
    is_graph : bool
        True if it is the answer of a PyChunkedGraph server.

    Raises
    ------
    InvalidInfoError
        If the info is of something else than a volume, or of one that cannot be read; with the field and its value.
    """
    if not isinstance(info, dict):
        raise InvalidInfoError(
            f"The info file of {path!r} is not a JSON object. Give the folder that holds a precomputed volume's info."
        )
    _check_depth(path, info)
    _check_kind(path, info, is_graph)
    checks = _Checks(path)
    kind = checks.name("type", info, ("image", "segmentation"))
    data_type = checks.name("data_type", info, DATA_TYPES)
    if kind == "segmentation" and data_type not in INTEGERS:
        raise checks.wrong(
            "data_type", data_type, "ids of a segmentation are integers. To read its values, set type to 'image'"
        )
    channels = checks.whole("num_channels", info, 1, LARGEST_CHANNELS)
    scales = checks.get("scales", info, list)
    if not scales:
        raise checks.wrong("scales", scales, "there must be at least one: there is no usable scale")
    checked = [
        _check_scale(checks, f"scales[{level}]", scale, data_type, channels) for level, scale in enumerate(scales)
    ]
    return info | {"type": kind, "data_type": data_type, "num_channels": channels, "scales": checked}


def _check_depth(path: str, info: JsonObject) -> None:
    """Raise for an info that functions which follow it down, such as `repr`, could not handle."""
    values: list[tuple[object, int]] = [(info, 0)]
    while values:
        value, depth = values.pop()
        if depth > DEEPEST:
            raise InvalidInfoError(f"The info of {path!r} is nested more than {DEEPEST} levels deep. {REMEDY}")
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        values += [(one, depth + 1) for one in inside]


def _check_kind(path: str, info: JsonObject, is_graph: bool) -> None:
    """Raise if an info is not of a volume, or its voxels are elsewhere."""
    kind = info.get("@type", VOLUME)
    if kind != VOLUME:
        raise InvalidInfoError(
            f"{path!r} is not an image or segmentation volume: its info has '@type': {kind!r}. "
            "Give the folder that holds a precomputed volume's info file."
        )
    if is_graph:
        return
    names = [name for name in GRAPH_FIELDS if name in info]
    if names:
        url = path.removeprefix("precomputed://").removeprefix("middleauth+")
        address = f"graphene://{url}" if url.startswith(("http://", "https://")) else ""
        raise InvalidInfoError(
            f"{path!r} is a dynamic segmentation, not a flat volume: its info has {', '.join(map(repr, names))}, and "
            f"the voxels are elsewhere. Give {address or 'graphene://https://HOST/segmentation/table/TABLE'}."
        )


def _check_scale(checks: _Checks, field: str, scale: object, data_type: str, channels: int) -> JsonObject:
    """Return a scale with names in lower case and all defaults."""
    if not isinstance(scale, dict):
        raise checks.wrong(field, scale, "a scale is a JSON object")
    checks = checks.within(field)
    key = checks.get("key", scale, str)
    if not key.strip("/") or key.startswith("/") or "\0" in key:
        raise checks.wrong("key", key, "it is the name of a folder below the volume")
    offset = [0, 0, 0]
    if scale.get("voxel_offset") is not None:
        offset = checks.vector("voxel_offset", scale, -LARGEST_LENGTH, LARGEST_LENGTH)
    size = checks.vector("size", scale, 1, LARGEST_LENGTH)
    resolution = checks.get("resolution", scale, list)
    if len(resolution) != 3 or not all(_is_number(n) and n > 0 for n in resolution):
        raise checks.wrong("resolution", resolution, "it is three positive numbers of nanometers")
    chunk_sizes = checks.get("chunk_sizes", scale, list)
    if not chunk_sizes:
        raise checks.wrong("chunk_sizes", chunk_sizes, "it has no shape of chunks")
    shapes = [
        checks.triple(f"chunk_sizes[{number}]", shape, 1, LARGEST_LENGTH) for number, shape in enumerate(chunk_sizes)
    ]
    chunk_bytes = math.prod(map(min, shapes[0], size)) * channels * np.dtype(data_type).itemsize
    if chunk_bytes > LARGEST_CHUNK:
        raise checks.wrong("chunk_sizes", chunk_sizes, f"one chunk would have {chunk_bytes / 1e9:,.0f} GB")
    checked = scale | {"key": resolved_name(key), "voxel_offset": offset, "size": size, "chunk_sizes": shapes}
    if "placeholder" in key.lower():  # holds no data
        return checked | {"encoding": str(scale.get("encoding", "raw")).lower(), "sharding": None}
    checked["encoding"] = _check_encoding(checks, scale, data_type, channels)
    if scale.get("compressed_segmentation_block_size") is not None:
        name = "compressed_segmentation_block_size"
        checked[name] = checks.vector(name, scale, 1, LARGEST_BLOCK)
    if scale.get("sharding") is not None:
        checked["sharding"] = _check_sharding(checks, scale["sharding"])
        cells = [-(-n // along) for n, along in zip(size, shapes[0], strict=True)]
        if sum((n - 1).bit_length() for n in cells) > ID_BITS:
            raise checks.wrong("chunk_sizes", chunk_sizes, "a sharded scale has at most 2**64 chunks")
    return checked


def _check_encoding(checks: _Checks, scale: JsonObject, data_type: str, channels: int) -> str:
    name = str(checks.get("encoding", scale, str)).lower()
    if name not in ENCODINGS:
        raise checks.wrong("encoding", scale["encoding"], f"the encodings that can be read are {', '.join(ENCODINGS)}")
    encoding = ENCODINGS[name]
    if encoding.data_types is not None and data_type not in encoding.data_types:
        raise checks.wrong(
            "encoding", name, f"it cannot hold data_type {data_type!r}, only {' and '.join(encoding.data_types)}"
        )
    if encoding.channels is not None and channels not in encoding.channels:
        possible = " or ".join(map(str, encoding.channels))
        raise checks.wrong("encoding", name, f"with it {possible} channels can be read, and num_channels is {channels}")
    return name


def _check_sharding(checks: _Checks, sharding: object) -> JsonObject:
    """Return a sharding specification with names in lower case and all defaults."""
    if not isinstance(sharding, dict):
        raise checks.wrong("sharding", sharding, "it is a JSON object or absent")
    checks = checks.within("sharding")
    kind = sharding.get("@type")
    if kind != SHARDING:
        raise checks.wrong("@type", kind, f"it must be {SHARDING!r}")
    known = ("@type", "preshift_bits", "hash", "minishard_bits", "shard_bits", "minishard_index_encoding",
             "data_encoding")  # fmt: skip
    unknown = [name for name in sharding if name not in known]
    if unknown:
        raise checks.wrong(unknown[0], sharding[unknown[0]], f"its members are {', '.join(known)}")
    bits = {
        "preshift_bits": checks.whole("preshift_bits", sharding, 0, ID_BITS),
        "minishard_bits": checks.whole("minishard_bits", sharding, 0, LARGEST_MINISHARD_BITS),
        "shard_bits": checks.whole("shard_bits", sharding, 0, ID_BITS),
    }
    if sum(bits.values()) > ID_BITS:
        raise checks.wrong("shard_bits", bits["shard_bits"], f"the bits add up to {sum(bits.values())}, more than 64")
    encodings = {"minishard_index_encoding": "raw", "data_encoding": "raw"} | sharding
    return {
        "@type": SHARDING,
        **bits,
        "hash": checks.name("hash", sharding, ("identity", "murmurhash3_x86_128")),
        "minishard_index_encoding": checks.name("minishard_index_encoding", encodings, ("raw", "gzip")),
        "data_encoding": checks.name("data_encoding", encodings, ("raw", "gzip")),
    }


@dataclass(frozen=True, slots=True)
class _Checks:
    """Reads the fields of an object inside an info; errors name the path of the volume and of the field."""

    path: str
    prefix: str = ""

    def within(self, field: str) -> _Checks:
        """Return the checks of an object in a field."""
        return _Checks(self.path, f"{self.prefix}{field}.")

    def wrong(self, field: str, value: object, reason: str) -> InvalidInfoError:
        """Return the error of a field."""
        text = redacted(repr(value))
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        return InvalidInfoError(
            f"{self.path!r} cannot be read: {self.prefix}{field} of its info is {shown}, but {reason}. {REMEDY}"
        )

    def get(self, field: str, values: JsonObject, kind: type) -> Any:
        """Return a field of a type."""
        value = values.get(field)
        if isinstance(value, kind):
            return value
        name = "a list" if kind is list else "a text"
        if value is not None:
            raise self.wrong(field, value, f"it must be {name}")
        raise InvalidInfoError(
            f"{self.path!r} is not an image or segmentation volume: its info has no usable '{self.prefix}{field}'. "
            "Give the folder that holds a precomputed volume's info file."
        )

    def name(self, field: str, values: JsonObject, allowed: Sequence[str]) -> str:
        """Return one of several names, which the format allows in upper and lower case."""
        value = str(self.get(field, values, str)).lower()
        if value not in allowed:
            raise self.wrong(field, values[field], f"it must be {' or '.join(allowed)}")
        return value

    def whole(self, field: str, values: JsonObject, least: int, most: int) -> int:
        """Return a whole number within limits."""
        if field not in values:
            self.get(field, values, str)
        return self._whole(field, values[field], least, most)

    def vector(self, field: str, values: JsonObject, least: int, most: int) -> list[int]:
        """Return three whole numbers within limits."""
        return self.triple(field, self.get(field, values, list), least, most)

    def triple(self, field: str, value: object, least: int, most: int) -> list[int]:
        """Return a value as three whole numbers within limits."""
        if not isinstance(value, list) or len(value) != 3:
            raise self.wrong(field, value, "it must be three whole numbers, for x, y and z")
        return [self._whole(field, n, least, most, value) for n in value]

    def _whole(self, field: str, value: Any, least: int, most: int, shown: object = None) -> int:
        if _is_number(value) and value == int(value) and least <= value <= most:
            return int(value)
        raise self.wrong(field, value if shown is None else shown, f"it must be whole, from {least} to {most}")


def _is_number(value: object) -> bool:
    """Return True for a finite number that a float can hold; integers of JSON have any number of digits."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
