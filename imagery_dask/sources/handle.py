"""Handles, which are sent to workers in place of open volumes."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from imagery_dask.annotations import Array
from imagery_dask.errors import SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.layer import Mip
from imagery_dask.sources.addresses import normalize_path
from imagery_dask.sources.counts import active_counts
from imagery_dask.sources.memory import keep_freed_memory
from imagery_dask.sources.precomputed import Layout, Missing, PrecomputedVolume, Relabel
from imagery_dask.sources.transport import reachable_path

if TYPE_CHECKING:
    from cloudvolume import CloudVolume

__all__ = ["SourceHandle", "cloud_volume", "folders_of", "open_volume"]

OPEN_VOLUMES_KEPT = 64

_open_lock = threading.Lock()
_volumes: dict[tuple[str, int], PrecomputedVolume] = {}
_warned: set[tuple[str, int]] = set()
_logger = logging.getLogger("imagery_dask")


@dataclass(frozen=True, slots=True)
class SourceHandle:
    """One mip of a volume: small, picklable, without token or connection.

    Parameters
    ----------
    path : str
        CloudVolume path.
    mip : Mip
        Level, as in the info when the handle was made.
    missing : {"fill", "error"}
        What a storage chunk that does not exist becomes.
    """

    path: str
    mip: Mip
    missing: Missing = "fill"

    def read(self, box: VoxelGrid, layout: Layout = "F", relabel: Relabel | None = None) -> Array:
        """Read a box of voxels as (x, y, z, channel), with ids replaced by `relabel` if it is given.

        The first read in a process opens the volume. Counts are added to the thread's `collect_counts`, if any.

        Raises
        ------
        SourceError
            If the volume's info has changed since the handle was made.
        """
        voxels, counts = self._volume().read(self.mip.level, box, self.missing, layout, relabel)
        collecting = active_counts()
        if collecting is not None:
            collecting.include(counts)
        elif counts.missing:
            _warn_missing(self.path, self.mip.level, counts.first(1)[0])
        return voxels

    def _volume(self) -> PrecomputedVolume:
        # This process may have opened the volume before it was rewritten.
        for fresh in (False, True):
            volume = open_volume(self.path, fresh)
            now = _level(volume, self.mip.level)
            if now == self.mip:
                return volume
        raise SourceError(
            f"{self.path!r} has changed: mip {self.mip.level} was {self.mip} and is {now}. Make the array again."
        )


def open_volume(path: str, fresh: bool = False) -> PrecomputedVolume:
    """Return an open layer, opened once per process; with `fresh`, its info is read again."""
    path = normalize_path(path)
    key = (path, os.getpid())  # connections do not survive a fork
    # Under a lock, so that threads that start together read the info once.
    with _open_lock:
        if key not in _volumes or (fresh and not _volumes[key].is_current()):
            keep_freed_memory()
            _volumes[key] = PrecomputedVolume(path)
        _volumes[key] = _volumes.pop(key)  # the most recently used is the last
        while len(_volumes) > OPEN_VOLUMES_KEPT:
            del _volumes[next(iter(_volumes))]
        return _volumes[key]


def folders_of(path: str) -> set[str]:
    """Return the paths of a layer: its own, and that of the folder with its chunks, which its info may name."""
    path = normalize_path(path)
    return {path, open_volume(path).data_path}


def _level(volume: PrecomputedVolume, level: int) -> Mip | None:
    mips = volume.layer.mips
    return mips[level] if level < len(mips) else None


def _warn_missing(path: str, level: int, key: str) -> None:
    """Log, once for each level, that chunks are missing; exports count and report them instead."""
    if (path, level) not in _warned:
        _warned.add((path, level))
        _logger.warning(
            "Storage chunks of %s are missing at mip %d, the first one seen is %s: their voxels are 0. "
            "ImageryClient(missing='error') makes them an error.", path, level, key,
        )  # fmt: skip


def cloud_volume(path: str, token: str | None = None) -> CloudVolume:
    """Return a `CloudVolume` for direct use, with `imageryclient`'s options: unbounded, missing chunks are 0."""
    return _cloud_volume(normalize_path(path), token, os.getpid())


@lru_cache(maxsize=OPEN_VOLUMES_KEPT)
def _cloud_volume(path: str, token: str | None, process: int) -> CloudVolume:
    from cloudvolume import CloudVolume

    del process
    return CloudVolume(reachable_path(path), bounded=False, fill_missing=True, progress=False, secrets=token)
