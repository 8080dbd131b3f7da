"""Write blocks of whole chunks and shards into zarr arrays, so that a reader never sees a partial chunk.

A block is given part by part; each part is whole chunks. On a local disk, files are written into a folder of the block
beside the chunks, and each is moved into place when all are complete::

    store.zarr/0/zarr.json
    store.zarr/0/c/4/0/7                        <- os.replace
    store.zarr/0/.partial-RUN-BLOCK/7

Readers ask for chunks by name and never see such a folder; `remove_partial` removes the folders of killed processes.
In a bucket, PUT makes a whole object appear.

The hash of a block's files is that of their hashes, in the order of their places; one that does not exist counts as
empty.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, cast
from uuid import uuid4

import numpy as np
import zarr
from xxhash import xxh3_128
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from imagery_dask.annotations import Array
from imagery_dask.export.zarr.encoded_chunks import ChunkEncoder, UnitFile
from imagery_dask.geometry.grid import Region, parts_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.kernels import digest_of, digest_of_bytes, join_digests
from imagery_dask.run import tasks_at_once
from imagery_dask.sources.volumes.encoded_block import Block, EncodedBlock, voxels_of
from imagery_dask.storage.atomic_files import check_wanted, move_durably, write_soon
from imagery_dask.storage.buckets import clear_errors, parse_bucket_url
from imagery_dask.storage.store_files import is_partial
from imagery_dask.storage.zarr_stores import open_store

__all__ = ["BlockArray", "ZarrLevel", "open_array", "remove_partial"]

PIPELINE = "zarrs.ZarrsCodecPipeline"
OWN_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
PARTIAL = ".partial-"
PUTS_IN_FLIGHT = 8
GETS_IN_FLIGHT = 8

# zarr's settings belong to the process: if two threads set and restore them, those of one may stay.
_settings = threading.Lock()


Parts = Iterable[tuple[Sequence[slice], Block]]
Box = tuple[slice, ...]
Position = tuple[int, ...]


class _Target(Protocol):
    """Where the units of a block go."""

    def open(self) -> BinaryIO:
        """Return a file for a unit."""
        ...

    def put(self, key: str, unit: UnitFile) -> None:
        """Store a unit that is complete under its key; a unit without voxels has no file or object."""
        ...


@dataclass(frozen=True, slots=True)
class BlockArray:
    """An existing array into which blocks of whole chunks (or shards) are written; safe to use from many threads.

    Parameters
    ----------
    location, path : str
        The store, and the array in it.
    metadata : object
        The array's metadata.
    encoder : ChunkEncoder
        Encoder of its chunks.
    run : str
        Id of the run, part of the names of scratch folders.
    threads : int
        Number of threads that decode what is read.
    """

    location: str
    path: str
    metadata: Any = field(repr=False)
    encoder: ChunkEncoder = field(repr=False)
    run: str
    threads: int
    _store: Any = field(repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        # Opened again in the receiving process, because an open bucket holds credentials.
        return _arrived, (self.location, self.path, self.run, self.metadata.zarr_format)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.metadata.shape)

    @property
    def dtype(self) -> Any:
        """Data type of the array."""
        return self.metadata.dtype.to_native_dtype()

    def write_block(self, selection: Sequence[slice], voxels: Array) -> bytes:
        """Write a block that is in one part; see `write_parts`."""
        return self.write_parts(selection, [(selection, voxels)])

    def write_parts(self, selection: Sequence[slice], parts: Parts) -> bytes:
        """Write all files of a block; units that are all zero have none.

        Parameters
        ----------
        selection : sequence of slice
            Voxels of the array; begins and ends at edges of units (shards, or chunks if there are none), or of the
            array.
        parts : iterable of (selection, ndarray)
            Voxels of the array, whole chunks each, and what they become; together the whole block.

        Returns
        -------
        bytes
            Hash of the files.

        Raises
        ------
        ValueError
            The selection cuts a unit, a part cuts a chunk, or voxels have another shape.
        AccessRefusedError
            The store refuses writing.
        """
        with clear_errors(self.location), self._target() as target:
            return self._filled(selection, parts, target)

    def digest_of(self, selection: Sequence[slice], parts: Parts) -> bytes:
        """Return the hash of the files that `write_parts` would write."""
        return self._filled(selection, parts, _Nowhere())

    def digest(self, selection: Sequence[slice]) -> bytes:
        """Return the hash of the files that are stored of a block of whole units."""
        units = _positions(self._box(selection, self.encoder.unit), self.encoder.unit)
        with clear_errors(self.location), ThreadPoolExecutor(GETS_IN_FLIGHT) as threads:
            return join_digests(list(threads.map(self._digest_of_unit, units)))

    def read(self, selection: tuple[slice, ...]) -> Array:
        """Return voxels that have been written."""
        with clear_errors(self.location):
            return np.asarray(_readable(self.location, self.path, self.run, self.threads, os.getpid())[selection])

    def _filled(self, selection: Sequence[slice], parts: Parts, target: _Target) -> bytes:
        units = _Units(self, self._box(selection, self.encoder.unit), target)
        for part, voxels in parts:
            box = self._box(part, self.encoder.chunk)
            shape = tuple(axis.stop - axis.start for axis in box)
            if isinstance(voxels, EncodedBlock):
                (chunk, *others), size = _positions(box, self.encoder.chunk), math.prod(shape)
                if others or size != math.prod(voxels.shape):
                    raise ValueError(f"a stored chunk of shape {voxels.shape} does not fit {tuple(part)}.")
                units.add(chunk, voxels.content)
                continue
            if voxels.shape != shape:
                raise ValueError(f"voxels of shape {voxels.shape} do not fit {tuple(part)}.")
            for chunk in _positions(box, self.encoder.chunk):
                units.add(chunk, self.encoder.encoded(voxels[_within(chunk, self.encoder.chunk, box)]))
        return units.digest()

    def _digest_of_unit(self, unit: Position) -> bytes:
        name = f"{self.path}/{self.metadata.encode_chunk_key(unit)}".lstrip("/")
        place = parse_bucket_url(self.location)
        if place.scheme == "file":
            try:
                with open(Path(place.path) / name, "rb") as file:
                    return hashlib.file_digest(file, xxh3_128).digest()
            except FileNotFoundError:
                return digest_of_bytes(b"")
        content = sync(self._store.get(name, default_buffer_prototype()))
        return digest_of_bytes(b"" if content is None else content.to_bytes())

    @contextmanager
    def _target(self) -> Iterator[_Target]:
        """Return where the units of a block go; on a disk, they appear together at the end."""
        place = parse_bucket_url(self.location)
        if place.scheme != "file":
            with ThreadPoolExecutor(PUTS_IN_FLIGHT) as threads:
                objects = _Objects(self._store, self.path, threads)
                yield objects
                objects.wait()
            return
        folder = Path(place.path) / self.path
        scratch = folder / f"{PARTIAL}{self.run}-{uuid4().hex[:12]}"
        scratch.mkdir()
        try:
            with ExitStack() as opened:
                files = _Files(folder, scratch, opened)
                yield files
                _move(files.moves)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _box(self, selection: Sequence[slice], whole: Sequence[int]) -> Box:
        """Return a selection without open ends; raise if it does not consist of whole chunks or units."""
        box = []
        for part, length, size in zip(selection, self.shape, whole, strict=True):
            start, stop, step = part.indices(length)
            if step != 1 or start % size or (stop % size and stop != length) or stop <= start:
                raise ValueError(
                    f"{tuple(selection)} of an array of shape {self.shape} does not cover whole units of "
                    f"{tuple(whole)}."
                )
            box.append(slice(start, stop))
        return tuple(box)


class _Units:
    """The units of a block that is being written; each is stored when its last chunk has been added."""

    def __init__(self, array: BlockArray, whole: Box, target: _Target) -> None:
        self._array, self._target = array, target
        self._chunk, self._unit = array.encoder.chunk, array.encoder.unit
        self._open: dict[Position, UnitFile] = {}
        self._digests: dict[Position, bytes] = {}
        # Number of chunks that each unit still lacks.
        self._left = {
            unit: _chunks_in(unit, self._unit, self._chunk, array.shape) for unit in _positions(whole, self._unit)
        }

    def add(self, chunk: Position, content: Any) -> None:
        """Take an encoded chunk, or None for one without voxels."""
        per_unit = [n // c for n, c in zip(self._unit, self._chunk, strict=True)]
        unit = tuple(at // count for at, count in zip(chunk, per_unit, strict=True))
        if unit not in self._left:
            raise ValueError(f"Chunk {chunk} is not in the block, or was written twice.")
        if unit not in self._open:
            self._open[unit] = self._array.encoder.unit_file(self._target.open())
        if content is not None:
            self._open[unit].add(tuple(at % count for at, count in zip(chunk, per_unit, strict=True)), content)
        self._left[unit] -= 1
        if not self._left[unit]:
            del self._left[unit]
            file = self._open.pop(unit)
            self._target.put(self._array.metadata.encode_chunk_key(unit), file)
            self._digests[unit] = file.digest

    def digest(self) -> bytes:
        """Return the hash of the files; raise if chunks of the block are lacking."""
        if self._left:
            raise ValueError(f"{len(self._left)} units of the block lack chunks, such as {next(iter(self._left))}.")
        return join_digests([digest for _, digest in sorted(self._digests.items())])


class _Nowhere:
    """Target of units that are made for their hashes alone."""

    def open(self) -> BinaryIO:
        return open(os.devnull, "wb")

    def put(self, key: str, unit: UnitFile) -> None:
        with unit.file:
            unit.end()


class _Files:
    """Files of a block in its scratch folder."""

    def __init__(self, folder: Path, scratch: Path, opened: ExitStack) -> None:
        self._folder, self._scratch, self._opened, self._count = folder, scratch, opened, 0
        #: Where each file is to appear.
        self.moves: list[tuple[Path, Path]] = []

    def open(self) -> BinaryIO:
        self._count += 1
        return self._opened.enter_context(open(self._scratch / str(self._count), "wb"))

    def put(self, key: str, unit: UnitFile) -> None:
        with unit.file as file:
            filled = unit.end()
            if filled:
                write_soon(file)
        if not filled:
            os.unlink(file.name)
        self.moves.append((Path(file.name), self._folder / key))


class _Objects:
    """Objects of a block in a bucket, some of which are sent at a time."""

    def __init__(self, store: Any, path: str, threads: ThreadPoolExecutor) -> None:
        self._store, self._path, self._threads = store, path, threads
        self._sent: deque[Future[None]] = deque()

    def open(self) -> BinaryIO:
        return io.BytesIO()

    def put(self, key: str, unit: UnitFile) -> None:
        file = cast(io.BytesIO, unit.file)
        content = file.getbuffer() if unit.end() else None
        self._sent.append(self._threads.submit(self._send, f"{self._path}/{key}".lstrip("/"), content))
        if len(self._sent) > 2 * PUTS_IN_FLIGHT:
            self._sent.popleft().result()

    def wait(self) -> None:
        """Wait until all objects are stored."""
        for sent in self._sent:
            sent.result()

    def _send(self, key: str, content: memoryview | None) -> None:
        if content is None:
            sync(self._store.delete(key))
        else:
            sync(self._store.set(key, default_buffer_prototype().buffer.from_bytes(content)))


@dataclass(frozen=True, slots=True)
class ZarrLevel:
    """One array of a store, as a level of a pyramid.

    Parameters
    ----------
    store, path : str
        URL of the store, and the array in it.
    zarr_format : int
        2 or 3.
    run : str
        Id of the run: a store that was overwritten is another store, although its path is the same.
    voxel_axes : int or None
        Number of axes of the voxels, 3 or 4, where the array has others of one position; None for as many as it has.
    x_first : bool
        Whether the last axes of the array are x, y, z, not z, y, x.
    copied : bool
        Whether chunks of the source are written as they are stored there. Hashes are of files then, not of voxels.
    """

    store: str
    path: str
    zarr_format: Literal[2, 3]
    run: str
    voxel_axes: int | None = None
    x_first: bool = False
    copied: bool = False

    @property
    def hashes_files(self) -> bool:
        """Whether hashes are of files, not of voxels."""
        return self.copied

    def write(self, region: Region, voxels: Array) -> bytes:
        """Write voxels x, y, z(, c) to a region of whole units and return their hash, or that of the files."""
        digests = list[bytes]()
        of_files = self._put(self._array().write_parts, region, [(region, voxels)], digests)
        return of_files if self.copied else digests[0]

    def write_parts(self, region: Region, parts: Iterable[tuple[Region, Block]]) -> bytes:
        """Write a region of whole units, in parts of whole chunks; return the hash of their hashes, or of the files."""
        digests = list[bytes]()
        of_files = self._put(self._array().write_parts, region, parts, digests)
        return of_files if self.copied else join_digests(digests)

    def digest_of(self, region: Region, voxels: Array) -> bytes:
        """Return the hash that `write` would return."""
        return self.digest_of_parts(region, [(region, voxels)]) if self.copied else digest_of(voxels)

    def digest_of_parts(self, region: Region, parts: Iterable[tuple[Region, Block]]) -> bytes:
        """Return the hash that `write_parts` would return."""
        if self.copied:
            return self._put(self._array().digest_of, region, parts, [])
        return join_digests([digest_of(voxels_of(block)) for _, block in parts])

    def digest(self, region: Region, part: Vec3[int] | None = None) -> bytes:
        """Return the hash of the voxels that are stored in a region, as a whole or in parts; or that of the files."""
        if self.copied:
            array = self._array()
            return array.digest(self._selection(region, array.shape))
        if part is None:
            return digest_of(self.read(region))
        return join_digests([digest_of(self.read(one)) for one in parts_of(region, part)])

    def _put(
        self,
        put: Callable[[Box, Parts], bytes],
        region: Region,
        parts: Iterable[tuple[Region, Block]],
        digests: list[bytes],
    ) -> bytes:
        """Give parts, as the array stores them, to a method of the array; unless copied, append their hashes."""
        shape, dtype = self._array().shape, self._array().dtype

        def stored() -> Iterator[tuple[Box, Block]]:
            for part, given in parts:
                selection = self._selection(part, shape)
                if self.copied and isinstance(given, EncodedBlock):
                    yield selection, given
                    continue
                voxels = voxels_of(given)
                if not self.copied:
                    digests.append(digest_of(voxels))
                # Masks are stored as integers, but stores of version 0.1 hold bool.
                block = voxels.view(dtype) if voxels.dtype == np.bool_ else voxels
                block = _channels_to(0, block) if self.x_first else block.T
                yield selection, block.reshape([axis.stop - axis.start for axis in selection])

        return put(self._selection(region, shape), stored())

    def read(self, region: Region) -> Array:
        """Return the voxels of a region as x, y, z(, c)."""
        array = self._array()
        voxels = array.read(self._selection(region, array.shape))
        if self.voxel_axes is not None:
            voxels = voxels.reshape((-1, *voxels.shape[-3:])[-self.voxel_axes :])
        return _channels_to(3, voxels) if self.x_first else voxels.T

    def _array(self) -> BlockArray:
        return open_array(self.store, self.path, run=self.run, zarr_format=self.zarr_format)

    def _selection(self, region: Region, shape: tuple[int, ...]) -> tuple[slice, ...]:
        return (*(slice(0, length) for length in shape[:-3]), *(region if self.x_first else reversed(region)))


def _channels_to(axis: int, voxels: Array) -> Array:
    """Move the axis of channels, if there is one, to the first axis (0) or the last (3)."""
    return voxels if voxels.ndim == 3 else np.moveaxis(voxels, 3 - axis, axis)


def open_array(
    location: str, path: str, *, run: str, threads: int | None = None, zarr_format: Literal[2, 3] = 3
) -> BlockArray:
    """Open an array of a store for writing blocks; a process opens it once for each run.

    Parameters
    ----------
    location : str
        Local path or URL of the store.
    path : str
        The array in it.
    run : str
        Id of the run: a store that was overwritten is another store, although its URL is the same.
    threads : int, optional
        Number of threads that encode; by default that of the dask worker.
    zarr_format : int
        2 or 3.
    """
    return _open(location, path, run, threads or tasks_at_once(), zarr_format, os.getpid())


def _arrived(location: str, path: str, run: str, zarr_format: Literal[2, 3]) -> BlockArray:
    return open_array(location, path, run=run, zarr_format=zarr_format)


def remove_partial(location: str, path: str) -> int:
    """Remove files of killed processes from the folder of an array or group: scratch folders and partial metadata.

    Must not be called while another run writes to the array.

    Returns
    -------
    int
        Number of folders and files removed. Buckets have none.
    """
    place = parse_bucket_url(location)
    if place.scheme != "file":
        return 0
    folder = Path(place.path) / path
    left = [entry for entry in (folder.iterdir() if folder.is_dir() else ()) if is_partial(entry.name)]
    for entry in left:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return len(left)


@lru_cache(maxsize=64)
def _open(location: str, path: str, run: str, threads: int, zarr_format: Literal[2, 3], process: int) -> BlockArray:
    del process  # part of the cache key: a forked process must not use the connections of its parent
    with clear_errors(location):
        store = open_store(location)
        metadata = zarr.open_array(store, path=path, mode="r+", zarr_format=zarr_format).metadata
    return BlockArray(location, path, metadata, ChunkEncoder(metadata), run, threads, store)


@lru_cache(maxsize=64)
def _readable(location: str, path: str, run: str, threads: int, process: int) -> Any:
    del run, process
    local = parse_bucket_url(location).scheme == "file"
    with _configured(PIPELINE if local else OWN_PIPELINE, threads), warnings.catch_warnings():
        # Chunks that are copied have the codecs of their source. zarr-python decodes those that zarrs does not.
        warnings.filterwarnings("ignore", "Array is unsupported by ZarrsCodecPipeline", UserWarning)
        return zarr.open_array(open_store(location), path=path, mode="r")


@contextmanager
def _configured(pipeline: str, threads: int) -> Iterator[None]:
    """Set the zarr settings that an array reads when it is made."""
    settings = {
        "codec_pipeline.path": pipeline,
        "threading.max_workers": threads,
        # By default zarrs encodes four chunks at a time, whatever the number of threads.
        "codec_pipeline.chunk_concurrent_minimum": 1,
        "codec_pipeline.chunk_concurrent_maximum": threads,
    }
    with _settings, zarr.config.set(settings):
        yield


def _move(moves: Iterable[tuple[Path, Path]]) -> None:
    """Move files of chunks into place; a chunk without a file is empty, so an older file of it is removed."""
    written = []
    check_wanted()
    for source, target in moves:
        if source.exists():
            written.append((source, target))
        else:
            target.unlink(missing_ok=True)
    for folder in {target.parent for _, target in written}:
        folder.mkdir(parents=True, exist_ok=True)
    move_durably(written)


def _positions(box: Box, size: Sequence[int]) -> Iterator[Position]:
    """Yield the positions of the chunks or units that a box crosses, the last axis fastest."""
    return product(*(range(axis.start // n, -(-axis.stop // n)) for axis, n in zip(box, size, strict=True)))


def _within(chunk: Position, size: Sequence[int], box: Box) -> Box:
    """Return where the voxels of a chunk are in those of a box."""
    return tuple(
        slice(at * n - axis.start, (at + 1) * n - axis.start) for at, n, axis in zip(chunk, size, box, strict=True)
    )


def _chunks_in(unit: Position, size: Sequence[int], chunk: Sequence[int], shape: Sequence[int]) -> int:
    """Return how many chunks a unit has; the edge of the array may cut it."""
    return math.prod(-(-min(n, whole - at * n) // c) for at, n, c, whole in zip(unit, size, chunk, shape, strict=True))
