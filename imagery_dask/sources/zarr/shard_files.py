"""Chunks within the shards of zarr v3 ("sharding_indexed"), whose indices are kept.

Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Generator, Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from imagery_dask.sources.files.failures import brief
from imagery_dask.sources.requests.byte_ranges import LARGEST_WHOLE, Place, get_ranges, get_whole
from imagery_dask.sources.requests.transport import LEFT_OUT, Blob, Files, Request, Transport
from imagery_dask.sources.zarr.array_format import ArrayFormat
from imagery_dask.sources.zarr.chunk_codecs import without_checksum

__all__ = ["ShardFiles"]

Shape = tuple[int, ...]
Cell = TypeVar("Cell", bound=Hashable)
INDEX_BYTES_KEPT = 128 * 2**20
EMPTY = np.uint64(2**64 - 1)
RANGE_BYTES, CHECKSUM_BYTES = 16, 4
LARGEST_SHARD = 2**50

# First byte and number of bytes of each chunk; why the index is broken; None of a shard that is not stored;
# `Blob.refused_or_absent` if the server does not say.
Index = NDArray[np.uint64] | str | Blob | None


class ShardFiles:
    """Chunks of one sharded array. Safe to use from many threads.

    Parameters
    ----------
    transport : Transport
        Reader of the volume's files.
    array : ArrayFormat
        The array, with a `shard`.
    prefix : str
        Its folder with a slash at the end, or "".
    largest_chunk : int
        Size that no stored chunk exceeds, in bytes.
    metadata_name : str
        The volume's metadata, which is readable (`Request.beside`).
    """

    def __init__(
        self, transport: Transport, array: ArrayFormat, prefix: str, largest_chunk: int, metadata_name: str
    ) -> None:
        assert array.shard is not None
        self._transport, self._array, self._shard, self._prefix = transport, array, array.shard, prefix
        self._largest_chunk, self._beside = largest_chunk, metadata_name
        self._counts = tuple(own // part for own, part in zip(self._shard.shape, array.chunk, strict=True))
        self._grid = tuple(-(-size // part) for size, part in zip(array.shape, array.chunk, strict=True))
        self._is_small = math.prod(self._shard.shape) * array.dtype.itemsize <= LARGEST_WHOLE
        self._size = RANGE_BYTES * int(np.prod(self._counts, dtype=object)) + CHECKSUM_BYTES * self._shard.has_checksum
        self._lock = threading.Lock()  # so that threads that need the same index read it once
        self._indices: OrderedDict[Hashable, Index] = OrderedDict()

    def file_of(self, position: Shape) -> str:
        """Return the file with a chunk, by its position in the grid of chunks."""
        return self._prefix + self._array.key_of(self._shard_of(position))

    def _shard_of(self, position: Shape) -> Shape:
        return tuple(at // count for at, count in zip(position, self._counts, strict=True))

    def get_many(self, positions: Mapping[Cell, Shape], fresh: bool = False) -> Iterator[tuple[Cell, Blob | None]]:
        """Yield chunks as stored; None for those of a shard that is not, `LEFT_OUT` for others that are not.

        Parameters
        ----------
        positions : dict
            Positions in the grid of chunks, by what is yielded with the chunk.
        fresh : bool
            Read indices again that are kept, bypassing caches.
        """
        if not fresh:
            positions = yield from self._get_whole(positions)
        yield from self._get_parts(positions, self._transport, fresh)

    def _get_whole(
        self, positions: Mapping[Cell, Shape]
    ) -> Generator[tuple[Cell, Blob | None], None, Mapping[Cell, Shape]]:
        """Yield the chunks of small shards that are wanted whole; return the others."""
        if not self._transport.is_remote or not self._is_small:
            return positions
        of_shards: dict[Shape, dict[Cell, Shape]] = {}
        for item, position in positions.items():
            of_shards.setdefault(self._shard_of(position), {})[item] = position
        whole = {
            self._prefix + self._array.key_of(shard): shard
            for shard, items in of_shards.items() if len(items) == self._chunks_of(shard)
        }  # fmt: skip
        for file, found in get_whole(self._transport, whole, self._beside):
            chunks = of_shards.pop(whole[file])
            if found is None or isinstance(found, Blob):
                yield from ((item, found) for item in chunks)
            else:
                yield from self._get_parts(chunks, found, found is not self._transport)
        return {item: position for chunks in of_shards.values() for item, position in chunks.items()}

    def _get_parts(
        self, positions: Mapping[Cell, Shape], source: Files, fresh: bool
    ) -> Iterator[tuple[Cell, Blob | None]]:
        """Yield chunks by their byte ranges, with indices that are kept, or `fresh` ones."""
        files = {item: self.file_of(position) for item, position in positions.items()}
        with self._lock:
            indices = self._read_indices(list(dict.fromkeys(files.values())), source, fresh)
        places = []
        for item, position in positions.items():
            index = indices[files[item]]
            place: str | tuple[int, int] | Blob | None
            place = (self._place(index, position, files[item]) or LEFT_OUT) if isinstance(index, np.ndarray) else index
            if isinstance(place, tuple):
                places.append(Place(item, files[item], *place))
            else:
                yield item, Blob(b"", damage=place) if isinstance(place, str) else place
        yield from get_ranges(source, places, self._beside, fresh)

    def _chunks_of(self, shard: Shape) -> int:
        """Return the number of chunks of a shard that begin inside the array."""
        return math.prod(
            min(count, size - at * count) for at, count, size in zip(shard, self._counts, self._grid, strict=True)
        )

    def _place(self, index: NDArray[np.uint64], position: Shape, file: str) -> str | tuple[int, int] | None:
        inside = tuple(at % count for at, count in zip(position, self._counts, strict=True))
        start, size = (int(number) for number in index[inside])
        if start == size == EMPTY:
            return None
        if size > self._largest_chunk or start + size > LARGEST_SHARD:
            return f"the index of {file} refers to {size} bytes from {start} on"
        return start, start + size

    def _read_indices(self, files: list[str], source: Files, fresh: bool) -> dict[str, Index]:
        keys: dict[str, Hashable] = {file: (file, self._stamp(file)) for file in files}
        found = {file: self._indices[key] for file, key in keys.items() if key in self._indices and not fresh}
        start = -self._size if self._shard.at_end else 0
        stop = None if self._shard.at_end else self._size
        requests = [Request(file, start, stop, fresh, beside=self._beside) for file in files if file not in found]
        for request, blob in source.get_many(requests):
            found[request.key] = self._parsed(blob, request.key)
        for file, key in keys.items():
            self._indices.pop(key, None)
            if self._stamp(file) is not None and not isinstance(found[file], Blob):
                self._indices[key] = found[file]
        self._limit()
        return found

    def _limit(self) -> None:
        """Drop the indices that were not used for the longest time."""
        while len(self._indices) * self._size > INDEX_BYTES_KEPT:
            self._indices.popitem(last=False)

    def _stamp(self, file: str) -> tuple[object, ...] | None:
        """Return what differs once a shard is written again; None if that would not be noticed."""
        return () if self._transport.is_remote else self._transport.stamp(file)

    def _parsed(self, blob: Blob | None, file: str) -> Index:
        if blob is None or blob.refused_or_absent:
            return blob
        try:
            content = memoryview(blob.decompressed()).cast("B")
            if len(content) != self._size:
                raise ValueError(f"{len(content)} of its {self._size} bytes are there")
            numbers = without_checksum(content) if self._shard.has_checksum else content
            index = np.frombuffer(numbers, self._shard.dtype).reshape(*self._counts, 2)
        except Exception as error:
            return f"the shard index of {file} is broken: {brief(error)}"
        return np.asarray(index, np.uint64)
