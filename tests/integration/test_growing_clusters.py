"""`workers="auto"` on a real cluster, whose source is a real server that serves as much as it says."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import LocalCluster
from support.http_server import Fault, FileServer
from support.settings import Configure
from support.volumes import random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import starting
from imagery_dask.errors import ImageryDaskError

SHAPE, CHUNK = (96, 96, 64), (16, 16, 16)
BLOCKS = 144
MOST = 8
FILE = """\
cluster: distributed.LocalCluster
arguments: {processes: false, dashboard_address: "127.0.0.1:0"}
adapt: {minimum: 1, maximum: %d}
"""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ids() -> Any:
    return random_labels(SHAPE, n=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ids: Any) -> Path:
    folder = tmp_path_factory.mktemp("growing")
    write_volume(folder / "ids", ids, chunk_size=CHUNK, layer_type="segmentation")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of workers that clusters are asked for, in order."""
    numbers: list[int] = []
    scale = LocalCluster.scale

    def counting(cluster: LocalCluster, n: int) -> Any:
        if n:  # not when it closes
            numbers.append(n)
        return scale(cluster, n)

    monkeypatch.setattr(LocalCluster, "scale", counting)
    return numbers


@pytest.fixture
def cluster(tmp_path: Path, configure: Configure) -> Path:
    """Return a cluster file; blocks are counted for a moment only."""
    for name, value in {"run.measure_s": 0.3, "run.ask_s": 0.0, "run.batch_blocks": 1}.items():
        configure(name, value)
    configure("requests.first_pause_s", 0.001)
    file = tmp_path / "cluster.yaml"
    file.write_text(FILE % MOST)
    return file


def one_at_a_time(seconds: float) -> Callable[[str, int], None]:
    """Return the faults of a server that answers one request after another."""
    busy = threading.Lock()

    def faults(path: str, number: int) -> None:
        del path, number
        with busy:
            time.sleep(seconds)

    return faults


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    with FileServer(folder) as server:
        yield server


def export(server: FileServer, out: Path, cluster: Any, **options: Any) -> Any:
    client = ImageryClient(segmentation_source=f"precomputed://{server.url}/ids")
    data = client.segmentation_cutout([(0, 0, 0), SHAPE])
    return to_zarr(
        data, out, chunks=CHUNK, levels=1, block_mib=1e-6, cluster=cluster,
        **{"progress": False, "workers": "auto"} | options,
    )  # fmt: skip


def written(out: Path) -> Any:
    return zarr.open_group(out, mode="r")["0"][:].T


def test_a_server_of_one_request_at_a_time_gets_few_workers(
    server: FileServer, tmp_path: Path, cluster: Path, asked: list[int], ids: Any
) -> None:
    server.faults = one_at_a_time(0.03)
    report = export(server, tmp_path / "o.zarr", cluster)
    assert report.blocks == report.done == BLOCKS
    assert asked == [4]
    (note,) = [note for note in report.notes if note.startswith("Workers: ")]
    assert "the source or the store is the limit" in note
    np.testing.assert_array_equal(written(tmp_path / "o.zarr"), ids)


def test_a_server_that_only_waits_gets_all_workers(
    server: FileServer, tmp_path: Path, cluster: Path, asked: list[int], ids: Any
) -> None:
    server.latency_s = 0.25
    export(server, tmp_path / "o.zarr", cluster)
    assert asked == [4, 8]
    np.testing.assert_array_equal(written(tmp_path / "o.zarr"), ids)


def test_a_server_that_asks_for_fewer_requests_gets_no_more_workers(
    server: FileServer, tmp_path: Path, cluster: Path, asked: list[int], ids: Any
) -> None:
    server.faults = lambda path, number: Fault(status=429) if number == 1 and "info" not in path else None
    report = export(server, tmp_path / "o.zarr", cluster)
    assert asked == []
    assert report.counts.throttled >= BLOCKS
    assert any("'too many requests'" in note for note in report.notes)
    np.testing.assert_array_equal(written(tmp_path / "o.zarr"), ids)


def test_an_interrupted_export_resumes_with_few_workers(
    server: FileServer, tmp_path: Path, cluster: Path, asked: list[int], ids: Any
) -> None:
    server.faults = one_at_a_time(0.02)

    def stop(report: Any) -> None:
        if report.done >= BLOCKS // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(server, tmp_path / "o.zarr", cluster, progress=stop)
    assert set(asked) <= {4, 8}
    asked.clear()
    report = export(server, tmp_path / "o.zarr", cluster)
    assert report.before >= BLOCKS // 2
    assert report.done == BLOCKS
    assert set(asked) <= {4}
    np.testing.assert_array_equal(written(tmp_path / "o.zarr"), ids)


def test_processes_that_were_added_and_are_killed_are_replaced(
    server: FileServer,
    tmp_path: Path,
    cluster: Path,
    asked: list[int],
    ids: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.latency_s = 0.1
    pids: list[int] = []
    monkeypatch.setattr(starting, "first_count", lambda least, most: 1)
    scale = LocalCluster.scale

    def noting(started: LocalCluster, n: int) -> Any:
        pids.extend(nanny.pid for nanny in started.workers.values())
        return scale(started, n)

    monkeypatch.setattr(LocalCluster, "scale", noting)

    def kill(report: Any) -> None:
        if pids and asked and not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    killed: list[int] = []
    report = export(server, tmp_path / "o.zarr", "local", max_workers=2, progress=kill)
    assert (report.done, asked, len(killed)) == (BLOCKS, [2], 1)
    np.testing.assert_array_equal(written(tmp_path / "o.zarr"), ids)


@pytest.mark.parametrize(
    ("cluster_name", "options", "message"),
    [
        (None, {}, "needs a cluster: 'local' or a cluster file"),
        ("tcp://127.0.0.1:1", {}, "for clusters that are started here"),
        ("local", {"max_workers": 0}, "max_workers must be a whole number from 1"),
        ("local", {"workers": 2, "max_workers": 3}, "is for workers='auto'"),
        (None, {"workers": 2, "max_workers": 3}, "is for workers='auto'"),
    ],
)
def test_a_number_that_cannot_follow_the_work_is_refused(
    server: FileServer, tmp_path: Path, cluster_name: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, ImageryDaskError), match=message):
        export(server, tmp_path / "o.zarr", cluster_name, **options)
    assert not (tmp_path / "o.zarr").exists()
