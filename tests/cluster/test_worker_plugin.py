"""The setup of workers before their first block, in worker processes."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from cluster.processes import dask_processes, process, wait_for
from distributed import Client

from imagery_dask.cluster import connect
from imagery_dask.cluster.worker_plugin import NAME, WorkerSetup, prepare_workers
from imagery_dask.errors import VersionMismatchError
from imagery_dask.sources.requests.credentials import forget_token, remember_token


def threads_of(dask_worker: Any) -> dict[str, Any]:
    """Return the thread limits of a worker's libraries, and whether the plugin is installed."""
    import numcodecs.blosc
    import zarr

    return {
        "zarr": zarr.config.get("threading.max_workers"),
        "blosc": numcodecs.blosc.set_nthreads(1),
        "rayon": os.environ["RAYON_NUM_THREADS"],
        "omp": os.environ["OMP_NUM_THREADS"],
        "plugins": NAME in dask_worker.plugins,
    }


def cluster_file(folder: Path, threads: int, lines: str = "") -> Path:
    path = folder / "cluster.yaml"
    path.write_text(
        "cluster: distributed.LocalCluster\nworkers: 1\n"
        f"arguments: {{threads_per_worker: {threads}, host: 127.0.0.1, dashboard_address: '127.0.0.1:0'}}\n{lines}"
    )
    return path


@pytest.mark.long
def test_libraries_use_no_more_threads_than_their_worker(tmp_path: Path) -> None:
    with connect(cluster_file(tmp_path, 3)) as client:
        (threads,) = client.run(threads_of).values()
        assert threads == {"zarr": 3, "blosc": 1, "rayon": "3", "omp": "1", "plugins": True}
        client.cluster.scale(2)  # a worker that starts later
        client.wait_for_workers(2, timeout=60)
        deadline = time.monotonic() + 30
        while not all(client.run(lambda dask_worker: NAME in dask_worker.plugins).values()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert {answer["rayon"] for answer in client.run(threads_of).values()} == {"3"}


@pytest.mark.long
def test_thread_limits_set_by_the_user_are_kept(tmp_path: Path) -> None:
    with connect(cluster_file(tmp_path, 1, "environment: {RAYON_NUM_THREADS: 2}\n")) as client:
        (threads,) = client.run(threads_of).values()
        assert threads["rayon"] == "2"


def test_thread_limits_of_this_process_are_not_changed() -> None:
    before = dict(os.environ)
    with connect(workers=2) as client:
        assert NAME not in client.run(lambda dask_worker: list(dask_worker.plugins)).popitem()[1]
    assert dict(os.environ) == before


def test_thread_limits_of_this_process_are_not_changed_over_tcp(tmp_path: Path) -> None:
    before = dict(os.environ)
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "cluster: distributed.LocalCluster\nworkers: 1\narguments: {processes: false, protocol: 'tcp://', "
        "threads_per_worker: 1, host: 127.0.0.1, dashboard_address: '127.0.0.1:0'}\n"
    )
    with connect(path) as client:
        assert client.run(lambda dask_worker: list(dask_worker.plugins)).popitem()[1].count(NAME) == 1
    assert dict(os.environ) == before


def fake_package(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_workers_with_other_versions_are_refused_by_name(tmp_path: Path) -> None:
    fake_package(tmp_path / "fake", "zarr", "3.0.99")
    fake_package(tmp_path / "fake", "cloud_volume", "11.0.0")
    path = os.pathsep.join([str(tmp_path / "fake"), str(Path(__file__).parents[2])])
    with (
        dask_processes(tmp_path, env={"PYTHONPATH": path}) as file,
        pytest.raises(
            VersionMismatchError, match="The cluster runs other versions than this process: worker tcp://"
        ) as e,
        connect(file, wait_s=60),
    ):
        pass
    message = str(e.value)
    assert "zarr 3.0.99 (here " in message
    assert "cloud-volume 11.0.0 (here " in message
    assert "numpy" not in message
    assert "Install the same environment on all of them" in message
    assert "\n" not in message


@pytest.mark.long
def test_a_late_worker_with_other_versions_exits(tmp_path: Path) -> None:
    import sys

    fake_package(tmp_path / "fake", "zarr", "3.0.99")
    path = os.pathsep.join([str(tmp_path / "fake"), str(Path(__file__).parents[2])])
    with dask_processes(tmp_path) as file, connect(file, wait_s=60) as client:
        (good,) = client.nthreads()
        with process(
            tmp_path, "late", sys.executable, "-m", "dask", "worker", "--scheduler-file", str(file), "--nthreads", "1",
            "--host", "127.0.0.1", env={"PYTHONPATH": path},
        ):  # fmt: skip
            log = tmp_path / "late.log"
            wait_for(log, log)
            deadline = time.monotonic() + 60
            while "runs other versions than the client: zarr 3.0.99" not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
            while list(client.nthreads()) != [good]:
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)


def test_the_plugin_contains_no_credentials(tmp_path: Path) -> None:
    server = "graphene://https://cave.invalid/table"
    before = remember_token(server, "5ec2e7")
    try:
        assert b"5ec2e7" not in pickle.dumps(WorkerSetup({"zarr": "3"}, ("host", 1)))
    finally:
        forget_token(server, before)


@pytest.mark.long
def test_preparing_workers_is_fast(tmp_path: Path) -> None:
    with dask_processes(tmp_path, workers=2) as file, Client(address_of(file), set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        client.run(lambda: __import__("imagery_dask.arrays.lazy"))  # as the first block does
        started = time.monotonic()
        prepare_workers(client)
        assert time.monotonic() - started < 10
        seconds = []
        for _ in range(5):
            started = time.monotonic()
            prepare_workers(client)  # a client that was prepared before
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 0.05


def address_of(file: Path) -> str:
    import json

    return str(json.loads(file.read_text())["address"])
