"""Join the chunks of a shard to its file.

::

    | first byte, end of each minishard index | chunk | chunk | ... | minishard index | minishard index | ... |

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md. Chunks lie in the
order of their ids, although they come in another one, so that readers of a neighbourhood ask for one range of bytes.
What has come waits in memory, and on disk where it is large.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

import numpy as np

from imagery_dask.export.precomputed.sharding import Sharding
from imagery_dask.sources.files.compression import compress

__all__ = ["ShardFile"]

# Bytes of a shard that wait in memory.
HELD_BYTES = 32 * 2**20
# Chunks are copied into the file so many bytes at a time.
COPIED_AT_ONCE = 4 * 2**20


class ShardFile:
    """A shard that is being written.

    Parameters
    ----------
    sharding : Sharding
        The specification.
    folder : path or None
        Where chunks wait that are too many for memory; by default the folder of temporary files.
    """

    def __init__(self, sharding: Sharding, folder: Path | None) -> None:
        self._sharding = sharding
        # Closed by `__exit__`.
        self._waiting = SpooledTemporaryFile(max_size=HELD_BYTES, dir=str(folder) if folder else None)  # noqa: SIM115
        self._places: dict[int, tuple[int, int]] = {}
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._waiting.close()

    def add(self, code: int, content: bytes) -> None:
        """Add an encoded chunk, given its id; raise ValueError if it was added before."""
        if code in self._places:
            raise ValueError(f"Chunk {code:x} of the shard was written twice.")
        if self._sharding.data_encoding == "gzip":
            content = compress(content, "gzip")
        self._waiting.write(content)
        self._places[code] = self._size, len(content)
        self._size += len(content)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of the file, one piece after another."""
        codes = sorted(self._places)
        first, indices = self._indices(codes)
        yield first
        yield from self._chunks(codes)
        yield from indices

    def _indices(self, codes: list[int]) -> tuple[bytes, list[bytes]]:
        """Return the index of the shard, and those of its minishards that have chunks."""
        ids = np.array(codes, "<u8")
        sizes = np.array([self._places[code][1] for code in codes], "<u8")
        starts = np.cumsum(sizes, dtype="<u8") - sizes
        numbers = ids >> np.uint64(self._sharding.preshift_bits) & np.uint64(2**self._sharding.minishard_bits - 1)
        shard_index = np.zeros((2**self._sharding.minishard_bits, 2), "<u8")
        indices, end = [], self._size
        for number in np.unique(numbers).tolist():
            one = numbers == number
            # Differences of ids, gaps before chunks, sizes.
            index = np.zeros((3, np.count_nonzero(one)), "<u8")
            index[0] = np.diff(ids[one], prepend=np.uint64(0))
            index[1, 0] = starts[one][0]
            index[2] = sizes[one]
            content = index.tobytes()
            if self._sharding.minishard_index_encoding == "gzip":
                content = compress(content, "gzip")
            indices.append(content)
            shard_index[number] = end, end + len(content)
            end += len(content)
        return shard_index.tobytes(), indices

    def _chunks(self, codes: list[int]) -> Iterator[bytes]:
        piece, size = list[bytes](), 0
        for code in codes:
            start, length = self._places[code]
            self._waiting.seek(start)
            piece.append(self._waiting.read(length))
            size += length
            if size >= COPIED_AT_ONCE:
                yield b"".join(piece)
                piece, size = [], 0
        yield b"".join(piece)
