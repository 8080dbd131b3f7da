"""Read boxes of voxels from precomputed volumes.

This module selects and fetches the chunks, handles missing and refused ones, and joins the voxels:
``CloudVolume.download`` does not report which chunks were missing, and treats a refused request as a missing chunk.
"""

from __future__ import annotations

import itertools
import json
import posixpath
import threading
import time
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from imagery_dask import kernels
from imagery_dask.annotations import Array, JsonObject
from imagery_dask.errors import CorruptChunkError, InvalidInfoError, MissingChunkError, SourceError, SourceNotFoundError
from imagery_dask.geometry.grid import XYZ, Region, VoxelGrid, bounds_key, region_between
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.chunkedgraph import GRAPHENE, ChunkedGraph
from imagery_dask.model.layer import Layer, Mip
from imagery_dask.model.volume_info import check_info
from imagery_dask.sources.addresses import named_by_info
from imagery_dask.sources.chunk_cache import ChunkCache
from imagery_dask.sources.codecs import SEGMENTATION_BLOCK, decode, missing_package
from imagery_dask.sources.counts import ReadCounts, counting_into
from imagery_dask.sources.failures import brief, pause_s
from imagery_dask.sources.graph_server import read_graph_info
from imagery_dask.sources.label_tables import LabelTables
from imagery_dask.sources.transport import Blob, Request, Transport
from imagery_dask.urls import resolved_name, server_of, without_secrets

if TYPE_CHECKING:
    from imagery_dask.sources.shards import ShardedChunks

__all__ = ["Layout", "Missing", "NotKept", "PrecomputedVolume", "Relabel"]

Missing = Literal["fill", "error"]
Layout = Literal["F", "C"]
# Returns the new ids of distinct, ascending ids; 0 (missing or background) must stay 0.
Relabel = Callable[[Array], Array]
REDIRECTS = 10
LARGEST_INFO = 2**26
GRAPH_PATH = "/table/"
LARGEST_PROPERTIES = 2**30
# Bytes of an encoded chunk, for each byte of its voxels and in addition. In compressed_segmentation with blocks of one
# voxel, a label of 4 bytes takes 12; compression of incompressible data adds a little.
ENCODED_AT_MOST = 4
HEADERS_AT_MOST = 2**17
# A chunk that does not decode is fetched this often, in case it was damaged in transit or read while being written.
DECODE_ATTEMPTS = 3


class NotKept(Exception):  # noqa: N818
    """A chunk is not in the cache, of a read that takes chunks from there only."""


class _Span(NamedTuple):
    """A storage chunk along an axis: its position in the grid of chunks, and its voxels, absolute."""

    cell: int
    start: int
    stop: int
    #: Those of its voxels that are in a box, in the array of the box and in that of the chunk.
    there: slice
    here: slice


@dataclass(eq=False, slots=True)
class _Chunk:
    """A storage chunk that a box crosses."""

    # In plain numbers: a cached plane of 64 chunks takes as long as making them.
    x: _Span
    y: _Span
    z: _Span

    @property
    def cell(self) -> Vec3[int]:
        return Vec3(self.x.cell, self.y.cell, self.z.cell)

    @property
    def start(self) -> Vec3[int]:
        return Vec3(self.x.start, self.y.start, self.z.start)

    @property
    def stop(self) -> Vec3[int]:
        return Vec3(self.x.stop, self.y.stop, self.z.stop)

    @property
    def shape(self) -> Vec3[int]:
        return self.stop - self.start

    @property
    def there(self) -> Region:
        return self.x.there, self.y.there, self.z.there

    @property
    def here(self) -> Region:
        return self.x.here, self.y.here, self.z.here

    @property
    def is_cut(self) -> bool:
        """Whether some of its voxels are not in the box."""
        return self.here != region_between((0, 0, 0), self.shape)


# A storage chunk as stored, and its voxels; None if it does not exist.
Fetched = tuple[_Chunk, Blob | None]
Decoded = tuple[_Chunk, Array | None]


@dataclass(frozen=True, slots=True)
class _Reading:
    """A box that is being read."""

    mip: int
    box: VoxelGrid
    missing: Missing
    cache: ChunkCache | None = None
    kept_only: bool = False
    counts: ReadCounts = field(default_factory=ReadCounts)


