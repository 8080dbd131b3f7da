"""Helpers for tests of dynamic segmentations: expected voxels, clients, cutouts, and clearing of caches."""

from __future__ import annotations

import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imagery_dask import ImageryClient
from imagery_dask.sources import handle
from imagery_dask.sources.graph import roots
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.sources.requests import credentials, throttle
from imagery_dask.testing.cave import CaveServer, Fault, World
from support.ports import free_port

#: A token that occurs nowhere else in the tests.
TOKEN = "feedface0123456789abcdef00c0ffee"

# Not imported by attribute, because the package has a function of the same name as this module.
graph_servers = sys.modules["imagery_dask.sources.graph.graph_server"]

Box = tuple[Sequence[int], Sequence[int]]

# Boxes in the volume of `tests/integration/dynamic`.
WHOLE: Box = ((0, 0, 0), (128, 128, 32))
SOME: Box = ((5, 9, 3), (77, 70, 29))
BOXES: list[Box] = [
    WHOLE,
    ((5, 9, 3), (77, 70, 29)),  # across graph chunks
    ((31, 31, 15), (33, 33, 17)),  # around the corner shared by eight graph chunks
    ((40, 40, 4), (64, 64, 12)),  # within one graph chunk
    ((-20, 100, -3), (40, 150, 20)),  # partly outside the volume
]


def forget() -> None:
    """Clear this process's caches: volumes, roots, leaves, connections and tokens."""
    handle._volumes.clear()
    forget_tables()
    graph_servers._graph_server.cache_clear()
    forget_roots()
    throttle.forget_slots()
    credentials._tokens.clear()


def forget_roots() -> None:
    """Clear this process's caches of roots and leaves."""
    roots._caches.clear()
    roots._leaf_table.cache_clear()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses between attempts in this process."""
    monkeypatch.setattr(graph_servers, "pause_s", lambda attempt, error=None: 0.0)


@contextmanager
def served(world: World, **options: Any) -> Iterator[CaveServer]:
    """Serve a world, with empty caches before and after."""
    forget()
    with CaveServer(world, **{"tokens": (TOKEN,), **options}) as server:
        yield server
    forget()


def at(timestamp: float) -> datetime:
    """Return unix seconds as a datetime."""
    return datetime.fromtimestamp(timestamp, UTC)


def bounds(world: World, box: Box, mip: int = 0) -> NDArray[np.int64]:
    """Return the absolute bounds, in voxels of a mip, of a box relative to the volume's first voxel."""
    offset = np.array(world.voxel_offset) // (2**mip, 2**mip, 1)
    return np.array(box) + offset


def resolution(world: World, mip: int = 0) -> tuple[int, int, int]:
    """Return the resolution of a mip of the segmentation."""
    x, y, z = world.resolution
    return x * 2**mip, y * 2**mip, z


def crop(voxels: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return a box of a volume, with 0 outside of the volume."""
    low, high = np.array(box)
    out = np.zeros(high - low, dtype=voxels.dtype)
    first, last = np.clip(low, 0, voxels.shape), np.clip(high, 0, voxels.shape)
    if (first < last).all():
        out[tuple(map(slice, first - low, last - low))] = voxels[tuple(map(slice, first, last))]
    return out


def expected(
    world: World, moment: float, box: Box, *, mip: int = 0, keep: Any = "all", stop_layer: int | None = None
) -> NDArray[np.uint64]:
    """Return the ids of a box at a time, computed from the graph; all are 0 before the graph was created."""
    if keep is None:
        return crop(world.mips[mip], box)
    ids = world.roots_volume(moment, mip)
    ids = np.where(ids >> np.uint64(56) == world.graph.layout.n_layers, ids, np.uint64(0))
    chosen = ids != 0 if isinstance(keep, str) else np.isin(ids, np.array(list(keep), np.uint64)) & (ids != 0)
    values = ids if stop_layer is None else world.roots_volume(moment, mip, stop_layer)
    return crop(np.where(chosen, values, np.uint64(0)), box)


def distinct(world: World, box: Box | None = None) -> int:
    """Return the number of supervoxels of a box, or of the volume."""
    voxels = world.supervoxels if box is None else crop(world.supervoxels, box)
    return len(np.unique(voxels[voxels != 0]))


def roots_at(world: World, moment: float) -> list[int]:
    """Return the roots at a time."""
    return [int(root) for root in np.unique(world.graph.roots(world.graph.supervoxels, moment))]


def changed(world: World, edit: str) -> tuple[list[int], list[int]]:
    """Return the roots that an edit replaced, and the roots that it created."""
    moment = world.times[edit]
    before, after = set(roots_at(world, moment - 0.001)), set(roots_at(world, moment))
    return sorted(before - after), sorted(after - before)


def client_of(server: CaveServer, **options: Any) -> ImageryClient:
    """Return a client of the server's segmentation, with a valid token."""
    return ImageryClient(
        segmentation_source=server.segmentation_source, **{"auth_token": TOKEN, "outside": "fill", **options}
    )


def cut(client: ImageryClient, world: World, box: Box = SOME, mip: int = 0, **options: Any) -> Any:
    """Return the cutout of a box in voxels of a mip."""
    return client.segmentation_cutout(
        bounds(world, box, mip), mip=mip, resolution=resolution(world, mip), **{"convert_to_int64": False, **options}
    )


def at_mip(box: Box, mip: int) -> Box:
    """Return a box in voxels of a coarser mip."""
    return tuple(np.floor_divide(corner, (2**mip, 2**mip, 1)).tolist() for corner in box)  # type: ignore[return-value]


def squeezed(voxels: Any) -> np.ndarray:
    """Return voxels without axes of length 1, like a cutout."""
    return np.asarray(voxels).squeeze()


def moments(world: World) -> list[float]:
    """Return, for each edit, a second before it and its time."""
    return [moment for edit in world.times.values() for moment in (edit - 1, edit)]


@contextmanager
def secrets_file(server: CaveServer) -> Iterator[Path]:
    """Write the token to the secrets file of CloudVolume, and remove the file after the block."""
    folder = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{server.url.removeprefix('http://')}-cave-secret.json"
    file.write_text(json.dumps({"token": TOKEN}))
    try:
        yield file
    finally:
        file.unlink()


def first_times(endpoint: str, times: int, fault: Fault) -> Callable[[str, int], Fault | None]:
    """Return a fault hook that applies a fault to the first ``times`` requests to an endpoint."""
    return lambda name, n: fault if name == endpoint and n <= times else None


def whole_of(error: BaseException) -> str:
    """Return everything that an error contains: message, causes, traceback and pickle."""
    shown = "".join(traceback.format_exception(error))
    causes, cause = [], error.__cause__
    while cause is not None:
        causes.append(repr(cause))
        cause = cause.__cause__
    return shown + repr(error) + str(error) + "".join(causes) + pickle.dumps(error).decode("latin1")


def assert_clean(error: BaseException) -> None:
    """Assert that an error's message is one line, and that the token is nowhere in the error."""
    assert "\n" not in str(error).strip()
    assert TOKEN not in whole_of(error)


def closed_port() -> str:
    """Return a URL at which no server listens."""
    return f"http://127.0.0.1:{free_port()}"
