"""Tokens: where they are sought, what a refusal shows, and that they are sent to their own server only."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from distributed import Client
from integration.stores import labels
from support.dynamic import SOME, TOKEN, assert_clean, bounds, client_of, cut, expected, roots_at, whole_of
from support.settings import Configure

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import (
    AccessRefusedError,
    ServerError,
)  # fmt: skip
from imagery_dask.testing.cave import CaveServer, Fault, World


def test_a_missing_token_names_where_tokens_are_sought(server: CaveServer) -> None:
    server.reset()
    with pytest.raises(AccessRefusedError, match="No token for 127.0.0.1") as refused:
        ImageryClient(segmentation_source=server.segmentation_source)
    text = str(refused.value)
    host = server.url.removeprefix("http://")
    secrets = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    for origin in ("auth_token", "CAVEclient", "$CAVE_TOKEN", str(secrets / f"{host}-cave-secret.json"),
                  str(secrets / "cave-secret.json")):  # fmt: skip
        assert origin in text
    assert "\n" not in text
    assert server.count() == 0


@pytest.mark.parametrize("name", ["{host}-cave-secret.json", "cave-secret.json", "chunkedgraph-secret.json"])
@pytest.mark.parametrize("form", ["object", "text"])
def test_tokens_are_read_from_files(server: CaveServer, world: World, name: str, form: str) -> None:
    folder = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name.format(host=server.url.removeprefix("http://"))
    file.write_text(json.dumps({"token": TOKEN} if form == "object" else TOKEN))
    try:
        client = ImageryClient(segmentation_source=server.segmentation_source, timestamp=world.times["split_1"])
        np.testing.assert_array_equal(cut(client, world), expected(world, world.times["split_1"], SOME))
    finally:
        file.unlink()


def test_a_token_is_read_from_the_environment(
    server: CaveServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    client = ImageryClient(segmentation_source=server.segmentation_source, timestamp=world.times["split_1"])
    np.testing.assert_array_equal(cut(client, world), expected(world, world.times["split_1"], SOME))


def test_an_explicit_token_replaces_that_of_the_environment(
    server: CaveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", "abcdef")
    assert client_of(server).segmentation_source
    with pytest.raises(AccessRefusedError, match="HTTP 401"):
        client_of(server, auth_token="fedcba")


def test_a_login_in_netrc_does_not_replace_the_token(
    server: CaveServer, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By default, requests replaces the Authorization header by the login for the host in ~/.netrc."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client = client_of(server, timestamp=world.times["split_1"])
    np.testing.assert_array_equal(cut(client, world), expected(world, world.times["split_1"], SOME))


def test_a_wrong_token_is_refused_and_not_shown(server: CaveServer) -> None:
    wrong = "badbadbad0123456789"
    server.reset()
    with pytest.raises(AccessRefusedError, match=r"refused by 127\.0\.0\.1:\d+.*HTTP 401.*CAVE_TOKEN") as refused:
        client_of(server, auth_token=wrong)
    assert wrong not in whole_of(refused.value)
    assert "\n" not in str(refused.value)
    assert server.count() == 1


def test_a_token_that_was_refused_is_not_kept(server: CaveServer, client: ImageryClient, world: World) -> None:
    """A client with a wrong token does not break the arrays of other clients."""
    array = cut(client, world)
    with pytest.raises(AccessRefusedError):
        client_of(server, auth_token="badbadbad0123456789")
    np.testing.assert_array_equal(array, expected(world, world.times["split_1"], SOME))


def test_workers_without_a_token_name_where_they_sought_it(
    server: CaveServer, client: ImageryClient, world: World, processes: Client, tmp_path: Path
) -> None:
    volume = client.segmentation_volume()
    with pytest.raises(AccessRefusedError, match=r"No token.*CAVE_TOKEN") as refused:
        to_zarr(volume, tmp_path / "out.zarr", cluster=processes, progress=False)
    assert_clean(refused.value)
    with pytest.raises(AccessRefusedError, match=r"No token.*CAVE_TOKEN"):
        processes.compute(volume.data + 0).result()


@pytest.mark.parametrize("status", [401, 403, 302])
def test_refusals_are_not_repeated(server: CaveServer, client: ImageryClient, world: World, status: int) -> None:
    headers = {"Location": f"{server.url}/login"} if status == 302 else {}
    server.faults = lambda name, n: Fault(status=status, headers=headers) if name == "roots_binary" else None
    server.reset()
    with pytest.raises(AccessRefusedError, match=rf"HTTP {status}") as refused:
        cut(client, world).compute()
    assert_clean(refused.value)
    assert server.count() == 1


@pytest.mark.parametrize("faulty", ["info", "roots_binary", "is_latest_roots"])
def test_a_reason_that_repeats_the_token_is_not_shown(
    server: CaveServer, world: World, no_pauses: None, faulty: str
) -> None:
    """Some services repeat the headers of a failed request in their answer."""
    moment = int(world.times["split_1"])
    reason = f'{{"headers": {{"Authorization": "Bearer {TOKEN}"}}}}'.encode()
    root = roots_at(world, moment)[0]
    server.faults = lambda name, n: Fault(status=500, body=reason) if name == faulty else None
    with pytest.raises(ServerError) as failed:
        cut(client_of(server), world, timestamp=moment, root_ids=[root]).compute()
    assert_clean(failed.value)


@pytest.mark.long
def test_the_token_is_in_no_pickle_text_log_or_file(
    server: CaveServer, world: World, tmp_path: Path, processes: Client, caplog: pytest.LogCaptureFixture,
    small_blocks: int, small_lazy_blocks: None, monkeypatch: pytest.MonkeyPatch, configure: Configure,
) -> None:  # fmt: skip
    """Search pickles, graphs, reprs, names, attributes, logs and written files."""
    caplog.set_level(logging.DEBUG)
    moment = int(world.times["split_1"])
    client = ImageryClient(client=server.client(), timestamp=moment)
    configure("graph.processes", 1)
    box = bounds(world, SOME) * (2, 2, 1)
    roots = roots_at(world, moment)[:2]
    arrays = [
        client.segmentation_cutout(box, scale_to_bounds=False),
        client.segmentation_cutout(box, root_ids=roots),
        client.split_segmentation_cutout(box)[roots[0]],
        client.segmentation_volume().data,
        client.remap(client.segmentation_volume(root_ids=None).data),
        client.image_cutout(box),
    ]
    data = client.dataset(box)
    texts = [repr(client), str(client), repr(data), repr(client._settings), data._repr_html_()]
    texts += [repr(client.split_segmentation_cutout(box)), str({name: data[name].attrs for name in data})]
    for array in arrays:
        texts += [array.name, repr(array), array._repr_html_(), str(dict(array.dask)), repr(array.dask)]
        for pickled in (pickle.dumps(array), cloudpickle.dumps(array)):
            texts.append(pickled.decode("latin1"))
    texts.append(pickle.dumps(data).decode("latin1"))
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    processes.run(os.environ.update, {})
    to_zarr(data, tmp_path / "local.zarr", chunks=(32, 32, 16), cluster="local", workers=1, progress=False)
    np.testing.assert_array_equal(labels(tmp_path / "local.zarr")[::2, ::2], expected(world, moment, SOME))
    client.save_segmentation_masks(str(tmp_path / "mask"), box, root_ids=roots)
    for file in tmp_path.rglob("*"):
        texts.append(str(file))
        texts += [file.read_bytes().decode("latin1")] if file.is_file() else []
    texts += [record.getMessage() for record in caplog.records]
    assert len(texts) > 40
    assert not any(TOKEN in text for text in texts)


def test_the_client_does_not_pickle_its_token(server: CaveServer) -> None:
    """A function that uses a client is pickled with the client when it is sent to a cluster."""
    for client in (client_of(server), ImageryClient(client=server.client())):
        try:
            pickled = cloudpickle.dumps(client)
        except (TypeError, pickle.PicklingError):
            continue
        assert TOKEN.encode() not in pickled


def test_the_token_is_sent_to_its_own_server_only(server: CaveServer, world: World) -> None:
    """It is not sent to another CAVE server."""
    client_of(server)
    with CaveServer(world, tokens=(TOKEN,)) as other:
        other.reset()
        with pytest.raises(AccessRefusedError, match="No token"):
            ImageryClient(segmentation_source=other.segmentation_source)
        assert other.count() == 0


def test_the_token_is_not_on_the_command_line_of_workers(server: CaveServer, client: ImageryClient) -> None:
    """Every user of a machine sees command lines, whereas environments are visible to their owner only."""
    from imagery_dask.cluster import connect

    with connect("local", 1) as cluster:
        (pid,) = cluster.run(os.getpid).values()
        command = Path(f"/proc/{pid}/cmdline")
        if sys.platform == "linux":
            assert TOKEN.encode() not in command.read_bytes()
        assert TOKEN not in str(cluster.scheduler_info())