Decode = Callable[[_Reading, _Chunk, Blob], Array | None]


class PrecomputedVolume:
    """An open layer, shared by all threads of a process.

    Parameters
    ----------
    path : str
        CloudVolume path of a precomputed layer, or of a dynamic segmentation (``graphene://``), of which supervoxels
        are read.

    Raises
    ------
    SourceNotFoundError, AccessRefusedError, SourceError
        If the volume does not exist, access is refused, or it is not an image or segmentation.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        #: When the info was modified, if it was read over HTTP and the server says so.
        self.modified: str | None = None
        self._transport, self.info, graph = self._read_info()
        self.layer = Layer.from_info(path, self.info, graph)
        _check_decodable(self.layer)
        self._shards: dict[int, ShardedChunks] = {}
        self._kept_as = object()  # part of the keys of chunks in the cache
        self._largest = [_largest(self.layer, mip) for mip in self.layer.mips]
        self._lock = threading.Lock()

    @property
    def data_path(self) -> str:
        """Cloud path of the folder that holds the chunks."""
        return self._transport.cloudpath

    def data_has_info(self) -> bool:
        """Return True if the folder with the chunks has an info file now."""
        return self._transport.get(Request("info")) is not None

    def is_current(self) -> bool:
        """Read the volume's info again, and return True if it has not changed."""
        return self._read_info()[1] == self.info

    def _read_info(self) -> tuple[Transport, JsonObject, ChunkedGraph | None]:
        """Read and check the info from its graph server or its folder."""
        path = self.path
        if not path.startswith(GRAPHENE):
            transport, info, self.modified = _read_flat_info(path)
            return transport, check_info(path, info), None
        graph, info = read_graph_info(path)
        checked = check_info(path, info, is_graph=True)
        return Transport(named_by_info(path, "data_dir", info.get("data_dir"))), checked, graph

    def forget_chunks(self) -> None:
        """Read every chunk again that is in the cache."""
        self._kept_as = object()

    def read(
        self,
        mip: int,
        box: VoxelGrid,
        missing: Missing,
        layout: Layout = "F",
        relabel: Relabel | None = None,
        cache: ChunkCache | None = None,
        kept_only: bool = False,
        out: Array | None = None,
    ) -> tuple[Array, ReadCounts]:
        """Read a box of voxels.

        Parameters
        ----------
        mip : int
            Level to read.
        box : VoxelGrid
            Voxels of that level, absolute; parts outside the volume are 0.
        missing : {"fill", "error"}
            What a storage chunk that does not exist inside the volume becomes: zeros that are counted, or an error.
        layout : {"F", "C"}
            Memory order of the result. "F" is the order of decoded chunks and costs least.
        relabel : callable, optional
            Called with the distinct ids of the box; returns their replacements. Called a second time if a chunk does
            not decode and is fetched again.
        cache : ChunkCache, optional
            Takes and keeps decoded chunks.
        kept_only : bool
            Fetch no chunk.
        out : numpy.ndarray, shape (x, y, z, channel), optional
            Takes the voxels, in its memory order, where `relabel` is not given.

        Returns
        -------
        voxels : numpy.ndarray, shape (x, y, z, channel)
            In the layer's dtype.
        counts : ReadCounts
            Counts of what was read and what was missing.

        Raises
        ------
        MissingChunkError
            If a chunk does not exist and `missing` is "error"; the message names the first one.
        CorruptChunkError
            If a chunk does not decode after several attempts.
        AccessRefusedError, SourceError
            If the storage refuses access, or fails after retries.
        NotKept
            If a chunk is not in the cache, with `kept_only`.
        """
        reading = _Reading(mip, box, missing, cache, kept_only)
        with counting_into(reading.counts):
            return self._read(reading, layout, relabel, out), reading.counts

    def _read(self, reading: _Reading, layout: Layout, relabel: Relabel | None, out: Array | None = None) -> Array:
        if reading.kept_only:
            voxels = self._assemble(reading, self._kept(reading), layout)
        elif relabel is None or reading.cache is not None:  # which keeps stored ids
            with closing(self._chunks(reading)) as chunks:  # so that no other thread waits for them after an error
                voxels = self._assemble(reading, chunks, layout, out=out)
        else:
            fetched = list(self._fetch(reading, list(self._crossed(reading))))
            relabelled = self._relabel_stored(reading, fetched, relabel)
            if relabelled is not None:
                # A chunk that is fetched again has its stored ids, so that all chunks are relabelled below.
                with suppress(CorruptChunkError):
                    return self._assemble(reading, _decoded(reading, relabelled, self._decode), layout)
            voxels = self._assemble(reading, _decoded(reading, fetched, self._healed), layout)
        if relabel is None:
            return voxels
        ids = kernels.unique_ids(voxels)
        return kernels.remap(voxels, ids, relabel(ids))

    def read_parts(
        self, mip: int, boxes: Sequence[VoxelGrid], missing: Missing, counts: ReadCounts
    ) -> Generator[Array, None, None]:
        """Yield the voxels of boxes, one after another; chunks of several boxes are fetched and decoded once.

        Chunks are fetched in the order of the boxes, ahead of them, and are held until the last box that crosses them.

        Parameters
        ----------
        mip, missing
            As of `read`.
        boxes : sequence of VoxelGrid
            Voxels of that level, absolute.
        counts : ReadCounts
            What is read and missing is added; requests are counted where `active_counts` says.

        Yields
        ------
        numpy.ndarray, shape (x, y, z, channel)
            In Fortran order; a box that is a stored chunk may be read-only.
        """
        readings = [_Reading(mip, box, missing, counts=counts) for box in boxes]
        crossed = [list(self._crossed(reading)) for reading in readings]
        last = {chunk.cell: number for number, chunks in enumerate(crossed) for chunk in chunks}
        chunks = {chunk.cell: chunk for chunks in crossed for chunk in chunks}
        held: dict[Vec3[int], Array | None] = {}
        with closing(self._decoded_of(readings[0], list(chunks.values()))) as arriving:
            for number, (reading, of_box) in enumerate(zip(readings, crossed, strict=True)):
                while not all(chunk.cell in held for chunk in of_box):
                    chunk, voxels = next(arriving)
                    held[chunk.cell] = voxels
                done = [cell for chunk in of_box if last[cell := chunk.cell] == number]
                block = self._assemble(reading, [(chunk, held[chunk.cell]) for chunk in of_box], "F", writeable=False)
                for cell in done:
                    del held[cell]
                yield block

    def segment_properties(self) -> tuple[str, bytes] | None:
        """Return the folder and content of the volume's segment properties, or None."""
        folder = resolved_name(str(self.info.get("segment_properties") or "").strip("/"))
        request = Request(f"{folder}/info", most=LARGEST_PROPERTIES)
        blob = self._transport.get(request) if folder else None
        return None if blob is None else (folder, bytes(blob.decompressed(LARGEST_PROPERTIES)))

    def _crossed(self, reading: _Reading) -> Iterator[_Chunk]:
        """Yield the storage chunks that a box crosses, x fastest."""
        box, level = reading.box, self.layer.mips[reading.mip]
        along = map(_spans, box.start, box.stop, level.grid.start, level.grid.stop, level.chunk_shape)
        return (_Chunk(x, y, z) for z, y, x in itertools.product(*reversed(list(along))))

    def _chunks(self, reading: _Reading) -> Generator[Decoded, None, None]:
        """Yield the voxels of the storage chunks that a box crosses, from and into the cache if there is one.

        Chunks that another thread is reading are waited for, after the own ones: no thread waits for a chunk while
        others wait for one of its own.
        """
        chunks, cache = self._crossed(reading), reading.cache
        if cache is None:
            yield from self._decoded_of(reading, list(chunks))
            return
        own: dict[_Chunk, Hashable] = {}
        others: list[tuple[_Chunk, Hashable, threading.Event]] = []
        try:
            for chunk in chunks:
                key = self._cache_key(reading.mip, chunk)
                voxels = None if key is None else cache.get(key)
                if voxels is not None:
                    reading.counts.chunks += 1
                    yield chunk, voxels
                elif key is not None and (event := cache.reserve(key)) is not None:
                    others.append((chunk, key, event))
                else:
                    own[chunk] = key
            yield from self._fetch_into(cache, reading, own)
        finally:
            for key in own.values():
                cache.release(key)
        absent: dict[_Chunk, Hashable] = {}
        for chunk, key, event in others:
            event.wait()
            voxels = cache.get(key)
            if voxels is None:  # missing, failed, or no longer kept
                absent[chunk] = key
            else:
                reading.counts.chunks += 1
                yield chunk, voxels
        yield from self._fetch_into(cache, reading, absent)

    def _kept(self, reading: _Reading) -> list[Decoded]:
        """Return the voxels of the storage chunks that a box crosses from the cache."""
        chunks, cache = self._crossed(reading), reading.cache
        kept: list[Decoded] = []
        for chunk in chunks:
            key = self._cache_key(reading.mip, chunk)
            voxels = None if cache is None or key is None else cache.get(key)
            if voxels is None:
                raise NotKept
            kept.append((chunk, voxels))
        reading.counts.chunks += len(kept)
        return kept

    def _fetch_into(self, cache: ChunkCache, reading: _Reading, keys: Mapping[_Chunk, Hashable]) -> Iterator[Decoded]:
        """Yield chunks that are fetched, and keep them in the cache."""
        for chunk, voxels in self._decoded_of(reading, keys):
            key = keys[chunk]
            if voxels is not None and key is not None:
                cache.put(key, voxels)
            cache.release(key)
            yield chunk, voxels

    def _decoded_of(self, reading: _Reading, chunks: Collection[_Chunk]) -> Generator[Decoded, None, None]:
        """Yield chunks that are fetched."""
        yield from _decoded(reading, self._fetch(reading, chunks), self._healed)

    def _cache_key(self, mip: int, chunk: _Chunk) -> Hashable:
        """Return under what a chunk is kept; None if it would not be noticed that its file changes."""
        stamp: tuple[object, ...] | None = ()
        if not self._transport.is_remote:
            stamp = None if self.layer.mips[mip].is_sharded else self._transport.stamp(self._key(mip, chunk))
        return None if stamp is None else (self._kept_as, mip, chunk.x.cell, chunk.y.cell, chunk.z.cell, stamp)

    def _fetch(self, reading: _Reading, chunks: Collection[_Chunk]) -> Iterator[Fetched]:
        """Yield storage chunks in order of arrival; None for a missing chunk."""
        with closing(self._stored(reading.mip, chunks)) as stored:
            for chunk, blob in stored:
                reading.counts.chunks += 1
                yield chunk, self._counted(reading, chunk, blob)

    def _counted(self, reading: _Reading, chunk: _Chunk, blob: Blob | None) -> Blob | None:
        """Count a chunk's bytes and return it, or count it as missing and return None."""
        if blob is not None:
            reading.counts.stored_bytes += len(blob.content)
            return blob
        key = self._key(reading.mip, chunk)
        if reading.missing == "error":
            raise MissingChunkError(
                f"Storage chunk {key} of {self.path} does not exist, and missing='error' was given. "
                "Pass missing='fill' to fill its voxels with 0 and count it."
            )
        reading.counts.missing += 1
        reading.counts.missing_keys.append(key)
        return None

    def _assemble(
        self,
        reading: _Reading,
        chunks: Iterable[Decoded],
        layout: Layout,
        writeable: bool = True,
        out: Array | None = None,
    ) -> Array:
        """Return the voxels of a box, joined from the chunks that it crosses; in `out`, if it is given."""
        box, is_given = reading.box, out is not None
        # Every voxel inside the volume is written below, by its chunk or by the 0 of a missing one.
        is_inside = box.intersection(self.layer.mips[reading.mip].grid) == box
        if out is None:
            make = np.empty if is_inside else np.zeros
            out = make((*box.shape, self.layer.channels), dtype=self.layer.dtype, order=layout)
        elif not is_inside:
            out[...] = 0
        for chunk, voxels in chunks:
            if voxels is None:
                out[chunk.there] = 0
                continue
            is_the_box = voxels.shape == out.shape and not chunk.is_cut and not is_given
            if is_the_box and layout == "F" and voxels.flags.f_contiguous and voxels.flags.writeable >= writeable:
                return voxels
            _paste(out, chunk.there, voxels, chunk.here)
        return out

    def _relabel_stored(self, reading: _Reading, fetched: list[Fetched], relabel: Relabel) -> list[Fetched] | None:
        """Replace the ids of encoded chunks; return None if that is not possible for all of them."""
        tables = [None if blob is None else self._label_tables(reading, chunk, blob) for chunk, blob in fetched]
        if any(table is None and blob is not None for table, (_, blob) in zip(tables, fetched, strict=True)):
            return None
        labels = [np.zeros(0, np.uint64) if table is None else table.labels() for table in tables]
        ids = kernels.unique_ids(np.concatenate([np.zeros(1, np.uint64), *labels]))
        new = relabel(ids)
        return [
            (chunk, None if table is None else Blob(table.replaced(kernels.remap(old, ids, new))))
            for (chunk, _), table, old in zip(fetched, tables, labels, strict=True)
        ]

    def _label_tables(self, reading: _Reading, chunk: _Chunk, blob: Blob) -> LabelTables | None:
        level = self.layer.mips[reading.mip]
        block_size = self._block_size(reading.mip)
        encoded = level.encoding == "compressed_segmentation" and self.layer.channels == 1
        # A chunk that the box cuts has labels outside the box, which need no lookup.
        if not encoded or self.layer.dtype != "uint64" or block_size is None or chunk.is_cut:
            return None
        try:
            content = bytes(blob.decompressed(self._largest[reading.mip]))
        except Exception:  # of any decoder; decoding the voxels raises it again with the name of the chunk
            return None
        return LabelTables.parse(content, chunk.shape, block_size)

    def _stored(self, mip: int, chunks: Collection[_Chunk]) -> Generator[Fetched, None, None]:
        if self.layer.mips[mip].is_sharded:
            by_cell = {chunk.cell: chunk for chunk in chunks}
            for cell, blob in self._sharded(mip).get_many(list(by_cell)):
                yield by_cell[cell], blob
            return
        by_key = {self._key(mip, chunk): chunk for chunk in chunks}
        for request, blob in self._transport.get_many([Request(key, most=self._largest[mip]) for key in by_key]):
            yield by_key[request.key], blob

    def _block_size(self, mip: int) -> XYZ | None:
        block_size = self.info["scales"][mip].get("compressed_segmentation_block_size")
        return None if block_size is None else tuple(block_size)

    def _sharded(self, mip: int) -> ShardedChunks:
        from imagery_dask.sources.shards import ShardedChunks

        with self._lock:
            if mip not in self._shards:
                level = self.layer.mips[mip]
                cells = level.grid.shape.ceil_div(level.chunk_shape)
                sharding = self.info["scales"][mip]["sharding"]
                self._shards[mip] = ShardedChunks(self._transport, level.key, sharding, cells, self._largest[mip])
            return self._shards[mip]

    def _key(self, mip: int, chunk: _Chunk) -> str:
        return posixpath.join(self.layer.mips[mip].key, bounds_key(chunk.start, chunk.stop))

    def _healed(self, reading: _Reading, chunk: _Chunk, blob: Blob) -> Array | None:
        """Decode a chunk, fetching it again if it does not decode; return None if it no longer exists by then."""
        latest: Blob | None = blob
        for attempt in itertools.count(1):
            if latest is None:
                return None
            try:
                return self._decode(reading, chunk, latest)
            except CorruptChunkError as error:
                if attempt == DECODE_ATTEMPTS:
                    raise CorruptChunkError(f"{error} (fetched {attempt} times)") from error.__cause__
            time.sleep(pause_s(attempt - 1))
            latest = self._counted(reading, chunk, self._fetch_again(reading.mip, chunk))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _fetch_again(self, mip: int, chunk: _Chunk) -> Blob | None:
        level = self.layer.mips[mip]
        if not level.is_sharded:
            return self._transport.get(Request(self._key(mip, chunk), fresh=True, most=self._largest[mip]))
        return self._sharded(mip).get_again(chunk.cell)

    def _decode(self, reading: _Reading, chunk: _Chunk, blob: Blob) -> Array:
        level = self.layer.mips[reading.mip]
        encoding, shape = level.encoding, (*chunk.shape, self.layer.channels)
        block_size = self._block_size(reading.mip) or SEGMENTATION_BLOCK
        try:
            return decode(blob.decompressed(self._largest[reading.mip]), encoding, shape, self.layer.dtype, block_size)
        except SourceError:  # the decoder cannot be started, which is no fault of the chunk
            raise
        except Exception as error:
            raise CorruptChunkError(
                f"Storage chunk {self._key(reading.mip, chunk)} of {self.path} does not decode as {encoding} {shape} "
                f"{self.layer.dtype}: {type(error).__name__}: {error}"
            ) from error


