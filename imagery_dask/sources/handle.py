"""Handles, which are sent to workers in place of open volumes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imagery_dask.annotations import Array
from imagery_dask.errors import (
    AccessRefusedError,
    InvalidInfoError,
    SourceError,
    SourceGoneError,
    SourceNotFoundError,
)
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.chunkedgraph import GRAPHENE
from imagery_dask.model.layer import Mip
from imagery_dask.sources.files.local_files import local_folder
from imagery_dask.sources.memory import keep_freed_memory
from imagery_dask.sources.requests.counts import ReadCounts, active_counts
from imagery_dask.sources.requests.transport import reachable_path
from imagery_dask.sources.volumes.addresses import is_zarr, normalize_path
from imagery_dask.sources.volumes.chunk_cache import chunk_cache
from imagery_dask.sources.volumes.encoded_block import Block
from imagery_dask.sources.volumes.stored_volume import (
    CheckedChunk,
    Layout,
    Missing,
    Relabel,
    StoredVolume,
    UnstoredCheck,
)
from imagery_dask.urls import is_safe_for_tokens, location_of, redacted

if TYPE_CHECKING:
    from cloudvolume import CloudVolume

__all__ = [
    "SourceHandle",
    "changed_supervoxel_chunks",
    "cloud_volume",
    "folders_of",
    "layers_of",
    "open_volume",
    "stamp_of",
    "volumes_at",
]

OPEN_VOLUMES_KEPT = 64

_open_lock = threading.Lock()
_volumes: dict[tuple[str, int], StoredVolume] = {}
_warned: set[tuple[str, int]] = set()
_logger = logging.getLogger("imagery_dask")


@dataclass(frozen=True, slots=True)
class SourceHandle:
    """One mip of a volume: small, picklable, without token or connection.

    Parameters
    ----------
    path : str
        Cloud path.
    mip : Mip
        Level, as in the info when the handle was made.
    missing : {"fill", "error"}
        What a storage chunk that does not exist becomes.
    kept_only : bool
        Read chunks that this process keeps, and no others: `read` raises `NotKept`.
    keeps : bool
        Keep decoded chunks for later reads, in the cache of this process.
    supervoxels_at : int or None
        Seconds since 1970: supervoxels of a graph are read as the splits up to then left them; None for the present.
        Of no effect for other volumes.
    """

    path: str
    mip: Mip
    missing: Missing = "fill"
    kept_only: bool = False
    keeps: bool = True
    supervoxels_at: int | None = None

    def __repr__(self) -> str:
        # dask logs the arguments of tasks that fail.
        return f"SourceHandle({redacted(self.path)!r}, mip={self.mip.level}, missing={self.missing!r})"

    def read(
        self,
        box: VoxelGrid,
        layout: Layout = "F",
        relabel: Relabel | None = None,
        out: Array | None = None,
        unstored: UnstoredCheck | None = None,
    ) -> Array:
        """Read a box of voxels as (x, y, z, channel), into `out` if it is given, with ids replaced by `relabel`.

        The first read in a process opens the volume. Counts are added to the thread's `collect_counts`, if any;
        without, decoded chunks are taken from this process's cache and kept in it. `unstored` is as of
        `StoredVolume.read`.

        Raises
        ------
        SourceError
            If the volume's info has changed since the handle was made, or is gone, so that chunks only seem to be
            missing.
        """
        # Blocks of exports, whose reads are counted, read each chunk once.
        cache = chunk_cache() if self.keeps and active_counts() is None else None
        voxels, counts = self._volume().read(
            self.mip.level, box, self.missing, layout, relabel, cache, self.kept_only, out, unstored
        )
        self._tell(counts)
        return voxels

    def read_parts(self, boxes: Sequence[VoxelGrid], encoded: bool = False) -> Iterator[Block]:
        """Yield the voxels of boxes (x, y, z, channel), one after another, in Fortran order; they may be read-only.

        With `encoded`, boxes that are one storage chunk are yielded as they are stored, if the volume stores them as it
        did when the handle was made.

        Storage chunks that several boxes cross are fetched once, ahead of the boxes. Nothing is kept.

        Raises
        ------
        SourceError
            As `read`, after the last box.
        """
        counts, volume = ReadCounts(), self._volume()
        encoded = encoded and volume.layer.mips[self.mip.level].compressor == self.mip.compressor
        with closing(volume.read_parts(self.mip.level, boxes, self.missing, counts, encoded)) as parts:
            yield from parts
        self._tell(counts)

    def check_chunks(self, box: VoxelGrid) -> Iterator[CheckedChunk]:
        """Yield the storage chunks that exist of a box, each with its damage; see `StoredVolume.check`.

        Raises
        ------
        SourceError
            As `read`, after the last chunk.
        """
        counts = ReadCounts()
        yield from self._volume().check(self.mip.level, box, counts)
        self._tell(counts)

    def _tell(self, counts: ReadCounts) -> None:
        """Add the counts of a read to those that are collected, or log what was missing."""
        if counts.missing:
            self.check()
        if counts.refused_or_absent and self.path.startswith(GRAPHENE):
            self._volume().data_has_metadata()  # raises if all is refused now, as with a token that has expired
        collecting = active_counts()
        if collecting is not None:
            collecting.include(counts)
        elif counts.missing:
            _warn_missing(self.path, self.mip.level, counts.first(1)[0])

    def check(self) -> None:
        """Read the volume's info again.

        Raises
        ------
        SourceGoneError
            If there is none any more.
        SourceError
            If it describes another volume, or cannot be read.
        """
        if self.path.startswith(GRAPHENE):  # the graph's server answers, whatever became of the chunks: see `stamp_of`
            return
        try:
            if self._volume().is_current():
                return
        except SourceNotFoundError:
            raise SourceGoneError(
                f"{self.path!r} has vanished: its info file was there, and is gone. Chunks that are missing now need "
                "not be empty. Make the volume accessible again (mount it, undo a rename), then run the same command "
                "or call again."
            ) from None
        open_volume(self.path, fresh=True)
        self._volume()

    def _volume(self) -> StoredVolume:
        # This process may have opened the volume before it was rewritten.
        for fresh in (False, True):
            volume = open_volume(self.path, fresh)
            now = _level(volume, self.mip.level)
            if now == self.mip:
                return volume.at(self.supervoxels_at)
        raise SourceError(
            f"{self.path!r} has changed: mip {self.mip.level} was {self.mip} and is {now}. Make the array again."
        )


def open_volume(path: str, fresh: bool = False) -> StoredVolume:
    """Return an open layer, opened once per process; with `fresh`, its info is read again and kept chunks are not."""
    path = normalize_path(path)
    key = (path, os.getpid())  # connections do not survive a fork
    # Under a lock, so that threads that start together read the info once.
    with _open_lock:
        if key not in _volumes or (fresh and not _volumes[key].is_current()):
            keep_freed_memory()
            _volumes[key] = _opened(path)
        elif fresh:
            _volumes[key].forget_chunks()
        _volumes[key] = _volumes.pop(key)  # the most recently used is the last
        while len(_volumes) > OPEN_VOLUMES_KEPT:
            del _volumes[next(iter(_volumes))]
        return _volumes[key]


def _opened(path: str) -> StoredVolume:
    root = None
    if not is_zarr(path):
        from imagery_dask.sources.precomputed.precomputed_volume import PrecomputedVolume

        try:
            return PrecomputedVolume(path)
        except SourceNotFoundError as error:
            if path.startswith(GRAPHENE):
                raise
            from imagery_dask.sources.requests.transport import Transport
            from imagery_dask.sources.zarr.nodes import DESCRIBING, read_root

            root = read_root(Transport(location_of(path)), list(DESCRIBING.values()))
            if root is None:
                from imagery_dask.sources.zarr.webknossos import unreadable_layers

                reason = (
                    unreadable_layers(location_of(path))
                    or _version_store(location_of(path))
                    or f"Nor is it zarr or N5, which have {', '.join(DESCRIBING)}."
                )
                raise SourceNotFoundError(f"{error} {reason}") from error
            path = f"{root.format}://{location_of(path)}"
    from imagery_dask.sources.zarr.zarr_volume import ZarrVolume

    return ZarrVolume(path, root)


def _version_store(location: str) -> str:
    """Return why a version store on this machine is no volume; "" if it is not a version store."""
    folder = local_folder(location)
    if folder is None or not os.path.isfile(os.path.join(folder, "versions.json")):
        return ""
    return (
        "It is a version store, which 'imagery-dask versions' and open_versions read; volume.zarr in it has the "
        "supervoxels."
    )


def layers_of(path: str) -> dict[str, bool]:
    """Return the paths of the labels of an image of OME-Zarr, or of the layers of a dataset of webknossos.

    Returns
    -------
    dict
        Whether each is a segmentation, by its path; none for other volumes.
    """
    try:
        return open_volume(path).layers_within()
    except InvalidInfoError:  # as a group of layers that is no volume itself
        path = normalize_path(path)
        if not is_zarr(path):
            return {}
        from imagery_dask.sources.zarr.zarr_volume import find_layers

        return find_layers(path)


def volumes_at(path: str) -> list[str]:
    """Return a path and those of the layers in it; these alone, where it is no volume itself."""
    layers = list(layers_of(path))
    try:
        open_volume(path)
    except InvalidInfoError:
        if not layers:
            raise
        return layers
    return [path, *layers]


def folders_of(path: str) -> set[str]:
    """Return the paths of a layer: its own, and that of the folder with its chunks, which its info may name."""
    path = normalize_path(path)
    return {path, open_volume(path).data_path}


def changed_supervoxel_chunks(path: str, level: int, box: VoxelGrid, first: int, second: int) -> list[VoxelGrid]:
    """Return the storage chunks of a box in which splits of supervoxels between two moments may have changed voxels.

    The trees of the two versions are compared, without the parts that they share: no chunk is read. A chunk that was
    copied into the store between the moments, as it was in the volume, is among the result.

    Parameters
    ----------
    path : str
        CloudVolume path of a dynamic segmentation; others have no splits.
    level : int
        The mip.
    box : VoxelGrid
        Voxels of that mip, absolute.
    first, second : int
        Seconds since 1970, in any order: `Cutout.supervoxels_at` of what was read, and of what is to be read.

    Returns
    -------
    list of VoxelGrid
        The chunks, in voxels of the mip, cut by the end of the volume; empty for graphs without splits.

    Raises
    ------
    SourceError
        If the store cannot be read, or does not list its versions.
    """
    volume = open_volume(path)
    return volume.changed_chunks(level, box, first, second)


def stamp_of(path: str, levels: Iterable[int], fresh: bool = False) -> dict[str, str | int | None]:
    """Return what shows whether a volume was rewritten.

    Parameters
    ----------
    path : str
        Cloud path.
    levels : iterable of int
        Mips that are read; changes of others do not count.
    fresh : bool
        Read the info again.

    Returns
    -------
    dict
        ``info``: hash of what the info says of these mips. ``written_ns``: when the info of a local volume was written.
        ``modified``: when that of a volume that is read over HTTP was, as the server says.
        ``data``: of a graph, whether the folder with its supervoxels has an info.
    """
    volume = open_volume(path, fresh)
    described = volume.described(sorted(set(levels)))
    folder, written_ns = local_folder(volume.data_path), None
    if folder is not None:
        with suppress(OSError):
            written_ns = os.stat(os.path.join(folder, volume.metadata_name)).st_mtime_ns
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    stamp: dict[str, str | int | None] = {"info": digest, "written_ns": written_ns, "modified": volume.modified}
    if path.startswith(GRAPHENE):
        # The folder of the supervoxels need not have an info of its own.
        stamp["data"] = "there" if volume.data_has_metadata() else None
    return stamp


def _level(volume: StoredVolume, level: int) -> Mip | None:
    mips = volume.layer.mips
    return mips[level] if level < len(mips) else None


def _warn_missing(path: str, level: int, key: str) -> None:
    """Log, once for each level, that chunks are missing; exports count and report them instead."""
    if (path, level) not in _warned:
        _warned.add((path, level))
        _logger.warning(
            "Storage chunks of %s are missing at mip %d, the first one seen is %s: their voxels are 0. "
            "ImageryClient(missing='error') makes them an error.", redacted(path), level, key,
        )  # fmt: skip


def cloud_volume(path: str, token: str | None = None) -> CloudVolume:
    """Return a `CloudVolume` for direct use, with `imageryclient`'s options: unbounded, missing chunks are 0."""
    path = normalize_path(path)
    if is_zarr(path):
        raise SourceError(f"CloudVolume reads zarr and N5 with other offsets, or not at all: {path!r} is read lazily.")
    if path.startswith(GRAPHENE) and not is_safe_for_tokens(path.removeprefix(GRAPHENE)):
        raise AccessRefusedError(f"No token is sent to {path}, because plain HTTP is not encrypted. Use https://.")
    from cloudvolume import CloudVolume

    return CloudVolume(reachable_path(path), bounded=False, fill_missing=True, progress=False, secrets=token)
