"""Read and write the shards of one mip of a precomputed volume; a task writes whole shards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from imagery_dask.export.precomputed.precomputed_level import PrecomputedLevel
from imagery_dask.export.precomputed.shard_file import ShardFile
from imagery_dask.export.precomputed.sharding import Sharding
from imagery_dask.geometry.grid import Region, parts_of, start_of, stop_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.kernels import digest_of_bytes
from imagery_dask.sources.precomputed.shards import ShardedChunks, morton_codes
from imagery_dask.sources.requests.transport import Blob, Request
from imagery_dask.sources.volumes.encoded_block import Block
from imagery_dask.storage.atomic_files import Files, Put

__all__ = ["ShardedLevel"]

# Shards that wait for a bucket while the next one is made.
PUTS_IN_FLIGHT = 2
# No chunk is larger: what is read here was written here.
LARGEST_STORED = 2**40


@dataclass(frozen=True, slots=True)
class ShardedLevel(PrecomputedLevel):
    """One mip of a volume whose chunks lie in shards.

    Parameters
    ----------
    sharding : Sharding
        Its shards, which also say how each chunk is compressed.
    """

    sharding: Sharding = field(kw_only=True)

    @property
    def counts(self) -> Vec3[int]:
        """Number of chunks along x, y, z."""
        return (Vec3.of(self.stop) - self.start).ceil_div(self.chunk)

    def _write(self, region: Region, parts: Iterable[tuple[Region, Block]]) -> list[bytes]:
        """Write whole shards, given in parts of whole chunks, and return the hash of each of them."""
        left, digests = self._shards_in(region), list[bytes]()
        self._make_folder()
        with ExitStack() as waiting, self._target() as put:
            begun: dict[int, ShardFile] = {}
            for part, voxels in parts:
                chunks = self._cut(part, voxels)
                hashes = []
                for code, (_, chunk) in zip(self._codes([cell for cell, _ in chunks]), chunks, strict=True):
                    shard = code >> self.sharding.chunk_bits
                    if shard not in left:
                        raise ValueError(f"{part} is not in the block, or was written twice.")
                    if shard not in begun:
                        begun[shard] = ShardFile(self.sharding, self.files.folder and self.files.folder / self.key)
                        waiting.push(begun[shard])
                    content = self._encoded(chunk)
                    begun[shard].add(code, content)
                    if self.hashes_files:
                        hashes.append(digest_of_bytes(content))
                    left[shard] -= 1
                    if not left[shard]:
                        del left[shard]
                        put(f"{self.key}/{self.sharding.file_of(shard)}", _last(begun.pop(shard)))
                digests.append(self._digest(voxels, hashes))
            if left:
                raise ValueError(f"{len(left)} shards of the block lack chunks, such as {next(iter(left)):x}.")
        return digests

    @contextmanager
    def _target(self) -> Iterator[Put]:
        """Return what takes the shards of a block; on a disk, they appear together at the end."""
        if self.files.folder is not None:
            with self.files.together() as put:
                yield put
            return
        sent: deque[Future[None]] = deque()
        with ThreadPoolExecutor(PUTS_IN_FLIGHT) as threads:

            def put_later(name: str, content: bytes | Iterable[bytes], *_: object) -> None:
                sent.append(threads.submit(self.files.put, name, content, "application/octet-stream"))
                if len(sent) > PUTS_IN_FLIGHT:
                    sent.popleft().result()

            yield cast(Put, put_later)
            for one in sent:
                one.result()

    def _shards_in(self, region: Region) -> dict[int, int]:
        """Return the number of chunks of each shard of a region.

        Raises
        ------
        ValueError
            The region cuts a shard.
        """
        length = Vec3.of(self.stop) - self.start
        box = self.sharding.box(self.counts) * self.chunk
        for part, size, whole in zip(region, box, length, strict=True):
            if part.start % size or (part.stop % size and part.stop != whole):
                raise ValueError(f"{region} does not cover whole shards of {tuple(box)}.")
        shards = list(parts_of(region, box))
        codes = self._codes(shards)
        return {
            code >> self.sharding.chunk_bits: (stop_of(shard) - start_of(shard)).ceil_div(self.chunk).prod()
            for code, shard in zip(codes, shards, strict=True)
        }

    def _codes(self, regions: Sequence[Region]) -> list[int]:
        """Return the ids of the first chunks of regions."""
        return morton_codes([start_of(region) // self.chunk for region in regions], self.counts)

    def _contents(self, region: Region) -> Iterator[tuple[Region, bytes]]:
        """Yield the chunks that overlap a region, and their bytes as they were encoded."""
        parts = {start_of(part) // self.chunk: part for part in self._chunks(region)}
        # Indices are not kept: another process may write a shard again.
        transport = cast(Any, _Ranges(self.files))
        shards = ShardedChunks(transport, self.key, self.sharding.entry, self.counts, LARGEST_STORED)
        stored = dict(shards.get_many(list(parts)))
        for cell, part in parts.items():
            blob = stored.pop(cell)
            if blob is None:
                raise FileNotFoundError(f"{self.files.url}/{self._name(part)} was written, but is missing now.")
            try:
                content = bytes(blob.decompressed())
            except ValueError as error:
                raise ValueError(f"{self.files.url}/{self._name(part)} cannot be read: {error}") from error
            yield part, content


@dataclass(frozen=True, slots=True)
class _Ranges:
    """Ranges of bytes of files, as `ShardedChunks` asks a transport for them."""

    files: Files

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Blob | None]]:
        """Yield the bytes of each request, in order; None where there is no file."""
        for request in requests:
            start, stop = request.start or 0, request.stop or 0
            content = self.files.get_range(request.key, start, stop)
            if content is None:
                yield request, None
                continue
            is_whole = len(content) == stop - start
            yield request, Blob(content, damage="" if is_whole else f"{request.key} ends before byte {stop:,}")


def _last(shard: ShardFile) -> Iterator[bytes]:
    """Yield the pieces of a shard, and forget it."""
    with shard:
        yield from shard.pieces()
