"""`connect` makes a client from words, files and addresses, and refuses other values."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from imagery_dask.cluster import connect

LOCAL = "cluster: distributed.LocalCluster\n"
# Any free port. None would take 8787, with a warning (an error in tests) if another cluster uses it.
PORT = "127.0.0.1:0"
IN_PROCESS = (
    LOCAL + f"arguments: {{processes: false, n_workers: 1, threads_per_worker: 1, dashboard_address: '{PORT}'}}\n"
)


def write(folder: Path, text: str, name: str = "cluster.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"), connect(tmp_path / "absent.yaml"):
        pass


@pytest.mark.parametrize("spec", ["locl", "host:8786", "cluster.txt", " "])
def test_unknown_words_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="'local', a YAML file, a scheduler file") as caught, connect(spec):
        pass
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(workers: int) -> None:
    with (
        pytest.raises(ValueError, match=f"workers must be a whole number from 1; got {workers}"),
        connect("local", workers),
    ):
        pass


def test_a_number_of_workers_is_refused_for_running_clusters(tmp_path: Path) -> None:
    with LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=PORT) as cluster:
        address = cluster.scheduler_address
        file = write(tmp_path, f"address: {address}\n")
        with Client(cluster) as own:
            for spec in (cluster, own, None, address, str(file)):
                with pytest.raises(ValueError, match="that are started here; .* Got 3: leave it out"), connect(spec, 3):
                    pass


def test_asynchronous_clusters_and_clients_are_refused() -> None:
    async def asynchronous() -> None:
        async with LocalCluster(processes=False, n_workers=1, dashboard_address=PORT, asynchronous=True) as cluster:
            with pytest.raises(TypeError, match="start it without asynchronous=True"), connect(cluster):
                pass
            async with Client(cluster, asynchronous=True) as client:
                with pytest.raises(TypeError, match="start it without asynchronous=True"), connect(client):
                    pass

    asyncio.run(asynchronous())


def square(value: int) -> int:
    return value * value


def statuses(*owners: Any) -> list[str]:
    return [getattr(owner.status, "name", owner.status) for owner in owners]


def test_the_default_is_threads_of_this_process_closed_afterwards() -> None:
    threads = (os.cpu_count() or 1) + 1
    with connect(workers=threads) as client:
        assert client.submit(square, 12).result() == 144
        assert sum(client.nthreads().values()) == threads
        assert all(address.startswith("inproc://") for address in client.nthreads())
        cluster = client.cluster
    assert statuses(client, cluster) == ["closed", "closed"]


def test_a_file_starts_a_cluster_and_closes_it(tmp_path: Path) -> None:
    with connect(write(tmp_path, IN_PROCESS), workers=3) as client:
        client.wait_for_workers(3, timeout=30)
        assert client.submit(square, 5).result() == 25
        cluster = client.cluster
    assert statuses(client, cluster) == ["closed", "closed"]


def test_running_clusters_and_clients_are_used_and_left_open(tmp_path: Path) -> None:
    with LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=PORT) as cluster:
        scheduler_file = write(tmp_path, json.dumps({"address": cluster.scheduler_address}), "scheduler.json")
        for spec in (cluster, cluster.scheduler_address, str(scheduler_file), scheduler_file):
            with connect(spec) as client:
                assert client.submit(square, 3).result() == 9
                assert client.scheduler.address == cluster.scheduler_address
            assert statuses(client, cluster) == ["closed", "running"]
        with Client(cluster) as own:
            for spec in (own, None):  # None takes the current client
                with connect(spec) as client:
                    assert client is own
                assert statuses(own, cluster) == ["running", "running"]


def test_a_cluster_without_workers_times_out(tmp_path: Path) -> None:
    with (
        LocalCluster(processes=False, n_workers=0, dashboard_address=PORT) as cluster,
        pytest.raises(TimeoutError, match="No worker came within 0.05 s.*queue"),
        connect(cluster, wait_s=0.05),
    ):
        pass
