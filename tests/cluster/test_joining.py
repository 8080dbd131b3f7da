"""Connecting to running clusters, with and without TLS, and to addresses at which no scheduler answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import dask
import pytest
from cluster.certificates import Certificates, certificates
from cluster.processes import dask_processes

from imagery_dask.cluster import connect

pytestmark = pytest.mark.long

QUICKLY_S = 15.0


def refused(spec: Any, error: type[Exception] = ConnectionError) -> str:
    """Return the error of a connection; check that it is one line and comes soon."""
    started = time.monotonic()
    with pytest.raises(error) as caught, connect(spec, wait_s=30):
        pass
    assert time.monotonic() - started < QUICKLY_S
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with dask_processes(tmp_path_factory.mktemp("plain")) as file:
        yield file


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory, ours: Certificates) -> Iterator[Path]:
    with dask_processes(tmp_path_factory.mktemp("tls"), *ours.options) as file:
        yield file


def address(scheduler_file: Path) -> str:
    import json

    return str(json.loads(scheduler_file.read_text())["address"])


def cluster_file(folder: Path, text: str) -> Path:
    path = folder / "tls.yaml"
    path.write_text(text)
    return path


def test_connect_accepts_a_scheduler_file_an_address_and_a_cluster_file(plain: Path, tmp_path: Path) -> None:
    scheduler_address = address(plain)
    specs = [plain, scheduler_address, cluster_file(tmp_path, f"address: {scheduler_address}\n")]
    for spec in specs:
        with connect(spec, wait_s=30) as client:
            assert client.submit(pow, 12, 2, pure=False).result() == 144
    with connect(cluster_file(tmp_path, f"address: {plain}\n"), wait_s=30) as client:
        assert client.scheduler.address == scheduler_address


def test_a_cluster_file_may_name_tls_certificates(encrypted: Path, ours: Certificates, tmp_path: Path) -> None:
    scheduler_address = address(encrypted)
    assert scheduler_address.startswith("tls://")
    with connect(cluster_file(tmp_path, f"address: {scheduler_address}\n{ours.yaml}"), wait_s=30) as client:
        assert client.submit(pow, 12, 2, pure=False).result() == 144


def test_dasks_configuration_may_name_tls_certificates(encrypted: Path, ours: Certificates) -> None:
    configuration = {
        "distributed.comm.tls.ca-file": str(ours.ca),
        "distributed.comm.tls.client": {"cert": str(ours.cert), "key": str(ours.key)},
    }
    with dask.config.set(configuration), connect(encrypted, wait_s=30) as client:
        assert client.submit(pow, 12, 2, pure=False).result() == 144


def test_an_encrypted_scheduler_needs_certificates(encrypted: Path) -> None:
    assert "needs certificates: a cluster file" in refused(encrypted, ValueError)


def test_certificates_of_another_authority_are_refused(
    encrypted: Path, ours: Certificates, theirs: Certificates, tmp_path: Path
) -> None:
    text = f"address: {address(encrypted)}\n"
    message = refused(cluster_file(tmp_path, text + theirs.yaml))
    assert "the scheduler's certificate is not signed by this CA" in message
    assert address(encrypted) in message
    # The client trusts the scheduler, but the scheduler does not trust the client.
    mixed = Certificates(ours.ca, theirs.cert, theirs.key)
    message = refused(cluster_file(tmp_path, text + mixed.yaml))
    assert "the scheduler refuses this client's certificate" in message
    # The key belongs to another certificate.
    mixed = Certificates(ours.ca, ours.cert, theirs.key)
    assert "cannot be loaded: KEY VALUES MISMATCH" in refused(cluster_file(tmp_path, text + mixed.yaml), ValueError)


def test_the_wrong_scheme_is_named(plain: Path, encrypted: Path, ours: Certificates, tmp_path: Path) -> None:
    scheduler_address = address(plain).replace("tcp://", "tls://")
    assert "does not use TLS" in refused(cluster_file(tmp_path, f"address: {scheduler_address}\n{ours.yaml}"))
    assert "an encrypted scheduler begins with tls://" in refused(address(encrypted).replace("tls://", "tcp://"))


def test_an_address_without_a_scheduler_is_named() -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert "nothing listens there" in refused(f"tcp://127.0.0.1:{port}")
    assert "there is no host 'no-such-host.invalid'" in refused("tcp://no-such-host.invalid:8786")


def test_a_server_that_hangs_up_is_named(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert "closed at once" in refused(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize("spec", ["tcp://", "tcp://host", "tcp://host:many", "tls://host:0", "tcp://:99999"])
def test_invalid_addresses_are_refused(spec: str) -> None:
    assert "is not the address of a scheduler (" in refused(spec, ValueError)


def test_missing_and_invalid_scheduler_files_are_refused(tmp_path: Path) -> None:
    assert "There is no scheduler file" in refused(tmp_path / "absent.json", FileNotFoundError)
    for text in ("", "words", "[]", "{}", '{"address": 5}'):
        (tmp_path / "scheduler.json").write_text(text)
        assert "is not a scheduler file" in refused(tmp_path / "scheduler.json", ValueError)


def test_a_scheduler_file_of_an_ended_scheduler_is_named(tmp_path: Path) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        file = tmp_path / "scheduler.json"
        file.write_text(f'{{"address": "tcp://127.0.0.1:{free.getsockname()[1]}"}}')
        message = refused(file)
    assert str(file) in message
    assert "nothing listens there" in message


def test_a_scheduler_without_workers_is_a_timeout(tmp_path: Path) -> None:
    with (
        dask_processes(tmp_path, workers=0) as file,
        pytest.raises(TimeoutError, match=r"No worker came within 0.5 s \(--wait\). Start workers \(dask worker"),
        connect(file, wait_s=0.5),
    ):
        pass


def test_started_clusters_are_encrypted_on_request_and_on_all_interfaces(ours: Certificates, tmp_path: Path) -> None:
    text = "cluster: distributed.LocalCluster\n"
    text += "arguments: {threads_per_worker: 1, dashboard_address: '127.0.0.1:0', host: %s}\nworkers: 1\n"
    for host, security in (("127.0.0.1", ours.yaml), ("127.0.0.1", "security: temporary\n"), ("0.0.0.0", "")):
        with connect(cluster_file(tmp_path, text % host + security), wait_s=30) as client:
            assert client.scheduler.address.startswith("tls://")
            assert client.submit(pow, 12, 2, pure=False).result() == 144
