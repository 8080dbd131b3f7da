"""Read boxes of voxels from a volume that is stored in chunks, whatever its format.

A format says where its chunks are and how they decode (`StoredVolume`, whose abstract methods are the protocol of a
source); this module selects them, keeps them in the cache, fetches those again that do not decode, counts what does not
exist, and joins the voxels.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, cast, runtime_checkable

import numpy as np

from imagery_dask import kernels
from imagery_dask.annotations import Array, JsonObject
from imagery_dask.errors import CorruptChunkError, MissingChunkError, SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.layer import Layer
from imagery_dask.sources.files.failures import brief, pause_s
from imagery_dask.sources.requests.counts import ReadCounts, counting_into
from imagery_dask.sources.requests.transport import Blob
from imagery_dask.sources.volumes.chunk_cache import ChunkCache
from imagery_dask.sources.volumes.chunk_grid import Chunk, Region, crossed
from imagery_dask.sources.volumes.encoded_block import Block, EncodedBlock

__all__ = [
    "CheckedChunk", "Fetched", "Layout", "Missing", "NotKept", "Relabel", "StoredVolume", "UnstoredCheck",
    "UnstoredChunk",
]  # fmt: skip

Missing = Literal["fill", "error"]
Layout = Literal["F", "C"]
# Returns the new ids of distinct, ascending ids; 0 (missing or background) must stay 0.
Relabel = Callable[[Array], Array]


@runtime_checkable
class RelabelChunks(Protocol):
    """A `Relabel` that also takes the voxels of one chunk after another, without their distinct ids."""

    def __call__(self, ids: Array, /) -> Array:
        """Return the new ids of distinct, ascending ids."""

    def replaced(self, ids: Array, chunk: Hashable, cache: ChunkCache | None) -> Array:
        """Return the new ids of voxels of a chunk, in their shape; the cache may keep what other voxels need."""


# A chunk that does not decode is fetched this often, in case it was damaged in transit or read while being written.
DECODE_ATTEMPTS = 3
ALL: Region = (slice(None), slice(None), slice(None), slice(None))
REFUSED_OR_ABSENT = "is absent or refused: the server answers HTTP 403 in both cases and does not say which"
LET_LIST = ", or have listing of the bucket allowed, which lets the two be told apart"


class NotKept(Exception):  # noqa: N818
    """A chunk is not in the cache, of a read that takes chunks from there only."""


# A storage chunk as stored, and its voxels; None if it does not exist.
Fetched = tuple[Chunk, Blob | None]
Decoded = tuple[Chunk, Array | None]


@dataclass(frozen=True, slots=True)
class _Reading:
    """A box that is being read."""

    mip: int
    box: VoxelGrid
    missing: Missing
    cache: ChunkCache | None = None
    kept_only: bool = False
    counts: ReadCounts = field(default_factory=ReadCounts)
    #: Chunks that do not exist because the format need not store them, and whether their file exists.
    unstored: list[tuple[Chunk, bool]] = field(default_factory=list)


Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class CheckedChunk:
    """A storage chunk that exists, and was decoded only to see whether it can be.

    Parameters
    ----------
    key : str
        Its name; that of its file, where it has one of its own.
    start, stop : tuple of 3 int
        Its voxels, absolute.
    damage : str
        Why it does not decode; "" if it does.
    is_uniform : bool
        Whether all its voxels are equal.
    """

    key: str
    start: Vec3[int]
    stop: Vec3[int]
    damage: str = ""
    is_uniform: bool = False


@dataclass(frozen=True, slots=True)
class UnstoredChunk:
    """A storage chunk that does not exist because the format need not store it.

    Parameters
    ----------
    key : str
        Where it would be.
    box : VoxelGrid
        Its voxels, absolute.
    absent : VoxelGrid
        The voxels of its file, if that does not exist; otherwise those of the chunk.
    """

    key: str
    box: VoxelGrid
    absent: VoxelGrid


# Raises where chunks that need not be stored ought to be.
UnstoredCheck = Callable[[Sequence[UnstoredChunk]], None]


class StoredVolume(ABC):
    """An open layer, shared by all threads of a process. Abstract methods are what its format adds.

    Parameters
    ----------
    path : str
        Where it is, in the form of `normalize_path`.

    Attributes
    ----------
    layer : Layer
        What the metadata says.
    modified : str or None
        When the metadata was modified, if it was read over HTTP and the server says so.
    data_path : str
        Cloud path of the folder with the files of the volume.
    metadata_name : str
        Name of the file in that folder that has the metadata.
    """

    layer: Layer
    modified: str | None = None
    data_path: str
    metadata_name: str

    def __init__(self, path: str) -> None:
        self.path = path
        self._kept_as: Hashable = object()  # part of the keys of chunks in the cache
        self._lock = threading.Lock()
        self._largest: list[int] = []  # bytes that no stored chunk of a mip exceeds

    # ------------------------------------------------------------------ what a format adds

    @abstractmethod
    def is_current(self) -> bool:
        """Read the volume's metadata again, and return True if it has not changed."""

    @abstractmethod
    def data_has_metadata(self) -> bool:
        """Return True if the folder with the chunks has its metadata now."""

    @abstractmethod
    def described(self, levels: Collection[int]) -> JsonObject:
        """Return what the metadata says of some mips, which differs once they are stored in another way."""

    @abstractmethod
    def _stored(self, mip: int, chunks: Collection[Chunk]) -> Generator[Fetched, None, None]:
        """Yield chunks as stored, in any order; None for one that does not exist, `LEFT_OUT` if its file does.

        Requests for chunks name a file `beside`, so that servers that refuse what does not exist are understood.
        """

    @abstractmethod
    def _stored_again(self, mip: int, chunk: Chunk) -> Blob | None:
        """Fetch a chunk that did not decode, bypassing caches."""

    @abstractmethod
    def _decode(self, mip: int, chunk: Chunk, blob: Blob) -> Array:
        """Return the voxels of a chunk (x, y, z, channel); raise any error if they are damaged."""

    @abstractmethod
    def _key(self, mip: int, chunk: Chunk) -> str:
        """Return the name of a chunk, which reports give: of its file, where it has one of its own."""

    @abstractmethod
    def _stamp(self, mip: int, chunk: Chunk) -> tuple[object, ...] | None:
        """Return what differs once a chunk is written again; None if that would not be noticed."""

    def _damage(self, mip: int, chunk: Chunk, content: bytes) -> str | None:
        """Return the damage that is seen in a chunk without decoding it: "" if none, None if decoding has to tell."""
        del mip, chunk, content
        return None

    def _encoded(self, mip: int, chunk: Chunk, blob: Blob) -> Block:
        """Return a chunk as it is stored, or its voxels; raise any error if it is damaged as far as that is seen."""
        content = bytes(blob.decompressed(self._largest[mip]))
        damage = self._damage(mip, chunk, content)
        if damage:
            raise ValueError(damage)
        if damage is None:
            voxels = self._decode(mip, chunk, Blob(content))
            return EncodedBlock(content, chunk.shape, self.layer.dtype, lambda: voxels)

        def decoded() -> Array:
            with self._naming(mip, chunk):
                return self._decode(mip, chunk, Blob(content))

        return EncodedBlock(content, chunk.shape, self.layer.dtype, decoded)

    def _absent(self, mip: int) -> int | float | None:
        """Return the voxels of a chunk that the format need not store; None if it stores all of them."""
        del mip
        return None

    def file_shape(self, mip: int) -> Vec3[int]:
        """Return the voxels of a file of a mip along x, y, z: of a chunk, or of what a shard holds together."""
        return self.layer.mips[mip].chunk_shape

    def _file_box(self, mip: int, chunk: VoxelGrid) -> VoxelGrid:
        """Return the voxels of the volume that are in the file of a chunk, which has the given ones."""
        del mip
        return chunk

    def _relabel_stored(self, mip: int, fetched: list[Fetched], relabel: Relabel) -> list[Fetched] | None:
        """Replace the ids of encoded chunks; return None if that is not possible for all of them."""
        del mip, fetched, relabel
        return None

    def segment_properties(self) -> tuple[str, bytes] | None:
        """Return the folder and content of the volume's segment properties, or None."""
        return None

    def layers_within(self) -> dict[str, bool]:
        """Return the paths of other layers in the folder of the volume, and whether they are segmentations."""
        return {}

    def at(self, moment: int | None) -> StoredVolume:
        """Return the volume as it was at a moment, if it keeps earlier states; otherwise itself."""
        del moment
        return self

    def changed_chunks(self, mip: int, box: VoxelGrid, first: int, second: int) -> list[VoxelGrid]:
        """Return the storage chunks that a box crosses whose voxels may differ between two moments."""
        del mip, box, first, second
        return []

    # ------------------------------------------------------------------ reading

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
        unstored: UnstoredCheck | None = None,
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
            not decode and is fetched again. With a cache or `out`, a `RelabelChunks` takes each chunk as it arrives.
        cache : ChunkCache, optional
            Takes and keeps decoded chunks.
        kept_only : bool
            Fetch no chunk.
        out : numpy.ndarray, shape (x, y, z, channel), optional
            Takes the voxels, in its memory order, where `relabel` is not given or is a `RelabelChunks`.
        unstored : callable, optional
            Called with the chunks that do not exist because the format need not store them, if there are any.

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
            voxels = self._read(reading, layout, relabel, out)
        if unstored is not None and reading.unstored:
            unstored([self._unstored(mip, chunk, has_file) for chunk, has_file in reading.unstored])
        return voxels, reading.counts

    def _unstored(self, mip: int, chunk: Chunk, has_file: bool) -> UnstoredChunk:
        box = VoxelGrid.between(chunk.start, chunk.stop, self.layer.mips[mip].grid.resolution_nm)
        absent = box if has_file else self._file_box(mip, box)
        return UnstoredChunk(f"{self.data_path}/{self._key(mip, chunk)}", box, absent)

    def _read(self, reading: _Reading, layout: Layout, relabel: Relabel | None, out: Array | None = None) -> Array:
        of_chunks = None
        if isinstance(relabel, RelabelChunks) and (reading.cache is not None or out is not None):
            of_chunks, relabel = relabel, None
        if reading.kept_only:
            voxels = self._assemble(reading, self._kept(reading), layout, of_chunks=of_chunks)
        elif relabel is None or reading.cache is not None:  # which keeps stored ids
            with closing(self._chunks(reading)) as chunks:  # so that no other thread waits for them after an error
                voxels = self._assemble(reading, chunks, layout, out=out, of_chunks=of_chunks)
        else:
            fetched = list(self._fetch(reading, self._crossed(reading)))
            relabelled = self._relabel_stored(reading.mip, fetched, relabel)
            if relabelled is not None:
                # A chunk that is fetched again has its stored ids, so that all chunks are relabelled below.
                with suppress(CorruptChunkError):
                    return self._assemble(reading, _decoded(reading, relabelled, self._decode_named), layout)
            voxels = self._assemble(reading, _decoded(reading, fetched, self._healed), layout)
        return voxels if relabel is None else kernels.replace_ids(voxels, relabel)

    def read_parts(
        self, mip: int, boxes: Sequence[VoxelGrid], missing: Missing, counts: ReadCounts, encoded: bool = False
    ) -> Generator[Block, None, None]:
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
        encoded : bool
            Yield boxes that are one storage chunk as they are stored.

        Yields
        ------
        numpy.ndarray, shape (x, y, z, channel), or EncodedBlock
            In Fortran order; a box that is a stored chunk may be read-only.
        """
        readings = [_Reading(mip, box, missing, counts=counts) for box in boxes]
        of_boxes = [self._crossed(reading) for reading in readings]
        last = {chunk.cell: number for number, chunks in enumerate(of_boxes) for chunk in chunks}
        chunks = {chunk.cell: chunk for chunks in of_boxes for chunk in chunks}
        held: dict[Hashable, Block | None] = {}
        whole = {
            of_box[0].cell
            for reading, of_box in zip(readings if encoded else (), of_boxes, strict=False)
            if len(of_box) == 1 and (*reading.box.shape, self.layer.channels) == of_box[0].shape
        }

        def as_wanted(reading: _Reading, chunk: Chunk, blob: Blob) -> Block | None:
            return (self._healed_encoded if chunk.cell in whole else self._healed)(reading, chunk, blob)

        fetched = self._fetch(readings[0], list(chunks.values()))
        with closing(_decoded(readings[0], fetched, as_wanted)) as arriving:
            for number, (reading, of_box) in enumerate(zip(readings, of_boxes, strict=True)):
                while not all(chunk.cell in held for chunk in of_box):
                    chunk, voxels = next(arriving)
                    held[chunk.cell] = voxels
                done = [cell for chunk in of_box if last[cell := chunk.cell] == number]
                block = held[of_box[0].cell] if of_box else None
                if not isinstance(block, EncodedBlock):
                    decoded = [(chunk, held[chunk.cell]) for chunk in of_box]
                    block = self._assemble(reading, cast(list[Decoded], decoded), "F", writeable=False)
                for cell in done:
                    del held[cell]
                yield block

    def check(self, mip: int, box: VoxelGrid, counts: ReadCounts) -> Iterator[CheckedChunk]:
        """Decode the storage chunks that a box crosses, one after another; voxels are not joined, and none are kept.

        Damaged chunks are fetched again together, when the others are done: a box of a thousand of them has two pauses.

        Parameters
        ----------
        mip : int
            Level to read.
        box : VoxelGrid
            Voxels of that level, absolute.
        counts : ReadCounts
            What is read, missing and not stored is added.

        Yields
        ------
        CheckedChunk
            Chunks that exist, those last that are damaged.

        Raises
        ------
        AccessRefusedError, SourceError
            If the storage refuses access, or fails after retries.
        """
        reading = _Reading(mip, box, "fill", counts=counts)
        left: list[tuple[Chunk, str, str]] = []  # with what the transport says of a chunk, and why it does not decode
        for chunk, blob in self._fetch(reading, self._crossed(reading)):
            if blob is not None:
                yield from self._checked(reading, chunk, blob, left)
        for attempt in range(DECODE_ATTEMPTS - 1):
            if not left:
                return
            time.sleep(pause_s(attempt))
            before, left = left, []
            for chunk, told, reason in before:
                if told and any(told == now for _, now, _ in left):  # the same index, which is read once for all chunks
                    left.append((chunk, told, reason))
                    continue
                again = self._counted(reading, chunk, self._stored_again(mip, chunk))
                if again is not None:
                    yield from self._checked(reading, chunk, again, left)
        for chunk, _, reason in left:
            yield CheckedChunk(self._key(mip, chunk), chunk.start, chunk.stop, reason)

    def _checked(
        self, reading: _Reading, chunk: Chunk, blob: Blob, failed: list[tuple[Chunk, str, str]]
    ) -> Iterator[CheckedChunk]:
        """Yield a chunk that decodes; append one that does not to `failed`."""
        try:
            voxels = self._decode_named(reading, chunk, blob)
        except CorruptChunkError as error:
            failed.append((chunk, blob.damage, brief(error.__cause__)))
            return
        is_uniform = bool((voxels == voxels[:1, :1, :1, :1]).all())
        yield CheckedChunk(self._key(reading.mip, chunk), chunk.start, chunk.stop, is_uniform=is_uniform)

    def _crossed(self, reading: _Reading) -> list[Chunk]:
        return list(crossed(reading.box, self.layer.mips[reading.mip], self.layer.channels))

    def _chunks(self, reading: _Reading) -> Generator[Decoded, None, None]:
        """Yield the voxels of the storage chunks that a box crosses, from and into the cache if there is one.

        Chunks that another thread is reading are waited for, after the own ones: no thread waits for a chunk while
        others wait for one of its own.
        """
        chunks, cache = self._crossed(reading), reading.cache
        if cache is None:
            yield from self._decoded_of(reading, chunks)
            return
        own: dict[Chunk, Hashable] = {}
        others: list[tuple[Chunk, Hashable, threading.Event]] = []
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
        absent: dict[Chunk, Hashable] = {}
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

    def _fetch_into(self, cache: ChunkCache, reading: _Reading, keys: Mapping[Chunk, Hashable]) -> Iterator[Decoded]:
        """Yield chunks that are fetched, and keep them in the cache."""
        for chunk, voxels in self._decoded_of(reading, keys):
            key = keys[chunk]
            if voxels is not None and key is not None:
                cache.put(key, voxels)
            cache.release(key)
            yield chunk, voxels

    def _decoded_of(self, reading: _Reading, chunks: Collection[Chunk]) -> Generator[Decoded, None, None]:
        """Yield chunks that are fetched."""
        yield from _decoded(reading, self._fetch(reading, chunks), self._healed)

    def _cache_key(self, mip: int, chunk: Chunk) -> Hashable:
        """Return under what a chunk is kept; None if it would not be noticed that it changes."""
        stamp = self._stamp(mip, chunk)
        return None if stamp is None else (self._kept_as, mip, *chunk.cell, stamp)

    def _fetch(self, reading: _Reading, chunks: Collection[Chunk]) -> Iterator[Fetched]:
        """Yield storage chunks in order of arrival; None for a missing chunk."""
        with closing(self._stored(reading.mip, chunks)) as stored:
            for chunk, blob in stored:
                reading.counts.chunks += 1
                yield chunk, self._counted(reading, chunk, blob)

    def _counted(self, reading: _Reading, chunk: Chunk, blob: Blob | None) -> Blob | None:
        """Count a chunk's bytes and return it, or count it as missing and return None."""
        has_file = blob is not None and blob.left_out
        if has_file:
            blob = None
        if blob is not None and not blob.refused_or_absent:
            reading.counts.stored_bytes += len(blob.content)
            return blob
        if self._absent(reading.mip) is not None:
            reading.unstored.append((chunk, has_file))
            if blob is None:
                reading.counts.not_stored += 1
                return None
        key = self._key(reading.mip, chunk)
        if reading.missing == "error":
            what, remedy = ("does not exist", "") if blob is None else (REFUSED_OR_ABSENT, LET_LIST)
            raise MissingChunkError(
                f"Storage chunk {key} of {self.path} {what}, and missing='error' was given. "
                f"Pass missing='fill' to fill its voxels with 0 and count it{remedy}."
            )
        reading.counts.miss(key, refused_or_absent=blob is not None)
        return None

    def _assemble(
        self,
        reading: _Reading,
        chunks: Iterable[Decoded],
        layout: Layout,
        writeable: bool = True,
        out: Array | None = None,
        of_chunks: RelabelChunks | None = None,
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
                out[chunk.there] = self._absent(reading.mip) or 0
                continue
            if of_chunks is not None:
                key = (self.path, reading.mip, chunk.cell)
                _paste(out, chunk.there, of_chunks.replaced(voxels[chunk.here], key, reading.cache), ALL)
                continue
            is_the_box = voxels.shape == out.shape and not chunk.is_cut and not is_given
            if is_the_box and layout == "F" and voxels.flags.f_contiguous and voxels.flags.writeable >= writeable:
                return voxels
            _paste(out, chunk.there, voxels, chunk.here)
        return out

    def _healed(self, reading: _Reading, chunk: Chunk, blob: Blob) -> Array | None:
        """Decode a chunk, fetching it again if it does not decode; return None if it no longer exists by then."""
        return self._made(reading, chunk, blob, self._decode_named)

    def _healed_encoded(self, reading: _Reading, chunk: Chunk, blob: Blob) -> Block | None:
        """Return what `_encoded` does, fetching a chunk again if it is seen to be damaged; as `_healed`."""
        return self._made(reading, chunk, blob, self._encoded_named)

    def _made(
        self, reading: _Reading, chunk: Chunk, blob: Blob, make: Callable[[_Reading, Chunk, Blob], Made]
    ) -> Made | None:
        latest: Blob | None = blob
        for attempt in itertools.count(1):
            if latest is None:
                return None
            try:
                return make(reading, chunk, latest)
            except CorruptChunkError as error:
                if attempt == DECODE_ATTEMPTS:
                    raise CorruptChunkError(f"{error} (fetched {attempt} times)") from error.__cause__
            time.sleep(pause_s(attempt - 1))
            latest = self._counted(reading, chunk, self._stored_again(reading.mip, chunk))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _decode_named(self, reading: _Reading, chunk: Chunk, blob: Blob) -> Array:
        with self._naming(reading.mip, chunk):
            return self._decode(reading.mip, chunk, blob)

    def _encoded_named(self, reading: _Reading, chunk: Chunk, blob: Blob) -> Block:
        with self._naming(reading.mip, chunk):
            return self._encoded(reading.mip, chunk, blob)

    @contextmanager
    def _naming(self, mip: int, chunk: Chunk) -> Iterator[None]:
        """Name the chunk in errors of decoders."""
        try:
            yield
        except SourceError:  # the decoder cannot be started, which is no fault of the chunk
            raise
        except Exception as error:  # of any decoder
            encoding = self.layer.mips[mip].encoding
            raise CorruptChunkError(
                f"Storage chunk {self._key(mip, chunk)} of {self.path} does not decode as {encoding} "
                f"{chunk.shape} {self.layer.dtype}: {type(error).__name__}: {error}"
            ) from error


def _decoded(
    reading: _Reading, fetched: Iterable[Fetched], decode: Callable[[_Reading, Chunk, Blob], Made]
) -> Generator[tuple[Chunk, Made | None], None, None]:
    try:
        for chunk, blob in fetched:
            yield chunk, None if blob is None else decode(reading, chunk, blob)
    finally:
        if isinstance(fetched, Generator):  # which has requests in flight
            fetched.close()


def _paste(out: Array, there: Region, voxels: Array, here: Region) -> None:
    """Copy voxels of a chunk to their position in the array of a box."""
    target, part = out[there], voxels[here]
    if out.flags.c_contiguous and voxels.flags.f_contiguous:
        kernels.copy_in_tiles(target, part)
    else:
        target[...] = part
