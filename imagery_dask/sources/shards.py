"""Reading of storage chunks from shard files.

CloudVolume reads the shard and minishard indices again for every download, which would be most requests of a blockwise
read. This module keeps them while the volume is open, or until a chunk that they point to does not decode. The format
is Neuroglancer's ``neuroglancer_uint64_sharded_v1``; CloudVolume hashes and decodes.
"""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cloudvolume.datasource.precomputed.common import compressed_morton_code
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, ShardReader
from numpy.typing import NDArray

from imagery_dask.annotations import JsonObject
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.failures import brief
from imagery_dask.sources.files.compression import decompress
from imagery_dask.sources.transport import Blob, Request, Transport

__all__ = ["ShardedChunks"]

SHARD_INDICES_KEPT = 4096
MINISHARD_INDICES_KEPT = 16384
# Neighbouring byte ranges are read in one request up to this size, so that chunks of a large block arrive one by one.
LARGEST_REQUEST = 16 * 2**20
# An index with a larger shard is invalid.
LARGEST_SHARD = 2**50
LARGEST_INDEX = 2**28
# Bytes of an entry of a minishard index: id, offset, size.
ENTRY = 24


# Shard file, first byte, number of bytes.
_Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Byte range of one storage chunk in a shard file."""

    cell: Vec3[int]
    start: int
    stop: int


class _IndexFetcher:
    """Reads indices for CloudVolume's shard reader, in place of CloudVolume's cache service."""

    enabled = False

    def __init__(self, transport: Transport, fresh: bool) -> None:
        self._transport = transport
        self._fresh = fresh

    def download_as(
        self, requests: Sequence[Mapping[str, Any]], progress: object = None
    ) -> dict[tuple[str, int, int], bytes | None]:
        del progress
        wanted = [Request(r["path"], int(r["start"]), int(r["end"]), self._fresh) for r in requests]
        contents: dict[tuple[str, int, int], bytes | None] = {}
        for request, blob in self._transport.get_many(wanted):
            key = (request.key, request.start or 0, request.stop or 0)
            try:
                contents[key] = None if blob is None else blob.decompressed()
            except Exception as error:  # of any decompressor
                contents[key] = _Broken(brief(error).encode())
        return contents


class _Broken(bytes):
    """The reason why an index could not be read, in place of its bytes."""


class _Indices(ShardReader):
    """CloudVolume's reader of indices, with a check of their content.

    Indices have no checksum. The chunks that a damaged index lacks would count as missing.

    Attributes
    ----------
    broken : dict of str to str
        Damage of indices, by the name of the shard file. Chunks that these indices lack may exist.
    """

    def __init__(
        self, transport: Transport, spec: ShardingSpecification, cells: Vec3[int], largest_chunk: int, fresh: bool
    ) -> None:
        fetcher = _IndexFetcher(transport, fresh)
        super().__init__(transport.cloudpath, fetcher, spec, SHARD_INDICES_KEPT, MINISHARD_INDICES_KEPT)
        self.broken: dict[str, str] = {}
        self._largest_chunk = largest_chunk
        self._codes = 2 ** sum((n - 1).bit_length() for n in cells)
        # An entry has 24 bytes; compression of incompressible data adds a little.
        self._largest = min(32 * self._codes + 4096, LARGEST_INDEX)

    def decode_index(self, binary: bytes | None, filename: str = "Shard") -> NDArray[np.uint64] | None:
        if not binary:
            return None
        try:
            return self._shard_index(binary, filename)
        except Exception as error:
            self.broken[posixpath.basename(filename)] = f"the shard index of {filename} is broken: {brief(error)}"
            return None

    def decode_minishard_index(self, minishard_index: bytes | None, filename: str = "") -> NDArray[np.uint64]:
        try:
            return self._minishard_index(minishard_index, filename)
        except Exception as error:
            self.broken[posixpath.basename(filename)] = f"a minishard index of {filename} is broken: {brief(error)}"
            return np.zeros((0, 3), np.uint64)

    def _shard_index(self, binary: bytes, filename: str) -> NDArray[np.uint64]:
        _check_whole(binary)
        index: NDArray[np.uint64] = super().decode_index(binary, filename)
        if (index[:, 1] == index[:, 0]).all():
            raise ValueError("it refers to no chunks, as if it had been overwritten with zeros")
        outside = (index < self.spec.index_length()) | (index > LARGEST_SHARD)
        if outside.any() or (index[:, 1] < index[:, 0]).any() or (index[:, 1] - index[:, 0] > self._largest).any():
            raise ValueError("it has impossible offsets of minishard indices")
        return index

    def _minishard_index(self, binary: bytes | None, filename: str) -> NDArray[np.uint64]:
        if binary is None:
            raise ValueError("the file disappeared while it was read")
        _check_whole(binary)
        encoding = str(self.spec.minishard_index_encoding)
        content = decompress(binary, None if encoding == "raw" else encoding, self._largest)
        if not content or len(content) % ENTRY:
            raise ValueError(f"its {len(content)} bytes are no whole number of entries")
        deltas: NDArray[np.uint64] = np.frombuffer(content, "<u8").reshape(3, -1)
        index = np.cumsum(deltas, axis=1, dtype=np.uint64).T
        index[1:, 1] += index[:-1, 2]
        index[:, 1] += np.uint64(self.spec.index_length())
        index[:, 2] = deltas[2]
        if (
            (deltas[0, 1:] == 0).any()
            or (index[:, 0] >= self._codes).any()
            or (index[:, 1] > LARGEST_SHARD).any()
            or (index[:, 2] > self._largest_chunk).any()
        ):
            raise ValueError("it has impossible ids or offsets of chunks")
        return index


def _check_whole(binary: bytes) -> None:
    if isinstance(binary, _Broken):
        raise ValueError(binary.decode())


class ShardedChunks:
    """Storage chunks of one sharded mip.

    Parameters
    ----------
    transport : Transport
        Reader of the volume's files.
    key : str
        Folder of the mip.
    sharding : dict
        The ``sharding`` entry of the mip's scale.
    cells : tuple of 3 int
        Number of storage chunks along x, y, z.
    largest_chunk : int
        Size that no stored chunk exceeds, in bytes.
    """

    def __init__(
        self, transport: Transport, key: str, sharding: JsonObject, cells: Vec3[int], largest_chunk: int
    ) -> None:
        self._transport = transport
        self._key = key
        self._spec = ShardingSpecification.from_dict(sharding)
        self._cells = cells
        self._largest_chunk = largest_chunk
        self._index = self._indices()
        # CloudVolume's index caches are linked lists without a lock.
        self._lock = threading.Lock()

    def get_many(self, cells: Sequence[Vec3[int]]) -> Iterator[tuple[Vec3[int], Blob | None]]:
        """Yield storage chunks with their position in the grid of chunks; None for a missing chunk.

        `Blob.damage` describes damage of an index or of the bytes it points to.
        """
        with self._lock:
            places = self._places(self._index, cells)
        pieces: dict[str, list[_Piece]] = {}
        for cell, place in places.items():
            if place is None or isinstance(place, str):
                yield cell, None if place is None else Blob(b"", damage=place)
            else:
                path, start, length = place
                pieces.setdefault(path, []).append(_Piece(cell, start, start + length))
        runs = [(path, run) for path, of_file in pieces.items() for run in _runs(of_file)]
        requests = [Request(path, run[0].start, run[-1].stop) for path, run in runs]
        for (_, run), (request, blob) in zip(runs, self._transport.get_many(requests), strict=True):
            for piece in run:
                if blob is None:
                    yield piece.cell, None
                    continue
                offset = piece.start - (request.start or 0)
                content = blob.content[offset : offset + piece.stop - piece.start]
                yield piece.cell, Blob(content, self._data_encoding, blob.damage)

    def get_again(self, cell: Vec3[int]) -> Blob | None:
        """Fetch a storage chunk that did not decode, bypassing caches, with indices that are read again.

        The cached indices are dropped, because they may be outdated for other chunks too.
        """
        place = self._places(self._indices(fresh=True), [cell])[cell]
        if isinstance(place, str):
            return Blob(b"", damage=place)
        with self._lock:
            self._index = self._indices()
        if place is None:
            return None
        path, start, length = place
        blob = self._transport.get(Request(path, start, start + length, fresh=True))
        return None if blob is None else Blob(blob.content, self._data_encoding, blob.damage)

    @property
    def _data_encoding(self) -> str | None:
        return None if self._spec.data_encoding == "raw" else str(self._spec.data_encoding)

    def _places(self, index: _Indices, cells: Sequence[Vec3[int]]) -> dict[Vec3[int], _Place | str | None]:
        """Return the place of each chunk, None if no index has it, or the damage of its index."""
        codes = [int(code) for code in compressed_morton_code(list(cells), self._cells)]
        known = index.exists(codes, self._key, return_byte_range=True, progress=False)
        places: dict[Vec3[int], _Place | str | None] = {}
        for code, cell in zip(codes, cells, strict=True):
            place = known.get(code)
            if place is None and index.broken:
                places[cell] = index.broken.get(index.get_filename(code))
            else:
                places[cell] = place
        return places

    def _indices(self, fresh: bool = False) -> _Indices:
        return _Indices(self._transport, self._spec, self._cells, self._largest_chunk, fresh)


def _runs(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Yield groups of pieces that are contiguous in the file."""
    run: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if run and (piece.start != run[-1].stop or piece.stop - run[0].start > LARGEST_REQUEST):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run
