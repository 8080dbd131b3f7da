"""An export on a real dask-gateway server, through the cluster file that the project ships."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask
import numpy as np
import psutil
import pytest
import yaml
from cluster.gateway import GatewayServer, GatewayUnavailable, gateway_server
from integration.stores import files_of
from support.http_server import FileServer
from support.settings import Configure
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import connect, dashboard_address

pytestmark = pytest.mark.long

CONFIG = Path(__file__).parents[2] / "cluster_configs" / "gateway.yaml"
SHAPE = (96, 64, 48)
OFFSET = (-32, 64, 16)
QUICKLY_S = 15.0
USER = "somebody"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    pytest.importorskip("dask_gateway", reason="needs dask-gateway: pip install 'imagery_dask[gateway]'")
    try:
        with gateway_server(tmp_path_factory.mktemp("gateway")) as running:
            yield running
    except GatewayUnavailable as reason:
        pytest.skip(str(reason))


def login(password: str) -> dask.config.set:
    """Set user and password in dask's configuration, since other users may read a cluster file."""
    return dask.config.set({"gateway.auth.kwargs": {"username": USER, "password": password}})


@pytest.fixture
def authenticated(server: GatewayServer) -> Iterator[None]:
    with login(server.password):
        yield


@pytest.fixture
def cluster_file(tmp_path: Path, server: GatewayServer) -> Path:
    """Fill in the shipped cluster file for this machine."""
    return filled_in(tmp_path, address=server.address, auth="basic")


def filled_in(folder: Path, **arguments: Any) -> Path:
    content = yaml.safe_load(CONFIG.read_text())
    content["workers"] = 2
    content["arguments"] |= arguments
    file = folder / "gateway.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def clusters_of(server: GatewayServer) -> list[Any]:
    """Return the clusters that run on the gateway."""
    from dask_gateway import Gateway

    async def list_clusters() -> list[Any]:
        async with Gateway(server.address, auth="basic", asynchronous=True) as gateway:
            return list(await gateway.list_clusters())

    with login(server.password):
        return asyncio.run(list_clusters())


def check_nothing_runs(server: GatewayServer) -> None:
    assert clusters_of(server) == []
    deadline = time.monotonic() + 20
    # A worker's process ends shortly after its cluster.
    while list((server.folder / "clusters").iterdir()):
        assert time.monotonic() < deadline, "the folder of a cluster was not deleted"
        time.sleep(0.1)


@pytest.mark.usefixtures("authenticated")
def test_workers_run_on_the_gateway_and_end_with_the_connection(server: GatewayServer, cluster_file: Path) -> None:
    with connect(cluster_file, wait_s=60) as client:
        (cluster,) = clusters_of(server)
        assert client.scheduler.address == cluster.scheduler_address
        client.wait_for_workers(2, timeout=60)
        assert len(set(client.run(lambda: __import__("os").getpid()).values())) == 2
    check_nothing_runs(server)


@pytest.mark.usefixtures("authenticated")
def test_an_export_on_the_gateway_equals_a_local_one(
    tmp_path: Path, server: GatewayServer, cluster_file: Path, configure: Configure
) -> None:
    configure("export.block_bytes", 2**17)
    image = coordinate_volume(SHAPE, OFFSET, np.uint8)
    ids = random_labels(SHAPE, n=40)
    client = ImageryClient(
        image_source=write_volume(tmp_path / "em", image, voxel_offset=OFFSET),
        segmentation_source=write_volume(tmp_path / "ids", ids, voxel_offset=OFFSET, layer_type="segmentation"),
    )
    data = client.dataset([OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]])
    options: dict[str, Any] = {"chunks": (32, 32, 16), "progress": False}
    local = to_zarr(data, tmp_path / "local.zarr", **options)
    remote = to_zarr(data, tmp_path / "remote.zarr", cluster=str(cluster_file), **options)
    assert remote.ok
    assert local.blocks == remote.blocks > 2
    assert files_of(tmp_path / "local.zarr") == files_of(tmp_path / "remote.zarr")
    check_nothing_runs(server)


@pytest.mark.usefixtures("authenticated")
def test_the_dashboard_is_behind_the_gateways_proxy(server: GatewayServer, cluster_file: Path) -> None:
    pytest.importorskip("bokeh", reason="needs bokeh: pip install 'imagery_dask[gateway]'")
    with connect(cluster_file, workers=1, wait_s=60) as client:
        address = dashboard_address(client)
        assert address is not None
        assert re.fullmatch(re.escape(server.address) + "/clusters/[0-9a-f]+/status", address)
        with urlopen(address, timeout=10) as page:
            assert page.status == 200


