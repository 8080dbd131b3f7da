"""Reading of storage chunks from shard files.

Format: ``neuroglancer_uint64_sharded_v1``,
https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md

A shard begins with its index, which has the byte range of each minishard's index; that one has the ids and byte ranges
of chunks. Indices are kept while the volume is open, or until a chunk that they point to does not decode. CloudVolume,
whose import takes a second, reads them again for every download, which would be most requests of a blockwise read. A
shard of which all chunks are wanted is read in one request, unless it is large.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from typing import Generic, TypeVar

import mmh3
import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import JsonObject
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.files.compression import decompress
from imagery_dask.sources.files.failures import brief
from imagery_dask.sources.requests.byte_ranges import LARGEST_WHOLE, Place, get_ranges, get_whole
from imagery_dask.sources.requests.transport import Blob, Files, Request

__all__ = ["ShardedChunks", "morton_codes", "neighbours"]

# A file that is readable, beside the folders of shards (`Request.beside`).
INFO = "info"
SHARD_INDICES_KEPT = 4096
MINISHARD_INDICES_KEPT = 16384
# An index with a larger shard is invalid.
LARGEST_SHARD = 2**50
LARGEST_INDEX = 2**28
# Bytes of an entry of a shard index: first byte, one past the last; and of a minishard index: id, offset, size.
RANGE, ENTRY = 16, 24

Key = TypeVar("Key", bound=Hashable)
Index = NDArray[np.uint64]


class _Broken(str):
    """The reason why an index could not be read, in place of it."""


# An index; None if there is none, as in a shard without a file; `Blob.refused_or_absent` if the server does not say.
Found = Index | _Broken | Blob | None


class _Kept(Generic[Key]):
    """Indices by key, of a limited number; those that were not used for longest go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[Key, Found] = OrderedDict()

    def get(self, keys: Sequence[Key], read: Callable[[list[Key]], dict[Key, Found]], fresh: bool) -> dict[Key, Found]:
        """Return indices, of which those are read that are not kept; all, if they are to be `fresh`."""
        new = read([key for key in keys if fresh or key not in self._found])
        found = {key: new[key] if key in new else self._found[key] for key in keys}
        for key, index in found.items():
            if not isinstance(index, Blob):  # which is refused now, and need not be later
                self._found[key] = index
                self._found.move_to_end(key)
        while len(self._found) > self._most:
            self._found.popitem(last=False)
        return found


