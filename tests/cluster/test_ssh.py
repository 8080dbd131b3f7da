"""Exports over SSH with a real sshd, through the shipped cluster file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from cluster.sshd import Sshd, SshUnavailable, sshd
from integration.stores import files_of
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import connect
from imagery_dask.errors import VersionMismatchError

pytestmark = pytest.mark.long

CONFIG = Path(__file__).parents[2] / "cluster_configs" / "ssh.yaml"
ROOT = Path(__file__).parents[2]
SHAPE = (64, 64, 32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    try:
        with sshd(tmp_path_factory.mktemp("sshd")) as running:
            yield running
    except SshUnavailable as reason:
        pytest.skip(str(reason))


def cluster_file(folder: Path, server: Sshd, **arguments: Any) -> Path:
    """Fill in the shipped cluster file for this machine."""
    content = yaml.safe_load(CONFIG.read_text())
    content |= {"worker_memory": "1GiB", "environment": {"COLOR": "green"}}
    python = folder / "python"  # a wrapper, as for an environment that must be activated first
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    content["arguments"] |= {
        "hosts": ["127.0.0.1"] * 3,
        "connect_options": {
            "port": server.port, "client_keys": [str(server.key)], "known_hosts": str(server.known_hosts)
        },
        "remote_python": str(python),
        "scheduler_options": {"port": 0, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
    } | arguments  # fmt: skip
    content["arguments"]["worker_options"] |= {"local_directory": str(folder / "scratch"), "host": "127.0.0.1"}
    file = folder / "ssh.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_an_export_over_ssh_equals_a_local_one(tmp_path: Path, server: Sshd) -> None:
    image = coordinate_volume(SHAPE, (0, 0, 0), np.uint8)
    client = ImageryClient(image_source=write_volume(tmp_path / "em", image))
    data = client.image_cutout([[0, 0, 0], SHAPE])
    options: dict[str, Any] = {"chunks": (32, 32, 16), "progress": False}
    to_zarr(data, tmp_path / "local.zarr", **options)
    with connect(cluster_file(tmp_path, server), wait_s=60) as remote:
        remote.wait_for_workers(2, timeout=60)
        answers = remote.run(lambda: (os.environ["COLOR"], "SSH_CONNECTION" in os.environ))
        assert list(answers.values()) == [("green", True)] * 2
        limits = [worker["memory_limit"] for worker in remote.scheduler_info(n_workers=-1)["workers"].values()]
        assert limits == [2**30] * 2
        assert to_zarr(data, tmp_path / "remote.zarr", cluster=remote, **options).ok
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "remote.zarr", path="0", mode="r")[...].T, image)
    assert files_of(tmp_path / "local.zarr") == files_of(tmp_path / "remote.zarr")


def test_a_worker_that_is_killed_is_started_again(tmp_path: Path, server: Sshd) -> None:
    with connect(cluster_file(tmp_path, server), wait_s=60) as client:
        client.wait_for_workers(2, timeout=60)
        nannies = set(client.run(os.getppid).values())
        assert len(nannies) == 2
        os.kill(min(nannies), signal.SIGKILL)  # the process that ssh started
        deadline = time.monotonic() + 60
        while len(running := set(client.run(os.getppid, on_error="ignore").values())) < 2 or running == nannies:
            assert time.monotonic() < deadline, running
            time.sleep(0.2)
        assert running & nannies == {max(nannies)}


def test_workers_may_be_fewer_than_hosts(tmp_path: Path, server: Sshd) -> None:
    with connect(cluster_file(tmp_path, server), workers=1, wait_s=60) as client:
        assert len(client.nthreads()) == 1


def test_a_worker_with_other_code_is_refused(tmp_path: Path, server: Sshd) -> None:
    package = tmp_path / "other" / "imagery_dask"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    python = tmp_path / "other" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/other exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with (
        pytest.raises(VersionMismatchError, match="other code of imagery_dask than this process: .*No module named"),
        connect(cluster_file(tmp_path, server, remote_python=str(python)), wait_s=60),
    ):
        pass


def test_connection_errors_of_ssh_are_shown_in_one_line(tmp_path: Path, server: Sshd) -> None:
    import asyncssh

    (tmp_path / "nobody").write_text("")
    other = tmp_path / "other_key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(other)
    good = {"port": server.port, "client_keys": [str(server.key)], "known_hosts": str(server.known_hosts)}
    for options, message in (
        (good | {"known_hosts": str(tmp_path / "nobody")}, "Host key is not trusted"),
        (good | {"client_keys": [str(other)]}, "Permission denied"),
        (good | {"port": 1}, "Connect call failed"),
    ):
        file = cluster_file(tmp_path, server, connect_options=options)
        with pytest.raises(ValueError, match="SSHCluster did not start: ") as caught, connect(file, wait_s=30):
            pass
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
