"""A world with a CAVE server, a client of its segmentation, and settings that split small volumes into many blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.dynamic import client_of, impatient, served
from support.settings import Configure
from tblib import pickling_support

from imagery_dask import ImageryClient
from imagery_dask.sources.graph.root_cache import RootCache
from imagery_dask.testing.cave import CaveServer, World, make_world

# dask does this once its multiprocessing scheduler is used: errors then pickle with their causes and tracebacks.
pickling_support.install()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One world for all tests that do not edit the graph."""
    return make_world(tmp_path_factory.mktemp("dynamic"))


@pytest.fixture
def server(world: World) -> Iterator[CaveServer]:
    """A new server of the world, which this process has not contacted yet."""
    with served(world) as server:
        yield server


@pytest.fixture
def client(server: CaveServer, world: World) -> ImageryClient:
    """A client whose default timestamp is the first split."""
    return client_of(server, timestamp=world.times["split_1"])


@pytest.fixture
def small_lazy_blocks(configure: Configure) -> None:
    """Set lazy blocks to one graph chunk each, of which the whole volume has 32."""
    configure("lazy.block_bytes", 32 * 32 * 16 * 8)


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the cache of roots, as if each block ran in a process of its own."""
    monkeypatch.setattr("imagery_dask.sources.graph.roots._cache_of", lambda query: RootCache())


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between attempts at a request."""
    impatient(monkeypatch)