def _read_flat_info(path: str) -> tuple[Transport, object, str | None]:
    """Read a folder's info, following redirects as CloudVolume does, and when it was modified."""
    server = server_of(path)
    for _ in range(REDIRECTS):
        transport = Transport(path, login=server_of(path) == server)
        hint = _graph_hint(path)
        try:
            blob = transport.get(Request("info", most=LARGEST_INFO))
        except SourceError as error:
            if not hint:
                raise
            raise type(error)(f"{error}{hint}") from error.__cause__
        if blob is None:
            raise SourceNotFoundError(
                f"There is no precomputed volume at {path!r}: it has no info file. Check the path; it must be the "
                "folder that holds 'info', for example precomputed://gs://bucket/layer or file:///data/layer."
                f"{hint}"
            )
        try:
            info = json.loads(bytes(blob.decompressed(LARGEST_INFO)))
        except (ValueError, RecursionError) as error:
            raise InvalidInfoError(f"The info file of {path!r} is not JSON: {brief(error)}") from error
        target = info.get("redirect") if isinstance(info, dict) else None
        following = named_by_info(path, "redirect", target) if target and target != path else path
        if following == path:
            return transport, info, blob.modified
        path = following
    raise SourceError(f"The info of {path!r} redirects more than {REDIRECTS} times.")


