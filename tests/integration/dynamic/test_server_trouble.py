"""Graph servers that fail, temporarily or not, or do not run. Errors are one line and do not contain the token."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import requests
from support.dynamic import (
    TOKEN,
    WHOLE,
    assert_clean,
    client_of,
    closed_port,
    cut,
    expected,
    first_times,
    roots_at,
    served,
)
from support.settings import Configure

from imagery_dask import ImageryClient
from imagery_dask.config import config
from imagery_dask.errors import (
    ServerError,
    SourceError,
    SourceNotFoundError,
)  # fmt: skip
from imagery_dask.testing.cave import CaveServer, Fault, World

PASSING = {
    "503": Fault(status=503, body=b"overloaded"),
    "502": Fault(status=502),
    "500": Fault(status=500, body=b'{"message": "try again"}'),
    "429": Fault(status=429, headers={"Retry-After": "0"}),
    "429 without a time": Fault(status=429),
    "429 with a date": Fault(status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "cut to nothing": Fault(cut=0),
    "cut": Fault(cut=20),
    "corrupt": Fault(corrupt=True),
    "short": Fault(status=200, body=b"x" * 16),
    "empty": Fault(status=200),
    "a page": Fault(status=200, body=b"<html>gateway</html>"),
    "slow": Fault(delay_s=0.2),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
@pytest.mark.parametrize("way", ["blocks", "leaves", "a check", "opening"])
def test_passing_failures_do_not_change_voxels(
    server: CaveServer, world: World, small_lazy_blocks: None, no_pauses: None, configure: Configure,
    fault: Fault, way: str,
) -> None:  # fmt: skip
    endpoint = {"blocks": "roots_binary", "leaves": "leaves", "a check": "is_latest_roots", "opening": "info"}[way]
    configure("graph.processes", 1)
    moment = int(world.times["split_1"])
    if fault.corrupt and way == "leaves":
        fault = Fault(status=200, body=b'{"leaf_ids": [1, 2')
    server.faults = first_times(endpoint, config.get("graph.attempts") - 1, fault)
    keep: Any = roots_at(world, moment)[:2] if way in ("leaves", "a check") else "all"
    array = cut(client_of(server), world, WHOLE, timestamp=moment, root_ids=keep)
    np.testing.assert_array_equal(array.compute(scheduler="sync"), expected(world, moment, WHOLE, keep=keep))
    if not fault.delay_s:
        assert server.count(endpoint) >= config.get("graph.attempts")


def test_different_failures_in_succession_do_not_change_voxels(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_pauses: None
) -> None:
    array = cut(client, world, WHOLE)
    kinds = [PASSING[name] for name in ("503", "cut", "429", "corrupt")]
    server.faults = lambda name, n: (
        kinds[n - 1] if name == "roots_binary" and n < config.get("graph.attempts") else None
    )
    server.reset()
    np.testing.assert_array_equal(array, expected(world, world.times["split_1"], WHOLE))


def test_the_wait_of_retry_after_is_respected(server: CaveServer, client: ImageryClient, world: World) -> None:
    server.faults = first_times("roots_binary", 1, Fault(status=429, headers={"Retry-After": "0.6"}))
    started = time.monotonic()
    cut(client, world).compute()
    assert 0.6 <= time.monotonic() - started < 15


@pytest.mark.parametrize("status", [500, 503, 400, 418])
@pytest.mark.parametrize("way", ["blocks", "leaves"])
def test_lasting_failures_name_path_and_status(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_pauses: None,
    configure: Configure, status: int, way: str,
) -> None:  # fmt: skip
    configure("graph.processes", 1)
    root = roots_at(world, world.times["split_1"])[0]
    array = cut(client, world, WHOLE, root_ids=[root] if way == "leaves" else "all")
    endpoint, path = ("leaves", f"/node/{root}/leaves") if way == "leaves" else ("roots_binary", "/roots_binary")
    server.faults = first_times(endpoint, 10**9, Fault(status=status, body=b"the reason of the server"))
    server.reset()
    with pytest.raises(ServerError, match=rf"/segmentation/api/v1/table/demo_v1{path}.*HTTP {status}") as failed:
        array.compute(scheduler="sync")
    assert "the reason of the server" in str(failed.value)
    assert server.url in str(failed.value)
    assert_clean(failed.value)
    assert server.count(endpoint) == (config.get("graph.attempts") if status in (500, 503) else 1)
    server.faults = None
    np.testing.assert_array_equal(  # no wrong answer was cached
        array, expected(world, world.times["split_1"], WHOLE, keep=[root] if way == "leaves" else "all")
    )


@pytest.mark.parametrize("fault", ["cut", "corrupt", "short", "a page"])
def test_lasting_wrong_answers_are_an_error(
    server: CaveServer, client: ImageryClient, world: World, no_pauses: None, fault: str
) -> None:
    array = cut(client, world)
    server.faults = first_times("roots_binary", 10**9, PASSING[fault])
    server.reset()
    with pytest.raises(ServerError, match="roots_binary") as failed:
        array.compute()
    assert_clean(failed.value)
    assert server.count("roots_binary") == config.get("graph.attempts")


def test_an_unknown_table_is_named(server: CaveServer) -> None:
    for source in (server.segmentation_source.replace("demo_v1", "other_v2"),):
        with pytest.raises(SourceNotFoundError, match=r"no graph 'other_v2' at http://127") as refused:
            ImageryClient(segmentation_source=source, auth_token=TOKEN)
        assert_clean(refused.value)


@pytest.mark.parametrize("source", ["graphene://https://host", "graphene://nowhere/table/t"])
def test_invalid_paths_are_refused(source: str) -> None:
    with pytest.raises(SourceError, match="is not the path of a dynamic segmentation"):
        ImageryClient(segmentation_source=source, auth_token=TOKEN)


def test_a_table_that_disappears_is_an_error(server: CaveServer, client: ImageryClient, world: World) -> None:
    array = cut(client, world)
    server.faults = lambda name, n: Fault(status=404, body=b"gone") if name == "roots_binary" else None
    with pytest.raises(SourceError, match="roots_binary") as failed:
        array.compute()
    assert_clean(failed.value)


def test_an_unreachable_server_is_named(no_pauses: None) -> None:
    address = closed_port()
    with pytest.raises(ServerError, match=rf"{address} does not answer") as failed:
        ImageryClient(segmentation_source=f"graphene://{address}/segmentation/table/t", auth_token=TOKEN)
    assert_clean(failed.value)
    assert len(str(failed.value)) < 700


def test_a_server_that_stops_is_named(world: World, no_pauses: None) -> None:
    with served(world) as server:
        client = client_of(server, timestamp=world.times["split_1"])
        array = cut(client, world)
        listed = roots_at(world, world.times["split_1"])[:1]
        server.close()
        server._server.server_close()
        for ask in (array.compute, lambda: cut(client, world, root_ids=listed)):
            with pytest.raises(ServerError, match="does not answer") as failed:
                ask()
            assert_clean(failed.value)


def test_a_server_that_never_answers_is_a_timeout(
    server: CaveServer, client: ImageryClient, world: World, no_pauses: None, configure: Configure
) -> None:
    configure("graph.timeout_s", (1, 0.05))
    configure("graph.attempts", 2)
    server.faults = lambda name, n: Fault(delay_s=30) if name == "roots_binary" else None
    with pytest.raises(ServerError, match="roots_binary") as failed:
        cut(client, world).compute()
    assert_clean(failed.value)


def test_a_server_of_another_kind_is_an_error(server: CaveServer, no_pauses: None) -> None:
    for body in (b"<html>hello</html>", b"{}", b"[1, 2]", b"null", b'{"graph": null}'):
        server.faults = lambda name, n, body=body: Fault(status=200, body=body)  # type: ignore[misc]
        with pytest.raises(SourceError, match="demo_v1") as failed:
            client_of(server)
        assert_clean(failed.value)


def answering(server: CaveServer, **changes: Any) -> None:
    """Let a server answer a changed info of its graph."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    info = requests.get(f"{server.url}/segmentation/table/demo_v1/info", headers=headers, timeout=20).json()
    graph = info["graph"] | changes.pop("graph", {})
    body = json.dumps(info | {"graph": graph} | changes).encode()
    server.faults = lambda name, n: Fault(status=200, body=body) if name == "info" else None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph": {"ocdbt_seg": True}}, "no OCDBT store with the pieces at .*watershed/ocdbt/base/"),
        ({"graph": {"ocdbt_kvstore_spec": {"driver": "zip"}}}, "graph.ocdbt_kvstore_spec .* driver 'ocdbt'"),
        ({"graph": {"ocdbt_path": "middleauth+https://other/em"}}, "ocdbt_path .* asks for a token to be sent"),
        ({"graph": {"chunk_size": [0, 32, 16]}}, "graph.chunk_size"),
        ({"data_type": "float32"}, "data_type of its info is 'float32'"),
        ({"data_dir": "middleauth+https://other/em"}, "data_dir .* asks for a token to be sent to another server"),
        ({"data_dir": None}, "data_dir .* is no path"),
    ],
    ids=str,
)
def test_infos_of_graphs_that_cannot_be_read_are_refused(
    server: CaveServer, changes: dict[str, Any], message: str
) -> None:
    answering(server, **changes)
    with pytest.raises(SourceError, match=message):
        ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)


def test_the_address_of_a_graph_without_its_scheme_is_refused_with_the_right_spelling(server: CaveServer) -> None:
    address = server.segmentation_source
    assert address.startswith("graphene://")
    with pytest.raises(SourceError) as refused:
        ImageryClient(segmentation_source=address.removeprefix("graphene://"))
    assert address in str(refused.value)