class ShardedChunks:
    """Storage chunks of one sharded mip. Safe to use from many threads.

    Parameters
    ----------
    transport : Files
        Reader of the volume's files.
    key : str
        Folder of the mip.
    sharding : dict
        The ``sharding`` entry of the mip's scale, as `imagery_dask.model.volume_info.check_info` returns it.
    cells : Vec3 of int
        Number of storage chunks along x, y, z.
    largest_chunk : int
        Size that no stored chunk exceeds, in bytes.
    expected_chunk : float, optional
        Size that a stored chunk has at most in general, by which small shards are read in one request if all their
        chunks are wanted. By default none is.
    """

    def __init__(
        self,
        transport: Files,
        key: str,
        sharding: JsonObject,
        cells: Vec3[int],
        largest_chunk: int,
        expected_chunk: float = math.inf,
    ) -> None:
        self._transport, self._key, self._cells = transport, key, cells
        self._largest_chunk, self._expected_chunk = largest_chunk, expected_chunk
        self._preshift_bits, self._shard_bits = int(sharding["preshift_bits"]), int(sharding["shard_bits"])
        self._minishards = 2 ** int(sharding["minishard_bits"])
        self._is_hashed = sharding["hash"] != "identity"
        self._index_encoding = _encoding(sharding["minishard_index_encoding"])
        self._data_encoding = _encoding(sharding["data_encoding"])
        bits = sum((n - 1).bit_length() for n in cells)
        self._codes = 2**bits
        of_shard = neighbours(sharding, cells)
        # The box of chunks that are a shard; None if there is none, as where ids are hashed.
        is_box = not self._is_hashed and bits <= self._shard_bits + sum((n - 1).bit_length() for n in of_shard)
        self._box = of_shard if is_box else None
        # Compression of incompressible data adds a little.
        self._largest_index = min(32 * self._codes + 4096, LARGEST_INDEX)
        self._lock = threading.Lock()  # so that threads that need the same index read it once
        self._forget()

    def get_many(self, cells: Sequence[Vec3[int]]) -> Iterator[tuple[Vec3[int], Blob | None]]:
        """Yield storage chunks with their position in the grid of chunks; None for a missing chunk.

        `Blob.damage` describes damage of an index or of the bytes it points to. A chunk is `Blob.refused_or_absent` if
        its shard is.
        """
        left = yield from self._get_whole(cells)
        yield from self._get_parts(left, self._transport, fresh=False)

    def _get_whole(self, cells: Sequence[Vec3[int]]) -> Generator[tuple[Vec3[int], Blob | None], None, list[Vec3[int]]]:
        """Yield the chunks of small shards that are wanted whole; return the other ones."""
        if self._expected_chunk > LARGEST_WHOLE:
            return list(cells)
        of_shards: dict[int, list[Vec3[int]]] = {}
        for cell, code in zip(cells, morton_codes(cells, self._cells), strict=True):
            of_shards.setdefault(self._minishard_of(code)[0], []).append(cell)
        is_all = len(cells) == self._cells.prod()
        whole = {self._file(shard): shard for shard, own in of_shards.items() if self._reads_whole(own, is_all)}
        for file, found in get_whole(self._transport, whole, INFO):
            chunks = of_shards.pop(whole[file])
            if found is None or isinstance(found, Blob):
                yield from ((cell, found) for cell in chunks)
            else:
                yield from self._get_parts(chunks, found, found is not self._transport)
        return [cell for chunks in of_shards.values() for cell in chunks]

    def _reads_whole(self, wanted: list[Vec3[int]], is_all: bool) -> bool:
        """Return True for the chunks of a shard, of all that are wanted, if they are all that it has, and few."""
        if len(wanted) * self._expected_chunk > LARGEST_WHOLE:
            return False
        if self._box is None:
            return is_all
        first = wanted[0] // self._box * self._box
        return len(wanted) == (self._cells - first).minimum(self._box).prod()

    def _get_parts(
        self, cells: Sequence[Vec3[int]], files: Files, fresh: bool
    ) -> Iterator[tuple[Vec3[int], Blob | None]]:
        """Yield chunks by their byte ranges, with indices that are kept, or `fresh` ones."""
        with self._lock:
            places = self._places(cells, files, fresh)
        stored: list[Place[Vec3[int]]] = []
        for cell, place in places.items():
            if isinstance(place, tuple):
                stored.append(Place(cell, *place))
            else:
                yield cell, _unread(place)
        for cell, blob in get_ranges(files, stored, INFO, fresh):
            yield cell, self._encoded(blob)

    def file_of(self, cell: Vec3[int]) -> str:
        """Return the name of the file of a storage chunk, by its position in the grid of chunks."""
        return self._file(self._minishard_of(morton_codes([cell], self._cells)[0])[0])

    def get_again(self, cell: Vec3[int]) -> Blob | None:
        """Fetch a storage chunk that did not decode, bypassing caches, with indices that are read again.

        The kept indices are dropped, because they may be outdated for other chunks too.
        """
        with self._lock:
            self._forget()
        ((_, blob),) = self._get_parts([cell], self._transport, fresh=True)
        return blob

    def _encoded(self, blob: Blob | None) -> Blob | None:
        """Return a chunk with its compression."""
        if blob is None or blob.refused_or_absent:
            return blob
        return Blob(blob.content, self._data_encoding, blob.damage)

    def _forget(self) -> None:
        # By number of the shard; and by that and the number of the minishard.
        self._shards: _Kept[int] = _Kept(SHARD_INDICES_KEPT)
        self._minishard_indices: _Kept[tuple[int, int]] = _Kept(MINISHARD_INDICES_KEPT)

    def _places(
        self, cells: Sequence[Vec3[int]], files: Files, fresh: bool
    ) -> dict[Vec3[int], tuple[str, int, int] | _Broken | Blob | None]:
        """Return the file and byte range of each chunk, None if no index has it, or why its index was not read."""
        codes = morton_codes(cells, self._cells)
        minishards = [self._minishard_of(code) for code in codes]
        shards = self._shards.get(
            _distinct(shard for shard, _ in minishards), lambda new: self._read_shards(new, files, fresh), fresh
        )
        indices = self._minishard_indices.get(
            _distinct(minishards), lambda new: self._read_minishards(new, shards, files, fresh), fresh
        )
        return {
            cell: self._place(code, minishard[0], indices[minishard])
            for cell, code, minishard in zip(cells, codes, minishards, strict=True)
        }

    def _minishard_of(self, code: int) -> tuple[int, int]:
        """Return the numbers of the shard and the minishard of a chunk."""
        hashed = code >> self._preshift_bits
        if self._is_hashed:
            hashed = mmh3.hash64(hashed.to_bytes(8, "little"), x64arch=False, signed=False)[0]
        return hashed // self._minishards % 2**self._shard_bits, hashed % self._minishards

    def _place(self, code: int, shard: int, index: Found) -> tuple[str, int, int] | _Broken | Blob | None:
        if index is None or isinstance(index, (_Broken, Blob)):
            return index
        at = int(np.searchsorted(index[:, 0], np.uint64(code)))
        if at == len(index) or int(index[at, 0]) != code:
            return None
        start = int(index[at, 1])
        return self._file(shard), start, start + int(index[at, 2])

    def _file(self, shard: int) -> str:
        return f"{self._key}/{shard:0{-(-self._shard_bits // 4)}x}.shard"

    def _read_shards(self, shards: list[int], files: Files, fresh: bool) -> dict[int, Found]:
        size = RANGE * self._minishards
        requests = {Request(self._file(shard), 0, size, fresh, beside=INFO): shard for shard in shards}
        return {
            requests[request]: self._parsed(blob, self._shard_index, f"the shard index of {request.key}")
            for request, blob in files.get_many(requests)
        }

    def _read_minishards(
        self, minishards: list[tuple[int, int]], shards: dict[int, Found], files: Files, fresh: bool
    ) -> dict[tuple[int, int], Found]:
        found: dict[tuple[int, int], Found] = {}
        requests: dict[Request, tuple[int, int]] = {}
        for shard, minishard in minishards:
            index = shards[shard]
            if index is None or isinstance(index, (_Broken, Blob)):
                found[shard, minishard] = index
                continue
            start, stop = (int(end) for end in index[minishard])
            if start == stop:  # no chunk of it is stored
                found[shard, minishard] = None
            else:
                requests[Request(self._file(shard), start, stop, fresh, beside=INFO)] = shard, minishard
        for request, blob in files.get_many(requests):
            what = f"a minishard index of {request.key}"
            if blob is None or blob.refused_or_absent:
                how = "disappeared" if blob is None else "was removed or refused"
                found[requests[request]] = _Broken(f"{what} is broken: the file {how} while it was read")
            else:
                found[requests[request]] = self._parsed(blob, self._minishard_index, what)
        return found

    def _parsed(self, blob: Blob | None, parse: Callable[[bytes], Index], what: str) -> Found:
        """Return an index, or the reason why it is none: it has no checksum, and chunks that it lacks are missing."""
        if blob is None or blob.refused_or_absent:
            return blob
        try:
            return parse(bytes(blob.decompressed()))
        except Exception as error:  # of any decompressor
            return _Broken(f"{what} is broken: {brief(error)}")

    def _shard_index(self, content: bytes) -> Index:
        """Return the first byte of each minishard index, and one past its last, from the start of the file."""
        index: Index = np.frombuffer(content, "<u8").reshape(-1, 2) + np.uint64(RANGE * self._minishards)
        if (index[:, 1] == index[:, 0]).all():
            raise ValueError("it refers to no chunks, as if it had been overwritten with zeros")
        outside = (index < RANGE * self._minishards) | (index > LARGEST_SHARD)
        if (
            outside.any()
            or (index[:, 1] < index[:, 0]).any()
            or (index[:, 1] - index[:, 0] > self._largest_index).any()
        ):
            raise ValueError("it has impossible offsets of minishard indices")
        return index

    def _minishard_index(self, content: bytes) -> Index:
        """Return id, first byte and size of each chunk, sorted by id."""
        content = decompress(content, self._index_encoding, self._largest_index)
        if not content or len(content) % ENTRY:
            raise ValueError(f"its {len(content)} bytes are no whole number of entries")
        # Ids, and gaps between chunks in the file, are differences to the entry before.
        deltas: Index = np.frombuffer(content, "<u8").reshape(3, -1)
        index = np.cumsum(deltas, axis=1, dtype=np.uint64).T
        index[1:, 1] += index[:-1, 2]
        index[:, 1] += np.uint64(RANGE * self._minishards)
        index[:, 2] = deltas[2]
        if (
            (deltas[0, 1:] == 0).any()
            or (index[:, 0] >= self._codes).any()
            or (index[:, 1] > LARGEST_SHARD).any()
            or (index[:, 2] > self._largest_chunk).any()
        ):
            raise ValueError("it has impossible ids or offsets of chunks")
        return index[np.argsort(index[:, 0], kind="stable")]


