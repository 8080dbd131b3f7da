"""Sources and a cluster that the fault tests share, since starting them takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults.harness import Cluster, cluster, comparable_files, driver, export_arguments, write_sources, zygote
from support.http_server import FileServer


@dataclass
class World:
    """A slow server of sources, and the files of undisturbed exports of them."""

    folder: Path
    server: FileServer
    cluster: Cluster
    _expected: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def export_arguments(self, kind: str, folder: Path, *options: Any) -> list[str]:
        """Create a folder and return the command line of an export into it."""
        folder.mkdir(exist_ok=True)
        return export_arguments(kind, folder / "out", self.server.url, *options)

    def expected(self, kind: str) -> dict[str, bytes]:
        """Return the files of an undisturbed export; it runs once per kind."""
        if kind not in self._expected:
            folder = self.folder / f"expected-{kind}"
            self.cluster.ensure()
            arguments = self.export_arguments(kind, folder, "--cluster", self.cluster.address)
            process = driver(arguments, self.folder / f"{kind}.log")
            assert process.wait() == 0, process.output
            self._expected[kind] = comparable_files(folder)
        return self._expected[kind]


@pytest.fixture(scope="session", autouse=True)
def _end_of_zygote() -> Iterator[None]:
    """End the process that others are forked from after all of its users, whichever files a worker of xdist runs."""
    yield
    if zygote.cache_info().currsize:
        zygote().end()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Serve the sources, and run a cluster of two workers for undisturbed exports."""
    folder = tmp_path_factory.mktemp("faults")
    write_sources(folder / "sources")
    with (
        FileServer(folder / "sources", latency_s=0.05) as server,
        cluster(folder / "cluster") as running,
    ):
        yield World(folder, server, running)


@pytest.fixture(autouse=True)
def _fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the server's latency to `LATENCY_S` of the test's module, if it has one."""
    if request.module.__dict__.get("LATENCY_S") is None:
        yield
        return
    world = request.getfixturevalue("world")
    before, world.server.latency_s = world.server.latency_s, request.module.LATENCY_S
    yield
    world.server.latency_s = before
