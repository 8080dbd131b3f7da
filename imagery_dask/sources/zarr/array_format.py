"""The metadata of an array as values, whatever the format: zarr v2, zarr v3 or N5.

Formats: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html, https://zarr-specs.readthedocs.io/en/latest/v3/core/,
https://github.com/saalfeldlab/n5#file-system-specification
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.sources.zarr.chunk_codecs import (
    ChunkCodec,
    UnknownCodecError,
    codec_of_n5,
    codec_of_v2,
    codec_of_v3,
    configuration_of,
    name_of,
)

__all__ = ["MALFORMED", "ArrayFormat", "Format", "ShardFormat", "parse_array", "unusable"]

Format = Literal["zarr2", "zarr3", "n5"]
Shape = tuple[int, ...]
DATA_TYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
# What functions raise that read JSON which has another shape than its format says, or numbers out of all bounds.
MALFORMED = (KeyError, TypeError, IndexError, AttributeError, ArithmeticError)
LARGEST_LENGTH = 2**40
LARGEST_CHUNK = 2**32


@dataclass(frozen=True)
class ShardFormat:
    """How the files of shards ("sharding_indexed") are laid out.

    Parameters
    ----------
    shape : tuple of int
        Voxels of a shard.
    at_end : bool
        Whether the index is at the end of the file.
    dtype : str
        Data type of the numbers in the index.
    has_checksum : bool
        Whether a CRC32C follows the index.
    """

    shape: Shape
    at_end: bool
    dtype: str
    has_checksum: bool


@dataclass(frozen=True)
class ArrayFormat:
    """An array, of which a file holds a chunk or a shard.

    Parameters
    ----------
    format : {"zarr2", "zarr3", "n5"}
        Its format.
    shape, chunk : tuple of int
        Voxels of the array, and of what is decoded at once, in the order of the metadata.
    dtype : numpy.dtype
        Data type of the voxels, in the byte order of this machine.
    fill : bool, int or float
        Voxels of chunks that are not stored.
    codec : ChunkCodec
        How chunks are stored.
    key_of : callable
        Returns the name of a file, below the array, by its position in the grid of files.
    names : tuple of str or None
        Names of the axes, where the array itself says them.
    shard : ShardFormat or None
        How files hold several chunks.
    """

    format: Format
    shape: Shape
    chunk: Shape
    dtype: np.dtype[Any]
    fill: bool | int | float
    codec: ChunkCodec = field(repr=False)
    key_of: Callable[[Shape], str] = field(repr=False)
    names: tuple[str, ...] | None = None
    shard: ShardFormat | None = None


def parse_array(format: Format, metadata: JsonObject, attributes: JsonObject) -> ArrayFormat:  # noqa: A002
    """Return an array's metadata as values.

    Parameters
    ----------
    format : {"zarr2", "zarr3", "n5"}
        Format of the metadata.
    metadata : dict
        Content of ``.zarray``, ``zarr.json`` or ``attributes.json``.
    attributes : dict
        The array's attributes.

    Raises
    ------
    ValueError
        If it is none, or holds something else than voxels, or cannot be decoded; says why.
    """
    try:
        parsed = {"zarr2": _of_v2, "zarr3": _of_v3, "n5": _of_n5}[format](metadata, attributes)
    except MALFORMED as error:
        raise ValueError(unusable(error)) from error
    if len(parsed.shape) != len(parsed.chunk):
        raise ValueError(f"its shape {parsed.shape} and its chunks {parsed.chunk} have different numbers of axes")
    if not all(0 < size <= LARGEST_LENGTH for size in (*parsed.shape, *parsed.chunk)):
        raise ValueError(f"its shape is {parsed.shape}, in chunks of {parsed.chunk}")
    if math.prod(parsed.chunk) * parsed.dtype.itemsize > LARGEST_CHUNK:
        raise ValueError(f"a chunk of {parsed.chunk} voxels would have more than {LARGEST_CHUNK / 1e9:.0f} GB")
    return parsed


def unusable(error: Exception) -> str:
    """Return what is wrong with metadata, by an error of `MALFORMED`."""
    return f"its metadata has no usable {'' if isinstance(error, KeyError) else 'values: '}{error}"


def _of_v2(metadata: JsonObject, attributes: JsonObject) -> ArrayFormat:
    stored = _dtype_of_v2(metadata["dtype"])
    separator = _separator(metadata.get("dimension_separator", "."))
    names = attributes.get("_ARRAY_DIMENSIONS")  # of xarray
    return ArrayFormat(
        "zarr2", _shape(metadata["shape"]), _shape(metadata["chunks"]), stored.newbyteorder("="),
        _fill(metadata.get("fill_value"), stored), codec_of_v2(metadata, stored),
        lambda position: separator.join(map(str, position)) or "0",
        _names(names, len(metadata["shape"])),
    )  # fmt: skip


def _of_v3(metadata: JsonObject, attributes: JsonObject) -> ArrayFormat:
    del attributes
    shape, grid = _shape(metadata["shape"]), metadata["chunk_grid"]
    if name_of(grid) != "regular":
        raise ValueError(f"its chunk grid is {name_of(grid)!r}; regular grids can be read")
    if metadata.get("storage_transformers"):
        raise ValueError("it has storage transformers, which cannot be read")
    dtype = _dtype(metadata["data_type"])
    chunk = _shape(configuration_of(grid)["chunk_shape"])
    codecs, shard = metadata["codecs"], None
    if any(name_of(codec) == "sharding_indexed" for codec in codecs):
        if len(codecs) != 1:
            raise UnknownCodecError(" and ".join(map(name_of, codecs)))
        sharding = configuration_of(codecs[0])
        shard, chunk, codecs = _shard(chunk, sharding), _shape(sharding["chunk_shape"]), sharding["codecs"]
        if len(chunk) != len(shard.shape) or any(
            not 0 < part <= own or own % part for own, part in zip(shard.shape, chunk, strict=True)
        ):
            raise ValueError(f"its shards of {shard.shape} voxels are no whole number of chunks of {chunk}")
    encoding = metadata["chunk_key_encoding"]
    is_default = name_of(encoding) == "default"
    if not is_default and name_of(encoding) != "v2":
        raise ValueError(f"its chunk_key_encoding {name_of(encoding)!r} is unknown")
    separator = _separator(configuration_of(encoding).get("separator", "/" if is_default else "."))
    return ArrayFormat(
        "zarr3", shape, chunk, dtype, _fill(metadata.get("fill_value"), dtype), codec_of_v3(codecs, dtype, len(shape)),
        lambda position: separator.join([*(["c"] if is_default else []), *map(str, position)]) or "0",
        _names(metadata.get("dimension_names"), len(shape)), shard,
    )  # fmt: skip


def _of_n5(metadata: JsonObject, attributes: JsonObject) -> ArrayFormat:
    dtype = _dtype(metadata["dataType"])
    axes = attributes.get("axes")
    shape = _shape(metadata["dimensions"])
    return ArrayFormat(
        "n5", shape, _shape(metadata["blockSize"]), dtype, 0, codec_of_n5(metadata, dtype),
        lambda position: "/".join(map(str, position)), _names(axes, len(shape)),
    )  # fmt: skip


def _shard(shape: Shape, sharding: JsonObject) -> ShardFormat:
    dtype, has_checksum = "<u8", False
    for codec in sharding["index_codecs"]:
        if name_of(codec) == "bytes":
            dtype = ">u8" if configuration_of(codec).get("endian") == "big" else "<u8"
        elif name_of(codec) == "crc32c":
            has_checksum = True
        else:  # which would have another size for each shard
            raise UnknownCodecError(f"{name_of(codec)} of shard indices")
    return ShardFormat(shape, sharding.get("index_location", "end") == "end", dtype, has_checksum)


def _dtype_of_v2(name: Any) -> np.dtype[Any]:
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.name not in DATA_TYPES:
        raise ValueError(f"its data type {name!r} is neither an image's nor that of ids")
    return dtype


def _dtype(name: Any) -> np.dtype[Any]:
    if name not in DATA_TYPES:
        raise ValueError(f"its data type {name!r} is neither an image's nor that of ids")
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _fill(value: Any, dtype: np.dtype[Any]) -> bool | int | float:
    """Return a fill value; undefined ones are 0."""
    if value is None:
        return 0
    if isinstance(value, str):
        if dtype.kind == "f" and value.startswith("0x"):
            number = int(value, 16).to_bytes(dtype.itemsize, "big")
            return float(struct.unpack(">f" if dtype.itemsize == 4 else ">d", number)[0])
        value = float(value) if dtype.kind == "f" else int(value)  # "NaN", "Infinity"
    if dtype.kind == "f":
        return float(value)
    if dtype.kind == "b":
        return bool(value)
    whole = int(value)
    if whole != value or not np.iinfo(dtype).min <= whole <= np.iinfo(dtype).max:
        raise ValueError(f"its fill_value {value!r} is no {dtype}")
    return whole


def _shape(sizes: Sequence[Any]) -> Shape:
    if any(int(size) != size for size in sizes):
        raise ValueError(f"its shape or its chunks are {sizes!r}, which are not whole numbers")
    return tuple(int(size) for size in sizes)


def _separator(name: Any) -> str:
    if name not in (".", "/"):  # with another one, no file would be found, and each chunk would be the fill value
        raise ValueError(f"its chunk keys have the separator {name!r}; only '.' and '/' are valid")
    return str(name)


def _names(names: Any, ndim: int) -> tuple[str, ...] | None:
    if not isinstance(names, (list, tuple)) or len(names) != ndim or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)