def _graph_hint(path: str) -> str:
    """Return the right spelling of a path that looks like one of a graph server, which asks for a token."""
    url = path.removeprefix("precomputed://").removeprefix("middleauth+")
    looks_like_graph = url.startswith(("http://", "https://")) and GRAPH_PATH in url
    return f" A dynamic segmentation is given as {GRAPHENE}{without_secrets(url)}." if looks_like_graph else ""


def _check_decodable(layer: Layer) -> None:
    """Raise if this process lacks the decoder of a level."""
    for mip in layer.mips:
        package = None if mip.is_placeholder else missing_package(mip.encoding)
        if package is not None:
            raise InvalidInfoError(
                f"{layer.path!r} cannot be read: scales[{mip.level}].encoding of its info is {mip.encoding!r}, and "
                f"this process has no decoder for it. Install it, also for workers: pip install {package}"
            )


def _largest(layer: Layer, mip: Mip) -> int:
    """Return a size that no file of a chunk exceeds, compressed or not."""
    voxels = mip.chunk_shape.minimum(mip.grid.shape).prod() * layer.channels
    return ENCODED_AT_MOST * voxels * np.dtype(layer.dtype).itemsize + HEADERS_AT_MOST


def _spans(box_start: int, box_stop: int, start: int, stop: int, size: int) -> list[_Span]:
    """Return the storage chunks that a box crosses along an axis of a volume, which cuts the last chunk."""
    low, high = max(box_start, start), min(box_stop, stop)
    spans = []
    for cell in range((low - start) // size, (high - 1 - start) // size + 1) if low < high else ():
        first, after = start + cell * size, min(start + (cell + 1) * size, stop)
        own, end = max(first, low), min(after, high)
        spans.append(
            _Span(cell, first, after, slice(own - box_start, end - box_start), slice(own - first, end - first))
        )
    return spans


def _decoded(reading: _Reading, fetched: Iterable[Fetched], decode: Decode) -> Iterator[Decoded]:
    try:
        for chunk, blob in fetched:
            yield chunk, None if blob is None else decode(reading, chunk, blob)
    finally:
        if isinstance(fetched, Generator):  # which has requests in flight
            fetched.close()


def _paste(out: Array, there: Region, voxels: Array, here: Region) -> None:
    """Copy voxels of a chunk to their position in the array of a box."""
    target, part = out[there], voxels[here]
    if out.flags.c_contiguous:  # decoded chunks are in Fortran order
        kernels.copy_in_tiles(target, part)
    else:
        target[...] = part
