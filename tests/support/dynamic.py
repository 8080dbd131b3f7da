"""What the tests of dynamic segmentations share: an oracle, and processes that forget what they looked up."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imagery_dask.sources import credentials, handle, roots, throttle
from imagery_dask.testing.cave import CaveServer, World

#: No other text in the tests contains it.
TOKEN = "feedface0123456789abcdef00c0ffee"

# The package has a function of the same name as this module.
graph_servers = sys.modules["imagery_dask.sources.graph_server"]

Box = tuple[Sequence[int], Sequence[int]]


def forget() -> None:
    """Forget what this process knows of servers: volumes, roots, leaves, connections and tokens."""
    handle._volumes.clear()
    handle._cloud_volume.cache_clear()
    graph_servers._graph_server.cache_clear()
    forget_roots()
    throttle.forget_slots()
    credentials._tokens.clear()


def forget_roots() -> None:
    """Forget the roots that this process looked up."""
    roots._caches.clear()
    roots._leaf_table.cache_clear()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between attempts (in this process)."""
    monkeypatch.setattr(graph_servers, "pause_s", lambda attempt, error=None: 0.0)


@contextmanager
def served(world: World, **options: Any) -> Iterator[CaveServer]:
    """Serve a world to processes that know nothing of it."""
    forget()
    with CaveServer(world, **{"tokens": (TOKEN,), **options}) as server:
        yield server
    forget()


def at(timestamp: float) -> datetime:
    """Return a moment as a datetime."""
    return datetime.fromtimestamp(timestamp, UTC)


def bounds(world: World, box: Box, mip: int = 0) -> NDArray[np.int64]:
    """Bounds of a box that is given in voxels of a mip from the volume's first one, in absolute voxels of the mip."""
    offset = np.array(world.voxel_offset) // (2**mip, 2**mip, 1)
    return np.array(box) + offset


def resolution(world: World, mip: int = 0) -> tuple[int, int, int]:
    """Resolution of a mip of the segmentation."""
    x, y, z = world.resolution
    return x * 2**mip, y * 2**mip, z


def crop(voxels: NDArray[Any], box: Box) -> NDArray[Any]:
    """Cut a box out of a volume; what lies outside is 0."""
    low, high = np.array(box)
    out = np.zeros(high - low, dtype=voxels.dtype)
    first, last = np.clip(low, 0, voxels.shape), np.clip(high, 0, voxels.shape)
    if (first < last).all():
        out[tuple(map(slice, first - low, last - low))] = voxels[tuple(map(slice, first, last))]
    return out


def expected(
    world: World, moment: float, box: Box, *, mip: int = 0, keep: Any = "all", stop_layer: int | None = None
) -> NDArray[np.uint64]:
    """Return what a box holds at a moment, by the graph itself; 0 where it did not exist yet."""
    if keep is None:
        return crop(world.mips[mip], box)
    found = world.roots_volume(moment, mip)
    found = np.where(found >> np.uint64(56) == world.graph.layout.n_layers, found, np.uint64(0))
    chosen = found != 0 if isinstance(keep, str) else np.isin(found, np.array(list(keep), np.uint64)) & (found != 0)
    values = found if stop_layer is None else world.roots_volume(moment, mip, stop_layer)
    return crop(np.where(chosen, values, np.uint64(0)), box)


def distinct(world: World, box: Box | None = None) -> int:
    """Count the supervoxels of a box, or of the volume."""
    voxels = world.supervoxels if box is None else crop(world.supervoxels, box)
    return len(np.unique(voxels[voxels != 0]))


def roots_at(world: World, moment: float) -> list[int]:
    """List the roots of a moment."""
    return [int(root) for root in np.unique(world.graph.roots(world.graph.supervoxels, moment))]


def changed(world: World, edit: str) -> tuple[list[int], list[int]]:
    """Roots that an edit ended, and those that it made."""
    moment = world.times[edit]
    before, after = set(roots_at(world, moment - 0.001)), set(roots_at(world, moment))
    return sorted(before - after), sorted(after - before)
