"""Encode chunks of zarr arrays, and join those of a shard, as files or objects store them.

A chunk of zarr v2, and of v3 without shards, is its encoded voxels. A shard is the "sharding_indexed" codec of v3 with
the index at the end::

    | chunk | chunk | chunk | ... | offset, size of each chunk in C order, as uint64 | crc32c of these |

Chunks are encoded one by one, so that a task holds no more than one of them beside its voxels. zarrs would hold a whole
encoded shard; zarr copies each chunk twice.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from typing import Any, BinaryIO

import google_crc32c
import numcodecs
import numpy as np
from xxhash import xxh3_128
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec, ZstdCodec

from imagery_dask.annotations import Array
from imagery_dask.sources.zarr.stored_chunks import SHUFFLES
from imagery_dask.storage.atomic_files import write_soon

__all__ = ["ChunkEncoder", "UnitFile"]

Shape = tuple[int, ...]

EMPTY_CHUNK = 2**64 - 1
WRITTEN_AT_ONCE = 4 * 2**20
# Most chunks that are not empty show it in their first bytes.
LOOKED_AT_FIRST = 4096


class ChunkEncoder:
    """Encodes the chunks of an array; safe to use from many threads.

    Parameters
    ----------
    metadata : zarr.core.metadata.ArrayV2Metadata or ArrayV3Metadata
        Metadata of the array.

    Attributes
    ----------
    chunk, unit : tuple of int
        Shape of a chunk, and of what one file stores: a shard, or a chunk if there are no shards.

    Raises
    ------
    ValueError
        This package writes no arrays that are encoded so.
    """

    def __init__(self, metadata: Any) -> None:
        self.chunk, self.unit, self._is_sharded, self._compressor = _layout(metadata)

    def encoded(self, voxels: Array) -> Any:
        """Return the bytes of a chunk, which the edge of the array may cut; None if all its voxels are zero."""
        if voxels.shape == self.chunk:
            part = np.ascontiguousarray(voxels)
        else:
            part = np.zeros(self.chunk, voxels.dtype)
            part[tuple(slice(0, size) for size in voxels.shape)] = voxels
        # Bytes are compared, because -0.0 is not the fill value.
        content = part.reshape(-1).view(np.uint8)
        if not content[:LOOKED_AT_FIRST].any() and not content.any():
            return None
        return content.data if self._compressor is None else self._compressor.encode(part)

    def unit_file(self, file: BinaryIO) -> UnitFile:
        """Return a unit that is written to a file."""
        counts = tuple(size // part for size, part in zip(self.unit, self.chunk, strict=True))
        return UnitFile(file, counts if self._is_sharded else None)


class UnitFile:
    """A chunk or shard that is written to a file, from `ChunkEncoder.unit_file`.

    Parameters
    ----------
    file : binary file
        Where it is written.
    counts : tuple of int or None
        Number of chunks of a shard along each axis; None if the unit is a chunk.
    """

    def __init__(self, file: BinaryIO, counts: Shape | None) -> None:
        self.file = file
        self._digest = xxh3_128()
        self._index = None if counts is None else np.full((*counts, 2), EMPTY_CHUNK, dtype="<u8")
        self._offset = 0

    def add(self, position: Shape, content: Any) -> None:
        """Write an encoded chunk, given its position in the shard."""
        size = memoryview(content).nbytes
        self._write(content)
        if self._index is not None:
            self._index[position] = self._offset, size
        self._offset += size
        if self._offset // WRITTEN_AT_ONCE > (self._offset - size) // WRITTEN_AT_ONCE:
            write_soon(self.file)

    def end(self) -> bool:
        """Write the index of a shard; return False if nothing was written, because all chunks are empty."""
        if self._index is not None and self._offset:
            table = self._index.tobytes()
            self._write(table)
            self._write(int(google_crc32c.value(table)).to_bytes(4, "little"))
        return self._offset > 0

    @property
    def digest(self) -> bytes:
        """Hash of what was written."""
        return self._digest.digest()

    def _write(self, content: Any) -> None:
        self._digest.update(content)
        self.file.write(content)


@dataclass(frozen=True, slots=True)
class _Gzip:
    """Encoder of gzip. It leaves out the time, which numcodecs writes, so that equal voxels are equal bytes."""

    level: int

    def encode(self, voxels: Array) -> bytes:
        """Return the compressed bytes of contiguous voxels."""
        file = io.BytesIO()
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=self.level, mtime=0) as compressed:
            compressed.write(voxels.reshape(-1).view(np.uint8).data)
        return file.getvalue()


def _layout(metadata: Any) -> tuple[Shape, Shape, bool, Any]:
    """Return the shapes of chunks and units of an array, whether units are shards, and the compressor."""
    if metadata.fill_value != 0:
        raise _unknown(f"the fill value {metadata.fill_value!r}")
    if metadata.zarr_format == 2:
        if metadata.filters or metadata.order != "C" or metadata.dtype.to_native_dtype().byteorder == ">":
            raise _unknown("filters, Fortran order or big-endian voxels")
        shape = tuple(metadata.chunks)
        return shape, shape, False, _without_time(metadata.compressor)
    unit = chunk = tuple(metadata.chunk_grid.chunk_shape)
    codecs = metadata.codecs
    is_sharded = len(codecs) == 1 and isinstance(codecs[0], ShardingCodec)
    if is_sharded:
        sharding = codecs[0]
        if _word(sharding.index_location) != "end":
            raise _unknown("the index of shards at their start")
        chunk, codecs = tuple(sharding.chunk_shape), sharding.codecs
    first, *rest = codecs
    if not isinstance(first, BytesCodec) or (first.endian is not None and _word(first.endian) != "little"):
        raise _unknown(f"{first}")
    if len(rest) > 1:
        raise _unknown(f"several codecs {rest}")
    return chunk, unit, is_sharded, _compressor(rest[0]) if rest else None


def _compressor(codec: Any) -> Any:
    """Return the encoder of a codec of zarr v3."""
    if isinstance(codec, BloscCodec):
        shuffle = SHUFFLES.index(_word(codec.shuffle))
        return numcodecs.Blosc(_word(codec.cname), codec.clevel, shuffle, codec.blocksize)
    if isinstance(codec, ZstdCodec):
        return numcodecs.Zstd(codec.level, codec.checksum)
    if isinstance(codec, GzipCodec):
        return _Gzip(codec.level)
    raise _unknown(f"codec {codec}")


def _without_time(codec: Any) -> Any:
    """Return a codec of zarr v2, of which gzip does not write the time."""
    return _Gzip(codec.level) if isinstance(codec, numcodecs.GZip) else codec


def _unknown(what: str) -> ValueError:
    return ValueError(f"The array has {what}, which exports do not write. Export to another store.")


def _word(value: Any) -> str:
    """Return the word of a codec option: an enumeration before zarr 3.2, text since."""
    return str(getattr(value, "value", value))
