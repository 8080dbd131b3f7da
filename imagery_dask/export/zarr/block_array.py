"""Write blocks of whole chunks and shards into zarr arrays, so that a reader never sees a partial chunk.

zarrs encodes three times as fast as zarr, but it opens the file of a chunk under its final name and truncates it: a
reader may see a partial chunk, and a killed process leaves one behind. On a local disk a block is therefore encoded
into a folder of its own beside the chunks, and each file is then moved into place:

    store.zarr/0/zarr.json
    store.zarr/0/c/4/0/7                        <- os.replace
    store.zarr/0/.partial-RUN-BLOCK/c.4.0.7

Readers ask for chunks by name and never see such a folder; `remove_partial` removes the folders of killed processes.
`zarr_shards` writes shards into the folder, one encoded chunk at a time. In a bucket, PUT makes a whole object appear.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import zarr
from zarr.storage import LocalStore, StorePath, WrapperStore

from imagery_dask.annotations import Array
from imagery_dask.export.zarr.zarr_shards import ShardEncoder, shard_encoder
from imagery_dask.geometry.grid import Region
from imagery_dask.kernels import digest_of
from imagery_dask.run import tasks_at_once
from imagery_dask.storage.atomic_files import check_wanted, move_durably, write_soon
from imagery_dask.storage.buckets import clear_errors, parse_bucket_url
from imagery_dask.storage.store_files import is_partial
from imagery_dask.storage.zarr_stores import open_store

__all__ = ["BlockArray", "ZarrLevel", "open_array", "remove_partial"]

PIPELINE = "zarrs.ZarrsCodecPipeline"
OWN_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
PARTIAL = ".partial-"

# zarr's settings belong to the process: if two threads set and restore them, those of one may stay.
_settings = threading.Lock()


class _Unread(WrapperStore[Any]):
    """A store that is only written to: zarr would fetch a shard even when all of it is replaced."""

    async def get(self, key: str, prototype: object, byte_range: object = None) -> None:
        """Return None, as for a missing object."""


@dataclass(frozen=True, slots=True)
class BlockArray:
    """An existing array into which blocks of whole chunks (or shards) are written; safe to use from many threads.

    Parameters
    ----------
    location, path : str
        The store, and the array in it.
    shape : tuple of int
        Shape of the array.
    unit : tuple of int
        Shape of what one file stores: a shard, or a chunk if there are no shards.
    padded : object
        The array's metadata with a shape of whole units, so that zarr does not treat a block at the edge as part of a
        chunk, which it would read before writing.
    flat : object
        The same metadata with all chunks in one folder, because making and removing nested folders takes longer than a
        rename.
    run : str
        Id of the run, part of the names of scratch folders.
    threads : int
        Number of threads that encode.
    """

    location: str
    path: str
    shape: tuple[int, ...]
    unit: tuple[int, ...]
    padded: Any = field(repr=False)
    flat: Any = field(repr=False)
    run: str
    threads: int
    _array: Any = field(repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        # Opened again in the receiving process, because an open bucket holds credentials.
        return _arrived, (self.location, self.path, self.run, self.padded.zarr_format)

    @property
    def dtype(self) -> Any:
        """Data type of the array."""
        return self.padded.dtype.to_native_dtype()

    def write_block(self, selection: Sequence[slice], voxels: Array) -> None:
        """Write all files of a block; units that are all zero have none.

        Parameters
        ----------
        selection : sequence of slice
            Voxels of the array; begins and ends at edges of units or of the array.
        voxels : ndarray
            Of the selection's shape.

        Raises
        ------
        ValueError
            The selection cuts a unit, or the voxels have another shape.
        AccessRefusedError
            The store refuses writing.
        """
        box = self._box(selection)
        if voxels.shape != tuple(stop - start for start, stop in box):
            raise ValueError(f"voxels of shape {voxels.shape} do not fit {tuple(selection)}.")
        missing = [(0, -(stop - start) % size) for (start, stop), size in zip(box, self.unit, strict=True)]
        whole = tuple(slice(start, stop + after) for (start, stop), (_, after) in zip(box, missing, strict=True))
        shards = shard_encoder(self.padded) if self._array is None else None
        if shards is None and any(after for _, after in missing):
            voxels = np.pad(voxels, missing, constant_values=self.padded.fill_value)
        with clear_errors(self.location):
            if self._array is not None:
                self._array[whole] = voxels
                return
            with self._scratch() as (folder, scratch):
                if shards is None:
                    self._write_chunks(folder, scratch, whole, voxels)
                else:
                    self._write_shards(shards, folder, scratch, whole, voxels)

    def read(self, selection: tuple[slice, ...]) -> Array:
        """Return voxels that have been written."""
        with clear_errors(self.location):
            return np.asarray(_readable(self.location, self.path, self.run, self.threads, os.getpid())[selection])

    @contextmanager
    def _scratch(self) -> Iterator[tuple[Path, Path]]:
        """Make a scratch folder in the folder of the array; yield both."""
        folder = Path(parse_bucket_url(self.location).path) / self.path
        scratch = folder / f"{PARTIAL}{self.run}-{uuid4().hex[:12]}"
        try:
            yield folder, scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _write_chunks(self, folder: Path, scratch: Path, whole: tuple[slice, ...], voxels: Array) -> None:
        with _configured(PIPELINE, self.threads):
            array = _array(self.flat, StorePath(LocalStore(scratch)))
        array[whole] = voxels
        _move(
            (scratch / array.metadata.encode_chunk_key(position), folder / self.padded.encode_chunk_key(position))
            for position in self._positions(whole)
        )

    def _write_shards(
        self, shards: ShardEncoder, folder: Path, scratch: Path, whole: tuple[slice, ...], voxels: Array
    ) -> None:
        scratch.mkdir()
        moves = []
        for number, position in enumerate(self._positions(whole)):
            part = tuple(
                slice(at * size - axis.start, (at + 1) * size - axis.start)
                for at, size, axis in zip(position, self.unit, whole, strict=True)
            )
            source = scratch / str(number)
            with open(source, "wb") as file:
                filled = shards.write(voxels[part], file)
                write_soon(file)
            if not filled:
                os.unlink(source)
            moves.append((source, folder / self.padded.encode_chunk_key(position)))
        _move(moves)

    def _positions(self, whole: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
        """Yield the positions of the units of a selection among the units of the array."""
        ranges = (range(s.start // size, s.stop // size) for s, size in zip(whole, self.unit, strict=True))
        return product(*ranges)

    def _box(self, selection: Sequence[slice]) -> list[tuple[int, int]]:
        box = []
        for part, length, size in zip(selection, self.shape, self.unit, strict=True):
            start, stop, step = part.indices(length)
            if step != 1 or start % size or (stop % size and stop != length) or stop <= start:
                raise ValueError(
                    f"{tuple(selection)} of an array of shape {self.shape} does not cover whole units of {self.unit}."
                )
            box.append((start, stop))
        return box


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
    """

    store: str
    path: str
    zarr_format: Literal[2, 3]
    run: str

    def write(self, region: Region, voxels: Array) -> bytes:
        """Write voxels x, y, z(, c) to a region of whole chunks and return their hash."""
        array = self._array()
        # Masks are stored as integers, but stores of version 0.1 hold bool.
        stored = voxels.view(array.dtype) if voxels.dtype == np.bool_ else voxels
        array.write_block(self._selection(region, array.shape), stored.T)
        return digest_of(voxels)

    def digest_of(self, region: Region, voxels: Array) -> bytes:
        """Return the hash of voxels."""
        del region
        return digest_of(voxels)

    def digest(self, region: Region) -> bytes:
        """Return the hash of the voxels that are stored in a region."""
        return digest_of(self.read(region))

    def read(self, region: Region) -> Array:
        """Return the voxels of a region as x, y, z(, c)."""
        array = self._array()
        return array.read(self._selection(region, array.shape)).T

    def _array(self) -> BlockArray:
        return open_array(self.store, self.path, run=self.run, zarr_format=self.zarr_format)

    @staticmethod
    def _selection(region: Region, shape: tuple[int, ...]) -> tuple[slice, ...]:
        return (*(slice(0, length) for length in shape[:-3]), *reversed(region))


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
    local = parse_bucket_url(location).scheme == "file"
    with clear_errors(location), _configured(OWN_PIPELINE, threads):
        array = zarr.open_array(open_store(location), path=path, mode="r+", zarr_format=zarr_format)
        unit = array.shards or array.chunks
        padded = array.metadata.update_shape(
            tuple(-(-length // size) * size for length, size in zip(array.shape, unit, strict=True))
        )
        whole = None if local else _array(padded, StorePath(_Unread(array.store), array.path))
    return BlockArray(location, path, array.shape, unit, padded, _flat(padded), run, threads, whole)


@lru_cache(maxsize=64)
def _readable(location: str, path: str, run: str, threads: int, process: int) -> Any:
    del run, process
    local = parse_bucket_url(location).scheme == "file"
    with _configured(PIPELINE if local else OWN_PIPELINE, threads):
        return zarr.open_array(open_store(location), path=path, mode="r")


def _array(metadata: Any, place: StorePath) -> Any:
    return zarr.Array(zarr.AsyncArray(metadata, place))


def _flat(metadata: Any) -> Any:
    """Return metadata whose chunk names contain no folders."""
    if metadata.zarr_format == 2:
        return replace(metadata, dimension_separator=".")
    encoding = {"name": "default", "configuration": {"separator": "."}}
    return type(metadata).from_dict(metadata.to_dict() | {"chunk_key_encoding": encoding})


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
