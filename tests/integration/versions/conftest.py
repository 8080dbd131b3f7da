"""A world, and a version store of it with four materialization versions and a bare moment."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.dynamic import impatient, served
from support.version_stores import make_store

from imagery_dask import open_versions
from imagery_dask.sources import handle
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.testing.cave import CaveServer, World, make_world
from imagery_dask.versions.opened_versions import VersionStore


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a last edit, a day after the others, of the two smallest objects."""
    world = make_world(tmp_path_factory.mktemp("versions"))
    roots, sizes = np.unique(world.graph.roots(world.graph.supervoxels), return_counts=True)
    first, second = roots[np.argsort(sizes, kind="stable")][:2].tolist()
    world.times["small"] = world.times["split_2"] + 86_400
    world.graph.merge(first, second, world.times["small"])
    return world


@pytest.fixture
def server(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[CaveServer]:
    """A new server of the world, which this process has not contacted yet."""
    impatient(monkeypatch)
    with served(world) as server:
        yield server


@pytest.fixture(scope="session")
def moments(world: World) -> dict[str, tuple[float, int | None]]:
    """Return the moment and materialization version of each table of the store."""
    whole = {name: math.ceil(time) for name, time in world.times.items()}
    return {
        "1": (math.ceil(world.versions[1].timestamp), 1),
        "2024-01-03T00-00-00Z": (whole["split_1"], None),
        "2": (math.ceil(world.versions[2].timestamp), 2),
        "3": (math.ceil(world.versions[3].timestamp), 3),
        "4": (whole["small"] + 60, 4),
    }


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory, world: World, moments: dict[str, tuple[float, int | None]]) -> Path:
    """A store of the segmentation alone, for tests that only read."""
    return make_store(tmp_path_factory.mktemp("store") / "out", world, moments, stop_layers=[2])


@pytest.fixture(scope="session")
def with_image(
    tmp_path_factory: pytest.TempPathFactory, world: World, moments: dict[str, tuple[float, int | None]]
) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "with_image", world, moments, image=True)


@pytest.fixture
def store(out: Path, no_network: None) -> VersionStore:
    """The store, opened by a process that cannot connect to anything."""
    return open_versions(out)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything connects."""
    handle._volumes.clear()
    forget_tables()

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a connection to {address} was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
