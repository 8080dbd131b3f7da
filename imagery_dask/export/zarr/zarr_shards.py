"""Encode shards of zarr v3 chunk by chunk into a file, so that a task holds only one encoded chunk in memory.

The format is zarr's "sharding_indexed" codec with the index at the end:

    | chunk | chunk | chunk | ... | offset, size of each chunk in C order, as uint64 | crc32c of these |
"""

from __future__ import annotations

from itertools import product
from typing import Any, BinaryIO

import google_crc32c
import numcodecs
import numpy as np
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec, ZstdCodec

from imagery_dask.annotations import Array
from imagery_dask.storage.atomic_files import write_soon

__all__ = ["ShardEncoder", "shard_encoder"]

EMPTY_CHUNK = 2**64 - 1
WRITTEN_AT_ONCE = 4 * 2**20


class ShardEncoder:
    """Writes shards of one array; safe to use from many threads.

    Parameters
    ----------
    chunk, shard : tuple of int
        Shape of each in voxels.
    compressor : numcodecs codec or None
        Compression of chunks.
    """

    def __init__(self, chunk: tuple[int, ...], shard: tuple[int, ...], compressor: Any) -> None:
        self._chunk, self._compressor = chunk, compressor
        self._counts = tuple(size // part for size, part in zip(shard, chunk, strict=True))

    def write(self, voxels: Array, file: BinaryIO) -> bool:
        """Write a shard, which may be cut off at the edge of the array.

        Returns
        -------
        bool
            False if all chunks are empty; nothing has been written then.
        """
        index = np.full((*self._counts, 2), EMPTY_CHUNK, dtype="<u8")
        offset = 0
        for position in product(*(range(count) for count in self._counts)):
            content = self._encoded(voxels, position)
            if content is not None:
                size = file.write(content)
                index[position] = offset, size
                offset += size
                if offset // WRITTEN_AT_ONCE > (offset - size) // WRITTEN_AT_ONCE:
                    write_soon(file)
        if offset:
            table = index.tobytes()
            file.write(table)
            file.write(int(google_crc32c.value(table)).to_bytes(4, "little"))
        return offset > 0

    def _encoded(self, voxels: Array, position: tuple[int, ...]) -> Any:
        starts = [at * size for at, size in zip(position, self._chunk, strict=True)]
        part = voxels[tuple(slice(start, start + size) for start, size in zip(starts, self._chunk, strict=True))]
        if part.shape == self._chunk:
            part = np.ascontiguousarray(part)
        else:
            whole = np.zeros(self._chunk, part.dtype)
            whole[tuple(slice(0, size) for size in part.shape)] = part
            part = whole
        # Bytes are compared, because -0.0 is not the fill value.
        if not part.reshape(-1).view(np.uint8).any():
            return None
        return part.data if self._compressor is None else self._compressor.encode(part)


def shard_encoder(metadata: Any) -> ShardEncoder | None:
    """Return the encoder of an array's shards; None if it has no shards, or shards of another encoding than ours."""
    if metadata.zarr_format != 3 or len(metadata.codecs) != 1 or not isinstance(metadata.codecs[0], ShardingCodec):
        return None
    sharding = metadata.codecs[0]
    first, *rest = sharding.codecs
    little = isinstance(first, BytesCodec) and (first.endian is None or _word(first.endian) == "little")
    if not little or len(rest) > 1 or metadata.fill_value != 0 or _word(sharding.index_location) != "end":
        return None
    compressor = _compressor(rest[0]) if rest else None
    if rest and compressor is None:
        return None
    return ShardEncoder(tuple(sharding.chunk_shape), tuple(metadata.chunk_grid.chunk_shape), compressor)


def _compressor(codec: Any) -> Any:
    """Return the numcodecs codec for a zarr codec, or None."""
    if isinstance(codec, BloscCodec):
        shuffles = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
        return numcodecs.Blosc(_word(codec.cname), codec.clevel, shuffles[_word(codec.shuffle)], codec.blocksize)
    if isinstance(codec, ZstdCodec):
        return numcodecs.Zstd(codec.level, codec.checksum)
    return numcodecs.GZip(codec.level) if isinstance(codec, GzipCodec) else None


def _word(value: Any) -> str:
    """Return the word of a codec option: an enumeration before zarr 3.2, text since."""
    return str(getattr(value, "value", value))
