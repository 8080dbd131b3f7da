"""CloudVolume."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from cloudvolume import Bbox, CloudVolume

KEPT = 256 * 2**20


def _open(source: str, **options: Any) -> Any:
    return CloudVolume(f"precomputed://{source}", progress=False, **options)


def cutout(source: str, kind: str, start: list[int], stop: list[int]) -> Any:
    """Read a box."""
    return np.asarray(_open(source).download(Bbox(start, stop)))[..., 0]


def maximum(source: str, kind: str, start: list[int], stop: list[int]) -> Any:
    """Read a box and find its largest voxel."""
    return cutout(source, kind, start, stop).max()


def browse(source: str, start: list[int], side: int, positions: list[list[int]]) -> Any:
    """Look at planes; an LRU keeps chunks."""
    volume = _open(source, lru_bytes=KEPT)
    a, b, c = start
    planes = [np.asarray(volume[a + x : a + x + side, b : b + side, c + z])[..., 0, 0] for x, z in positions]
    return np.stack(planes)


def petabyte(source: str, kind: str, start: list[int], stop: list[int]) -> dict[str, Any]:
    """Open a volume and read one plane."""
    started = time.perf_counter()
    volume = _open(source)
    opened = 1e3 * (time.perf_counter() - started)
    return {"value": np.asarray(volume.download(Bbox(start, stop)))[..., 0], "figures": {"ms to open": opened}}