@pytest.mark.usefixtures("authenticated")
def test_a_cluster_is_ended_when_the_work_fails(server: GatewayServer, cluster_file: Path) -> None:
    with pytest.raises(ZeroDivisionError), connect(cluster_file, workers=1, wait_s=60) as client:
        client.submit(divmod, 1, 0, pure=False).result()
    check_nothing_runs(server)


def refused(file: Path, error: type[Exception] = ConnectionError) -> str:
    """Return the error of a connection; check that it is one line, names the file and comes soon."""
    started = time.monotonic()
    with pytest.raises(error) as caught, connect(file, wait_s=30):
        pass
    assert time.monotonic() - started < QUICKLY_S
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))
    return str(caught.value)


def test_a_wrong_password_is_a_permission_error(server: GatewayServer, cluster_file: Path) -> None:
    with login("another password"):
        text = refused(cluster_file, PermissionError)
    assert f"the gateway {server.address} refuses this user (401 Unauthorized); check 'auth'" in text
    assert "another password" not in text
    check_nothing_runs(server)


@pytest.mark.usefixtures("authenticated")
def test_unknown_or_incomplete_authentication_is_refused(server: GatewayServer, tmp_path: Path) -> None:
    text = refused(filled_in(tmp_path, address=server.address, auth="absent"), ImportError)
    assert "the authentication 'absent' needs the package 'absent'" in text
    text = refused(filled_in(tmp_path, address=server.address, auth="basic.absent"), ImportError)
    assert "'auth' is basic, kerberos, jupyterhub" in text
    with dask.config.set({"gateway.auth.kwargs": {}}):
        text = refused(filled_in(tmp_path, address=server.address, auth="jupyterhub"), ValueError)
    assert "No JupyterHub API token" in text


@pytest.mark.usefixtures("authenticated")
def test_an_option_that_the_server_does_not_offer_is_refused(server: GatewayServer, tmp_path: Path) -> None:
    file = filled_in(tmp_path, address=server.address, auth="basic", worker_cores=3)
    assert "GatewayCluster did not start: Unknown fields ['worker_cores']" in refused(file, ValueError)
    check_nothing_runs(server)


@pytest.mark.usefixtures("authenticated")
@pytest.mark.parametrize("address", ["gateway.example", "ftp://gateway.example", "http://"])
def test_invalid_addresses_are_refused(tmp_path: Path, address: str) -> None:
    text = refused(filled_in(tmp_path, address=address, auth="basic"), ValueError)
    assert "'address' must be https://HOST[:PORT][/PATH]" in text


@pytest.mark.usefixtures("authenticated")
def test_unreachable_servers_are_named(tmp_path: Path, server: GatewayServer) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        text = refused(filled_in(tmp_path, address=f"http://127.0.0.1:{port}", auth="basic"))
        assert f"the gateway http://127.0.0.1:{port} cannot be reached: " in text
        file = filled_in(tmp_path, address=server.address, auth="basic", proxy_address=f"127.0.0.1:{port}")
        text = refused(file)
        assert f"proxy for schedulers ('proxy_address') gateway://127.0.0.1:{port}: nothing listens there" in text
    text = refused(filled_in(tmp_path, address="http://no-such-host.invalid", auth="basic"))
    assert "the gateway http://no-such-host.invalid cannot be reached: " in text
    check_nothing_runs(server)


@pytest.mark.usefixtures("authenticated")
def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "no answer within 5 s" in refused(filled_in(tmp_path, address=address, auth="basic"))


@pytest.mark.usefixtures("authenticated")
def test_a_server_that_is_not_a_gateway_is_named(tmp_path: Path, server: GatewayServer) -> None:
    with FileServer(tmp_path) as files:
        assert "is not a dask-gateway server" in refused(filled_in(tmp_path, address=files.url, auth="basic"))
    text = refused(filled_in(tmp_path, address=f"{server.address}/elsewhere", auth="basic"))
    assert "is not a dask-gateway server (404: Not Found); check the path" in text
    text = refused(filled_in(tmp_path, address=server.address.replace("http:", "https:"), auth="basic"))
    assert "cannot be reached: " in text


def test_a_server_leaves_no_process_behind(tmp_path: Path) -> None:
    try:
        with gateway_server(tmp_path) as running:
            file = filled_in(tmp_path, address=running.address, auth="basic", shutdown_on_close=False)
            with login(running.password), connect(file, workers=1, wait_s=60) as client:
                workers = [psutil.Process(pid) for pid in client.run(lambda: __import__("os").getpid()).values()]
            assert len(clusters_of(running)) == 1
    except GatewayUnavailable as reason:
        pytest.skip(str(reason))
    assert workers
    assert not any(worker.is_running() for worker in workers)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(running.address.rpartition(":")[2])), timeout=2)
