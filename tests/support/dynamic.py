"""Helpers of the tests of dynamic segmentations: an oracle, clients and cutouts, and forgetting what was looked up."""

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
from imagery_dask.sources import credentials, handle, roots, throttle
from imagery_dask.testing.cave import CaveServer, Fault, World
from support.ports import free_port

#: No other text in the tests contains it.
TOKEN = "feedface0123456789abcdef00c0ffee"

# The package has a function of the same name as this module.
graph_servers = sys.modules["imagery_dask.sources.graph_server"]

Box = tuple[Sequence[int], Sequence[int]]

# Boxes of the world of `tests/integration/dynamic`.
WHOLE: Box = ((0, 0, 0), (128, 128, 32))
SOME: Box = ((5, 9, 3), (77, 70, 29))
BOXES: list[Box] = [
    WHOLE,
    ((5, 9, 3), (77, 70, 29)),  # across graph chunks
    ((31, 31, 15), (33, 33, 17)),  # around a corner of eight
    ((40, 40, 4), (64, 64, 12)),  # within one
    ((-20, 100, -3), (40, 150, 20)),  # partly outside
]


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


def client_of(server: CaveServer, **options: Any) -> ImageryClient:
    """Return a client of the server's segmentation, which has its token."""
    return ImageryClient(segmentation_source=server.segmentation_source, **{"auth_token": TOKEN, **options})


def cut(client: ImageryClient, world: World, box: Box = SOME, mip: int = 0, **options: Any) -> Any:
    """Return the cutout of a box in voxels of a mip."""
    return client.segmentation_cutout(
        bounds(world, box, mip), mip=mip, resolution=resolution(world, mip), **{"convert_to_int64": False, **options}
    )


def at_mip(box: Box, mip: int) -> Box:
    """Box in voxels of a mip, of the same place."""
    return tuple(np.floor_divide(corner, (2**mip, 2**mip, 1)).tolist() for corner in box)  # type: ignore[return-value]


def squeezed(voxels: Any) -> np.ndarray:
    """Drop axes of length 1, as cutouts do."""
    return np.asarray(voxels).squeeze()


def moments(world: World) -> list[float]:
    """Each edit's own time, and a second before."""
    return [moment for edit in world.times.values() for moment in (edit - 1, edit)]


@contextmanager
def secrets_file(server: CaveServer) -> Iterator[Path]:
    """Put the token where processes look for it."""
    folder = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{server.url.removeprefix('http://')}-cave-secret.json"
    file.write_text(json.dumps({"token": TOKEN}))
    try:
        yield file
    finally:
        file.unlink()


def first_times(endpoint: str, times: int, fault: Fault) -> Callable[[str, int], Fault | None]:
    """Return faults of a server: this one, the first times that an endpoint is asked."""
    return lambda name, n: fault if name == endpoint and n <= times else None


def whole_of(error: BaseException) -> str:
    """Everything that an error shows or carries: its text, its causes', its traceback, its pickle."""
    shown = "".join(traceback.format_exception(error))
    causes, each = [], error.__cause__
    while each is not None:
        causes.append(repr(each))
        each = each.__cause__
    return shown + repr(error) + str(error) + "".join(causes) + pickle.dumps(error).decode("latin1")


def assert_clean(error: BaseException) -> None:
    """One line that does not tell the token."""
    assert "\n" not in str(error).strip()
    assert TOKEN not in whole_of(error)


def closed_port() -> str:
    """Return an address at which nothing answers."""
    return f"http://127.0.0.1:{free_port()}"
