"""Finding storage chunks inside shard files.

CloudVolume reads the shard and minishard indices again for every download: most requests of a blockwise read would
be for them. Here they are kept for as long as the volume is open. The format is Neuroglancer's
``neuroglancer_uint64_sharded_v1``; hashing and decoding are CloudVolume's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cloudvolume.datasource.precomputed.common import compressed_morton_code
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, ShardReader

from imagery_dask.grid import XYZ
from imagery_dask.sources.transport import Blob, Request, Transport

__all__ = ["ShardedChunks"]

SHARD_INDICES_KEPT = 4096
MINISHARD_INDICES_KEPT = 16384
# Neighbouring byte ranges are read in one request, up to this size, so that a large block still streams.
LARGEST_REQUEST = 16 * 2**20


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where one storage chunk lies in a shard file."""

    cell: XYZ
    start: int
    stop: int


class _IndexFetcher:
    """The one method of CloudVolume's cache service that its shard reader needs to read indices."""

    enabled = False

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def download_as(
        self, requests: Sequence[dict[str, Any]], progress: object = None
    ) -> dict[tuple[str, int, int], bytes | None]:
        del progress
        wanted = [Request(r["path"], int(r["start"]), int(r["end"])) for r in requests]
        found = {}
        for request, blob in self._transport.get_many(wanted):
            content = None if blob is None else blob.decompressed()
            found[(request.key, request.start or 0, request.stop or 0)] = content
        return found


class ShardedChunks:
    """Storage chunks of one sharded mip.

    Parameters
    ----------
    transport : Transport
        Where the volume's files are read.
    key : str
        Folder of the mip.
    sharding : dict
        The ``sharding`` entry of the mip's scale.
    cells : tuple of 3 int
        Number of storage chunks along x, y, z.
    """

    def __init__(self, transport: Transport, key: str, sharding: dict[str, Any], cells: XYZ) -> None:
        self._transport = transport
        self._key = key
        self._spec = ShardingSpecification.from_dict(sharding)
        self._cells = cells
        self._index = ShardReader(
            transport.cloudpath,
            _IndexFetcher(transport),
            self._spec,
            SHARD_INDICES_KEPT,
            MINISHARD_INDICES_KEPT,
        )
        # CloudVolume's index caches are linked lists without a lock.
        self._lock = threading.Lock()

    def get_many(self, cells: Sequence[XYZ]) -> Iterator[tuple[XYZ, Blob | None]]:
        """Bytes of each storage chunk, named by its position in the grid of chunks; None where there is none."""
        pieces, missing = self._locate(cells)
        for cell in missing:
            yield cell, None
        runs = [(path, run) for path, found in pieces.items() for run in _runs(found)]
        requests = [Request(path, run[0].start, run[-1].stop) for path, run in runs]
        for (_, run), (request, blob) in zip(runs, self._transport.get_many(requests), strict=True):
            for piece in run:
                if blob is None:
                    yield piece.cell, None
                    continue
                offset = piece.start - (request.start or 0)
                content = blob.content[offset : offset + piece.stop - piece.start]
                yield piece.cell, Blob(content, self._data_encoding)

    @property
    def _data_encoding(self) -> str | None:
        return None if self._spec.data_encoding == "raw" else str(self._spec.data_encoding)

    def _locate(self, cells: Sequence[XYZ]) -> tuple[dict[str, list[_Piece]], list[XYZ]]:
        codes = [int(code) for code in compressed_morton_code(list(cells), self._cells)]
        by_code = dict(zip(codes, cells, strict=True))
        with self._lock:
            places = self._index.exists(codes, self._key, return_byte_range=True, progress=False)
        pieces: dict[str, list[_Piece]] = {}
        missing: list[XYZ] = []
        for code, cell in by_code.items():
            place = places.get(code)
            if place is None:
                missing.append(cell)
            else:
                path, start, length = place
                pieces.setdefault(path, []).append(_Piece(cell, start, start + length))
        return pieces, missing


def _runs(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Group pieces that follow one another in the file."""
    run: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if run and (piece.start != run[-1].stop or piece.stop - run[0].start > LARGEST_REQUEST):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run
