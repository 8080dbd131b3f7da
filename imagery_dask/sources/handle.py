"""Handles: what travels to workers in place of open volumes."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cloudvolume import CloudVolume
from numpy.typing import NDArray

from imagery_dask.grid import VoxelGrid
from imagery_dask.sources.counts import active_counts
from imagery_dask.sources.memory import keep_freed_memory
from imagery_dask.sources.paths import normalize_path
from imagery_dask.sources.precomputed import Layout, Missing, PrecomputedVolume
from imagery_dask.sources.transport import reachable_path

__all__ = ["SourceHandle", "cloud_volume", "open_volume"]

OPEN_VOLUMES_KEPT = 64

_open_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class SourceHandle:
    """One mip of a volume, by name: small, picklable, without token or connection.

    Parameters
    ----------
    path : str
        CloudVolume path.
    mip : int
        Level.
    missing : {"fill", "error"}
        What a storage chunk that does not exist becomes.
    """

    path: str
    mip: int
    missing: Missing = "fill"

    def read(self, box: VoxelGrid, layout: Layout = "F") -> NDArray[Any]:
        """Voxels of a box as (x, y, z, channel); opens the volume at this process's first read.

        Counts go to the thread's `collect_counts`, if it collects.
        """
        voxels, counts = open_volume(self.path).read(self.mip, box, self.missing, layout)
        collecting = active_counts()
        if collecting is not None:
            collecting.add(counts)
        return voxels


def open_volume(path: str) -> PrecomputedVolume:
    """Open a layer, once per process."""
    # One at a time, so that threads that start together read the info once.
    with _open_lock:
        return _open_volume(normalize_path(path), os.getpid())


@lru_cache(maxsize=OPEN_VOLUMES_KEPT)
def _open_volume(path: str, process: int) -> PrecomputedVolume:
    # Connections do not survive a fork, hence the process id in the key.
    del process
    keep_freed_memory()
    return PrecomputedVolume(path)


def cloud_volume(path: str, token: str | None = None) -> Any:
    """`CloudVolume` of a source for direct use, with the options of the reference: unbounded, missing chunks are 0."""
    return _cloud_volume(normalize_path(path), token, os.getpid())


@lru_cache(maxsize=OPEN_VOLUMES_KEPT)
def _cloud_volume(path: str, token: str | None, process: int) -> Any:
    del process
    return CloudVolume(reachable_path(path), bounded=False, fill_missing=True, progress=False, secrets=token)
