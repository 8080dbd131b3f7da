"""Sources and clusters that the tests of faults share: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults.harness import Cluster, cluster, driver, export, settled, write_sources, zygote
from support.http_server import FileServer


@dataclass
class World:
    """A slow server of sources, and what exports of them leave that nothing happened to."""

    folder: Path
    server: FileServer
    cluster: Cluster
    _left: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def export(self, kind: str, folder: Path, *more: Any) -> list[str]:
        """Arguments of an export into a folder, which is made."""
        folder.mkdir(exist_ok=True)
        return export(kind, folder / "out", self.server.url, *more)

    def expected(self, kind: str) -> dict[str, bytes]:
        """Everything that an export leaves which nothing happens to."""
        if kind not in self._left:
            folder = self.folder / f"expected-{kind}"
            self.cluster.ensure()
            process = driver(self.export(kind, folder, "--cluster", self.cluster.address), self.folder / f"{kind}.log")
            assert process.wait() == 0, process.said
            self._left[kind] = settled(folder)
        return self._left[kind]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Serve the sources, with a cluster of two workers for exports that nothing happens to."""
    folder = tmp_path_factory.mktemp("faults")
    write_sources(folder / "sources")
    with (
        FileServer(folder / "sources", latency_s=0.05) as server,
        cluster(folder / "cluster") as running,
    ):
        yield World(folder, server, running)
    zygote().end()


@pytest.fixture(autouse=True)
def _fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """Serve at once where a test does not need a slow source."""
    if request.module.__dict__.get("LATENCY_S") is None:
        yield
        return
    world = request.getfixturevalue("world")
    before, world.server.latency_s = world.server.latency_s, request.module.LATENCY_S
    yield
    world.server.latency_s = before