def neighbours(sharding: JsonObject, counts: Vec3[int]) -> Vec3[int]:
    """Return how many chunks a shard holds that lie side by side, along x, y, z.

    Parameters
    ----------
    sharding : dict
        The ``sharding`` entry of a scale. Where ids are hashed, these are the chunks of ``preshift_bits``.
    counts : Vec3 of int
        Number of chunks in the grid.

    Examples
    --------
    >>> neighbours({"preshift_bits": 3, "minishard_bits": 2, "hash": "identity"}, Vec3(100, 4, 1))
    (8, 4, 1)
    """
    bits = int(sharding["preshift_bits"]) + (int(sharding["minishard_bits"]) if sharding["hash"] == "identity" else 0)
    places = _axes_of_bits(counts)[:bits]
    return Vec3.of(2 ** places.count(axis) for axis in range(3))


def _axes_of_bits(counts: Vec3[int]) -> list[int]:
    """Return the axis of each bit of a compressed Morton code, from the lowest."""
    return [axis for bit in range(64) for axis in range(3) if (counts[axis] - 1) >> bit]


def morton_codes(cells: Sequence[Vec3[int]], counts: Vec3[int]) -> list[int]:
    """Return the compressed Morton codes of cells in a grid, which are the ids of storage chunks.

    The bits of x, y and z take turns, from the lowest; an axis has no more bits than its number of cells needs.

    >>> morton_codes([Vec3(1, 0, 0), Vec3(0, 1, 0), Vec3(2, 1, 0)], Vec3(4, 2, 1))
    [1, 2, 6]
    """
    places = _axes_of_bits(counts)
    at = np.asarray(cells, np.uint64).reshape(-1, 3)
    codes = np.zeros(len(at), np.uint64)
    for place, axis in enumerate(places):
        bit = np.uint64(places[:place].count(axis))
        codes |= (at[:, axis] >> bit & np.uint64(1)) << np.uint64(place)
    return [int(code) for code in codes]


def _unread(place: _Broken | Blob | None) -> Blob | None:
    """Return a chunk that no index refers to."""
    return Blob(b"", damage=place) if isinstance(place, _Broken) else place


def _encoding(name: object) -> str | None:
    return None if name == "raw" else str(name)


def _distinct(keys: Iterator[Key] | Sequence[Key]) -> list[Key]:
    return list(dict.fromkeys(keys))
