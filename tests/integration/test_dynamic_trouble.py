"""Dynamic segmentations when something is wrong. Errors are one line, name the remedy, and do not tell the token."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from distributed import Client
from integration.stores import labels, written
from support.dynamic import (
    TOKEN,
    Box,
    bounds,
    changed,
    expected,
    impatient,
    roots_at,
    served,
)  # fmt: skip
from support.ports import free_port
from support.settings import Configure
from support.streams import without_dashboard
from tblib import pickling_support

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cli import main
from imagery_dask.client.cave import open_cave
from imagery_dask.config import config
from imagery_dask.errors import (
    AccessRefusedError,
    BlockFailedError,
    OutdatedRootsError,
    ServerError,
    SourceError,
    SourceNotFoundError,
)  # fmt: skip
from imagery_dask.testing.cave import CaveServer, Fault, World, make_world

# dask does this once its multiprocessing scheduler is used: errors then pickle with what they were raised from.
pickling_support.install()

WHOLE: Box = ((0, 0, 0), (128, 128, 32))
SOME: Box = ((5, 9, 3), (77, 70, 29))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("trouble"))


@pytest.fixture
def server(world: World) -> Iterator[CaveServer]:
    with served(world) as server:
        yield server


@pytest.fixture
def client(server: CaveServer, world: World) -> ImageryClient:
    return client_of(server, timestamp=world.times["split_1"])


@pytest.fixture
def small_lazy_blocks(configure: Configure) -> None:
    configure("lazy.block_bytes", 32 * 32 * 16 * 8)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)


def client_of(server: CaveServer, **options: Any) -> ImageryClient:
    return ImageryClient(segmentation_source=server.segmentation_source, **{"auth_token": TOKEN, **options})


def cut(client: ImageryClient, world: World, box: Box = SOME, **options: Any) -> Any:
    return client.segmentation_cutout(bounds(world, box), mip=0, convert_to_int64=False, **options)


def whole_of(error: BaseException) -> str:
    """Everything that an error shows or carries: its text, its causes', its traceback, its pickle."""
    shown = "".join(traceback.format_exception(error))
    causes, each = [], error.__cause__
    while each is not None:
        causes.append(repr(each))
        each = each.__cause__
    return shown + repr(error) + str(error) + "".join(causes) + pickle.dumps(error).decode("latin1")


def assert_clean(error: BaseException) -> None:
    """One line that does not tell the token."""
    assert "\n" not in str(error).strip()
    assert TOKEN not in whole_of(error)


def closed_port() -> str:
    return f"http://127.0.0.1:{free_port()}"


# ------------------------------------------------------------------------------------------------------ the moment


@pytest.mark.parametrize("call", ["client", "cutout", "masks", "volume", "dataset", "unique_roots", "root_at", "remap"])
@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        (4e9, ValueError),
        ("2100-01-01", ValueError),
        ("soon", ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        ([2024], TypeError),
        (True, TypeError),
    ],
)
def test_what_is_no_moment_is_refused_everywhere(
    client: ImageryClient, server: CaveServer, world: World, moment: Any, kind: type[Exception], call: str
) -> None:
    box = bounds(world, SOME)
    server.reset()
    calls: dict[str, Callable[[], Any]] = {
        "client": lambda: client_of(server, timestamp=moment),
        "cutout": lambda: client.segmentation_cutout(box, timestamp=moment),
        "masks": lambda: client.split_segmentation_cutout(box, timestamp=moment),
        "volume": lambda: client.segmentation_volume(timestamp=moment),
        "dataset": lambda: client.dataset(box, timestamp=moment),
        "unique_roots": lambda: client.unique_roots(box, timestamp=moment),
        "root_at": lambda: client.root_at(box, timestamp=moment),
        "remap": lambda: client.remap([1], timestamp=moment),
    }
    with pytest.raises(kind, match="timestamp") as refused:
        calls[call]()
    assert_clean(refused.value)
    assert server.count() == 0


def test_versions_that_cannot_be(server: CaveServer) -> None:
    cave = server.client()
    with pytest.raises(ValueError, match=r"Version 9 of datastack 'demo_datastack' does not exist; there are 1, 2, 3"):
        ImageryClient(client=cave, version=9)
    with pytest.raises(ValueError, match=r"version=2 needs a CAVEclient"):
        client_of(server, version=2)
    with pytest.raises(ValueError, match=r"no timestamp beside it"):
        ImageryClient(client=cave, version=2, timestamp=1_704_067_300)
    client = ImageryClient(client=cave)
    with pytest.raises(ValueError, match=r"Version 0 .* does not exist"):
        client.segmentation_volume(version=0)
    with pytest.raises(ValueError, match=r"no timestamp beside it"):
        client.segmentation_volume(version=2, timestamp="now")
    with pytest.raises(ValueError, match=r"version=2 needs a CAVEclient"):
        client_of(server).segmentation_volume(version=2)
    for version in ("2", 2.0, True):
        with pytest.raises(TypeError, match="version must be a whole number"):
            ImageryClient(client=cave, version=version)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [0, 5, -1, 2.0, "2", True])
def test_layers_that_the_graph_does_not_have(client: ImageryClient, world: World, layer: Any) -> None:
    with pytest.raises(ValueError, match=r"stop_layer is a layer of the graph, from 1 \(supervoxels\) to 4"):
        cut(client, world, stop_layer=layer)


@pytest.mark.parametrize(
    "options",
    [{"stale_roots": "ignore"}, {"stale_roots": None}, {"max_requests": 0}, {"max_requests": 1.5},
     {"max_requests": True}],
)  # fmt: skip
def test_options_of_the_client(server: CaveServer, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        client_of(server, **options)


# -------------------------------------------------------------------------------------------------------- root ids


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([1.0], TypeError),
        ([8.6e17], TypeError),
        (np.array([1.5]), TypeError),
        (["864691135000000001"], TypeError),
        ([None], TypeError),
        (864691135000000001, TypeError),
        ([-1], ValueError),
        ([2**64], ValueError),
        ([True], ValueError),
        ("some", ValueError),
    ],
)
def test_root_ids_that_are_none(
    client: ImageryClient, server: CaveServer, world: World, ids: Any, kind: type[Exception]
) -> None:
    server.reset()
    for call in (client.segmentation_cutout, client.split_segmentation_cutout, client.dataset, client.unique_roots):
        with pytest.raises(kind, match="root_ids must be"):
            call(bounds(world, SOME), root_ids=ids)
    assert server.count() == 0


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 5, 255])
def test_ids_of_another_layer_are_refused_without_a_request(
    client: ImageryClient, server: CaveServer, world: World, layer: int
) -> None:
    nodes = {1: int(world.graph.supervoxels[5]), 2: int(world.graph.roots(world.graph.supervoxels[:1], None, 2)[0])}
    other = nodes.get(layer, (layer << 56) + 7)
    server.reset()
    with pytest.raises(ValueError, match=rf"{other}.* no root ids of table 'demo_v1'") as refused:
        cut(client, world, root_ids=[roots_at(world, world.times["split_1"])[0], other])
    assert not isinstance(refused.value, OutdatedRootsError)
    assert_clean(refused.value)
    assert server.count() == 0


def test_a_root_of_another_table_is_refused(client: ImageryClient, server: CaveServer, world: World) -> None:
    """It looks like one of ours; the server has never had it."""
    stranger = (4 << 56) + 2**40
    server.reset()
    with pytest.raises(ValueError, match=rf"{stranger}.*") as refused:
        cut(client, world, root_ids=[stranger])
    assert_clean(refused.value)
    assert server.count("is_latest_roots") == 1  # the server's answer, which no repetition changes


def test_outdated_roots_are_named_with_their_successors(
    client: ImageryClient, server: CaveServer, world: World
) -> None:
    (first, second), (merged,) = changed(world, "merge_1")
    (whole,), halves = changed(world, "split_1")
    current = roots_at(world, world.times["split_1"])[3]
    for call in (client.segmentation_cutout, client.split_segmentation_cutout, client.dataset, client.unique_roots):
        server.reset()
        with pytest.raises(OutdatedRootsError) as refused:
            call(bounds(world, SOME), root_ids=[first, current, whole])
        text = str(refused.value)
        assert f"{first} -> {merged}" in text
        assert re.search(rf"{whole} -> {halves[0]}, {halves[1]}|{whole} -> {halves[1]}, {halves[0]}", text)
        assert "2 of 3" in text
        assert str(current) not in text
        assert str(second) not in text
        assert "stale_roots='warn'" in text
        assert "2024-01-03T00:00:00Z" in text
        assert server.count("is_latest_roots") == 1
        assert server.count("roots_binary") == server.count("leaves") == 0
        assert_clean(refused.value)
        assert isinstance(refused.value, ValueError)


def test_successors_are_those_of_the_moment(server: CaveServer, world: World) -> None:
    """Not of now: the merged root was split again later."""
    (first, _), (merged,) = changed(world, "merge_1")
    halves = changed(world, "split_2")[1]
    with pytest.raises(OutdatedRootsError, match=f"{first} -> {merged}[^,0-9]"):
        cut(client_of(server), world, root_ids=[first], timestamp=world.times["merge_2"])
    with pytest.raises(OutdatedRootsError) as refused:
        cut(client_of(server), world, root_ids=[first])
    assert f"{first} -> {halves[0]}, {halves[1]}" in str(refused.value)
    assert str(merged) not in str(refused.value)


def test_roots_that_are_yet_to_come_are_refused(client: ImageryClient, world: World) -> None:
    later = changed(world, "split_2")[1]
    with pytest.raises(OutdatedRootsError, match=str(later[0])):
        cut(client, world, root_ids=later)
    with pytest.raises(OutdatedRootsError):
        cut(client, world, root_ids=changed(world, "merge_1")[1], timestamp=world.times["created"])


def test_only_some_of_many_are_named(client: ImageryClient, server: CaveServer, world: World) -> None:
    later = [(4 << 56) + 2**30 + number for number in range(1000)]
    server.faults = lambda name, n: Fault(status=400, body=b"no") if name == "lineage_graph_multiple" else None
    server.reset()
    with pytest.raises(OutdatedRootsError, match="1000 of 1000") as refused:
        cut(client, world, root_ids=later)
    assert len(str(refused.value)) < 1000
    assert server.count() < 10


@pytest.mark.parametrize("way", ["blocks", "leaves"])
def test_outdated_roots_with_a_warning_match_nothing(
    server: CaveServer, world: World, configure: Configure, small_lazy_blocks: None, way: str
) -> None:
    configure("graph.processes", 1 if way == "leaves" else 100)
    client = client_of(server, timestamp=world.times["split_1"], stale_roots="warn")
    (first, _), (merged,) = changed(world, "merge_1")
    whole, later = changed(world, "split_1")[0][0], changed(world, "split_2")[1][0]
    listed = [first, merged, whole, later]
    with pytest.warns(UserWarning, match=rf"3 of 4 .*{first} ") as warned:
        array = cut(client, world, WHOLE, root_ids=listed)
    assert len(warned) == 1
    right = expected(world, world.times["split_1"], WHOLE, keep=[merged])
    assert right.any()
    np.testing.assert_array_equal(array, right)
    assert (server.count("leaves") > 0) == (way == "leaves")
    with pytest.warns(UserWarning, match=str(first)):
        assert not cut(client, world, WHOLE, root_ids=[first]).compute().any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut(client, world, root_ids=[merged])


def test_a_warning_points_at_the_caller(server: CaveServer, world: World) -> None:
    client = client_of(server, timestamp=world.times["split_1"], stale_roots="warn")
    old, box = changed(world, "merge_1")[0], bounds(world, SOME)
    for call in (
        client.segmentation_cutout, client.split_segmentation_cutout, client.dataset, client.unique_roots,
        lambda _, root_ids: client.segmentation_volume(root_ids=root_ids),
    ):  # fmt: skip
        with pytest.warns(UserWarning, match=str(old[0])) as warned:
            call(box, root_ids=old)
        assert [each.filename for each in warned] == [__file__]


@pytest.mark.parametrize("ids", [[], (), np.array([], np.uint64), [0], iter([])])
def test_no_ids_are_no_objects_and_no_requests(
    client: ImageryClient, server: CaveServer, world: World, small_lazy_blocks: None, ids: Any,
    configure: Configure,
) -> None:  # fmt: skip
    configure("graph.processes", 1)
    server.reset()
    array = cut(client, world, WHOLE, root_ids=ids)
    assert array.shape == (128, 128, 32)
    assert not array.compute().any()
    assert len(client.split_segmentation_cutout(bounds(world, SOME), root_ids=[])) == 0
    assert client.unique_roots(bounds(world, SOME), root_ids=[]) == {}
    assert server.count() == 0


# ------------------------------------------------------------------------------------------------ failing servers


def first_times(endpoint: str, times: int, fault: Fault) -> Callable[[str, int], Fault | None]:
    return lambda name, n: fault if name == endpoint and n <= times else None


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
def test_failures_that_pass_end_right(
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


def test_a_burst_of_failures_on_threads(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_pauses: None
) -> None:
    array = cut(client, world, WHOLE)
    kinds = [PASSING[name] for name in ("503", "cut", "429", "corrupt")]
    server.faults = lambda name, n: (
        kinds[n - 1] if name == "roots_binary" and n < config.get("graph.attempts") else None
    )
    server.reset()
    np.testing.assert_array_equal(array, expected(world, world.times["split_1"], WHOLE))


def test_the_server_says_when_to_come_back(server: CaveServer, client: ImageryClient, world: World) -> None:
    server.faults = first_times("roots_binary", 1, Fault(status=429, headers={"Retry-After": "0.6"}))
    started = time.monotonic()
    cut(client, world).compute()
    assert 0.6 <= time.monotonic() - started < 15


@pytest.mark.parametrize("status", [500, 503, 400, 418])
@pytest.mark.parametrize("way", ["blocks", "leaves"])
def test_failures_that_stay_name_the_path_and_the_status(
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
    np.testing.assert_array_equal(  # nothing wrong is remembered
        array, expected(world, world.times["split_1"], WHOLE, keep=[root] if way == "leaves" else "all")
    )


@pytest.mark.parametrize("fault", ["cut", "corrupt", "short", "a page"])
def test_wrong_answers_that_stay_are_an_error(
    server: CaveServer, client: ImageryClient, world: World, no_pauses: None, fault: str
) -> None:
    array = cut(client, world)
    server.faults = first_times("roots_binary", 10**9, PASSING[fault])
    server.reset()
    with pytest.raises(ServerError, match="roots_binary") as failed:
        array.compute()
    assert_clean(failed.value)
    assert server.count("roots_binary") == config.get("graph.attempts")


def test_a_server_that_fails_is_the_failure_of_a_block(
    server: CaveServer, client: ImageryClient, world: World, tmp_path: Path, threads: Client, small_blocks: int,
    no_pauses: None,
) -> None:  # fmt: skip
    volume = client.segmentation_volume()
    server.faults = lambda name, n: Fault(status=500, body=b"oh") if name == "roots_binary" and n > 1 else None
    server.reset()
    with pytest.raises(BlockFailedError, match=r"blocks failed") as failed:
        to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=threads, progress=False)
    report = failed.value.report
    assert (report.done, report.failures) == (1, report.blocks - 1)
    for block in report.failed:
        assert "ServerError" in block.reason
        assert "/segmentation/api/v1/table/demo_v1/roots_binary" in block.reason
        assert "HTTP 500" in block.reason
        assert TOKEN not in block.reason
    assert TOKEN not in repr(report)
    assert_clean(failed.value)
    right, got = expected(world, world.times["split_1"], WHOLE), written(tmp_path / "out.zarr")
    assert got.any()
    np.testing.assert_array_equal(got[got != 0], right[got != 0])


def test_a_token_that_expires_ends_an_export_at_once(
    server: CaveServer, client: ImageryClient, world: World, tmp_path: Path, threads: Client,
    configure: Configure,
) -> None:  # fmt: skip
    configure("export.block_bytes", 2**15)
    volume = client.segmentation_volume()
    server.latency_s = 0.02
    server.faults = lambda name, n: Fault(status=401) if name == "roots_binary" and n > 3 else None
    server.reset()
    started = time.monotonic()
    with pytest.raises(AccessRefusedError, match=r"HTTP 401.*CAVE_TOKEN.*cave-secret\.json") as refused:
        to_zarr(volume, tmp_path / "out.zarr", chunks=(16, 16, 16), cluster=threads, progress=False)
    assert time.monotonic() - started < 20
    assert server.count("roots_binary") < 32
    assert_clean(refused.value)


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
    """Services that log the headers of what they could not answer do so in their answer, too."""
    moment = int(world.times["split_1"])
    reason = f'{{"headers": {{"Authorization": "Bearer {TOKEN}"}}}}'.encode()
    root = roots_at(world, moment)[0]
    server.faults = lambda name, n: Fault(status=500, body=reason) if name == faulty else None
    with pytest.raises(ServerError) as failed:
        cut(client_of(server), world, timestamp=moment, root_ids=[root]).compute()
    assert_clean(failed.value)


# -------------------------------------------------------------------------------------------- tokens and addresses


def test_without_a_token_the_places_are_named(server: CaveServer) -> None:
    server.reset()
    with pytest.raises(AccessRefusedError, match="No token for 127.0.0.1") as refused:
        ImageryClient(segmentation_source=server.segmentation_source)
    text = str(refused.value)
    host = server.url.removeprefix("http://")
    secrets = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    for place in ("auth_token", "CAVEclient", "$CAVE_TOKEN", str(secrets / f"{host}-cave-secret.json"),
                  str(secrets / "cave-secret.json")):  # fmt: skip
        assert place in text
    assert "\n" not in text
    assert server.count() == 0


@pytest.mark.parametrize("place", ["{host}-cave-secret.json", "cave-secret.json", "chunkedgraph-secret.json"])
@pytest.mark.parametrize("form", ["object", "text"])
def test_tokens_in_files(server: CaveServer, world: World, place: str, form: str) -> None:
    folder = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / place.format(host=server.url.removeprefix("http://"))
    file.write_text(json.dumps({"token": TOKEN} if form == "object" else TOKEN))
    try:
        client = ImageryClient(segmentation_source=server.segmentation_source, timestamp=world.times["split_1"])
        np.testing.assert_array_equal(cut(client, world), expected(world, world.times["split_1"], SOME))
    finally:
        file.unlink()


def test_a_token_in_the_environment(server: CaveServer, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    client = ImageryClient(segmentation_source=server.segmentation_source, timestamp=world.times["split_1"])
    np.testing.assert_array_equal(cut(client, world), expected(world, world.times["split_1"], SOME))


def test_an_explicit_token_wins(server: CaveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAVE_TOKEN", "abcdef")
    assert client_of(server).segmentation_source
    with pytest.raises(AccessRefusedError, match="HTTP 401"):
        client_of(server, auth_token="fedcba")


def test_a_login_of_the_network_is_no_token(
    server: CaveServer, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Requests replaces our header by what it finds for the host in ~/.netrc, unless told not to."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client = client_of(server, timestamp=world.times["split_1"])
    np.testing.assert_array_equal(cut(client, world), expected(world, world.times["split_1"], SOME))


def test_a_wrong_token(server: CaveServer) -> None:
    wrong = "badbadbad0123456789"
    server.reset()
    with pytest.raises(AccessRefusedError, match=r"refused by 127\.0\.0\.1:\d+.*HTTP 401.*CAVE_TOKEN") as refused:
        client_of(server, auth_token=wrong)
    assert wrong not in whole_of(refused.value)
    assert "\n" not in str(refused.value)
    assert server.count() == 1


def test_a_token_that_was_refused_is_not_kept(server: CaveServer, client: ImageryClient, world: World) -> None:
    """One client with a wrong token does not break what others have made."""
    array = cut(client, world)
    with pytest.raises(AccessRefusedError):
        client_of(server, auth_token="badbadbad0123456789")
    np.testing.assert_array_equal(array, expected(world, world.times["split_1"], SOME))


def test_workers_without_a_token_say_where_they_looked(
    server: CaveServer, client: ImageryClient, world: World, processes: Client, tmp_path: Path
) -> None:
    volume = client.segmentation_volume()
    with pytest.raises(AccessRefusedError, match=r"No token.*CAVE_TOKEN") as refused:
        to_zarr(volume, tmp_path / "out.zarr", cluster=processes, progress=False)
    assert_clean(refused.value)
    with pytest.raises(AccessRefusedError, match=r"No token.*CAVE_TOKEN"):
        processes.compute(volume.data + 0).result()


def test_an_unknown_table(server: CaveServer) -> None:
    for source in (server.segmentation_source.replace("demo_v1", "other_v2"),):
        with pytest.raises(SourceNotFoundError, match=r"no graph 'other_v2' at http://127") as refused:
            ImageryClient(segmentation_source=source, auth_token=TOKEN)
        assert_clean(refused.value)


@pytest.mark.parametrize("source", ["graphene://https://host", "graphene://nowhere/table/t"])
def test_paths_that_are_none(source: str) -> None:
    with pytest.raises(SourceError, match="is not the path of a dynamic segmentation"):
        ImageryClient(segmentation_source=source, auth_token=TOKEN)


def test_a_table_that_is_gone_later(server: CaveServer, client: ImageryClient, world: World) -> None:
    array = cut(client, world)
    server.faults = lambda name, n: Fault(status=404, body=b"gone") if name == "roots_binary" else None
    with pytest.raises(SourceError, match="roots_binary") as failed:
        array.compute()
    assert_clean(failed.value)


def test_a_server_that_does_not_answer(no_pauses: None) -> None:
    address = closed_port()
    with pytest.raises(ServerError, match=rf"{address} does not answer") as failed:
        ImageryClient(segmentation_source=f"graphene://{address}/segmentation/table/t", auth_token=TOKEN)
    assert_clean(failed.value)
    assert len(str(failed.value)) < 700


def test_a_server_that_goes_away(world: World, no_pauses: None) -> None:
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


def test_a_server_that_is_silent(
    server: CaveServer, client: ImageryClient, world: World, no_pauses: None, configure: Configure
) -> None:
    configure("graph.timeout_s", (1, 0.05))
    configure("graph.attempts", 2)
    server.faults = lambda name, n: Fault(delay_s=30) if name == "roots_binary" else None
    with pytest.raises(ServerError, match="roots_binary") as failed:
        cut(client, world).compute()
    assert_clean(failed.value)


def test_something_else_at_the_address(server: CaveServer, no_pauses: None) -> None:
    for body in (b"<html>hello</html>", b"{}", b"[1, 2]", b"null", b'{"graph": null}'):
        server.faults = lambda name, n, body=body: Fault(status=200, body=body)  # type: ignore[misc]
        with pytest.raises(SourceError, match="demo_v1") as failed:
            client_of(server)
        assert_clean(failed.value)


# ---------------------------------------------------------------------------------------------------- a CAVEclient


def test_datastacks_that_open(server: CaveServer) -> None:
    client = ImageryClient(open_cave(server.datastack, server.url, TOKEN))
    assert client.segmentation_source == server.segmentation_source
    assert not (Path.home() / ".cloudvolume").exists()


def test_datastacks_that_do_not_exist(server: CaveServer) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no datastack 'other' at http://127") as refused:
        open_cave("other", server.url, TOKEN)
    assert_clean(refused.value)


def test_datastacks_with_a_wrong_token(server: CaveServer) -> None:
    wrong = "badbadbad" + "0123456789"  # in the traceback, the source of this test is shown
    with pytest.raises(AccessRefusedError, match=r"refused to datastack 'demo_datastack'") as refused:
        open_cave(server.datastack, server.url, wrong)
    assert wrong not in whole_of(refused.value)
    assert "\n" not in str(refused.value)


def test_datastacks_without_a_token_say_where_tokens_are_looked_for(server: CaveServer) -> None:
    with pytest.raises(AccessRefusedError, match=r"CAVE_TOKEN.*cave-secret\.json") as refused:
        open_cave(server.datastack, server.url)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("place", ["environment", "file"])
def test_datastacks_find_the_token_where_sources_do(
    server: CaveServer, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{server.url.removeprefix('http://')}-cave-secret.json"
    if place == "environment":
        monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    else:
        file.write_text(json.dumps({"token": TOKEN}))
    try:
        assert ImageryClient(open_cave(server.datastack, server.url)).segmentation_source
    finally:
        file.unlink(missing_ok=True)


def test_datastacks_of_a_server_that_does_not_answer() -> None:
    address = closed_port()
    with pytest.raises(ServerError, match=rf"datastack 'd' at {address} does not answer") as failed:
        open_cave("d", address, TOKEN)
    assert_clean(failed.value)


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
@pytest.mark.parametrize("endpoint", ["datastack_info", "versions", "version_metadata"])
def test_a_caveclient_whose_services_fail(server: CaveServer, status: int, endpoint: str) -> None:
    cave = server.client(max_retries=0)
    server.faults = lambda name, n: Fault(status=status, body=b'{"message": "because"}') if name == endpoint else None
    kinds: dict[int, type[Exception]] = {401: AccessRefusedError, 403: AccessRefusedError, 404: SourceNotFoundError}
    if endpoint == "datastack_info":
        with pytest.raises(kinds.get(status, ServerError), match="demo_datastack") as failed:
            open_cave(server.datastack, server.url, TOKEN)
    else:
        with pytest.raises((kinds.get(status, ServerError), ValueError), match="demo_datastack") as failed:
            ImageryClient(client=cave, version=2)
    assert_clean(failed.value)


# ------------------------------------------------------------------------------------------------ the token stays


def test_the_token_is_nowhere(
    server: CaveServer, world: World, tmp_path: Path, processes: Client, caplog: pytest.LogCaptureFixture,
    small_blocks: int, small_lazy_blocks: None, monkeypatch: pytest.MonkeyPatch, configure: Configure,
) -> None:  # fmt: skip
    """Not in pickles, graphs, reprs, names, attrs, logs, or what is written."""
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
    """A function that uses a client, sent to a cluster, takes the client along."""
    for client in (client_of(server), ImageryClient(client=server.client())):
        try:
            pickled = cloudpickle.dumps(client)
        except (TypeError, pickle.PicklingError):
            continue
        assert TOKEN.encode() not in pickled


def test_the_token_goes_to_its_own_server_only(server: CaveServer, world: World) -> None:
    """Neither to another CAVE server nor to where the images are."""
    client_of(server)
    with CaveServer(world, tokens=(TOKEN,)) as other:
        other.reset()
        with pytest.raises(AccessRefusedError, match="No token"):
            ImageryClient(segmentation_source=other.segmentation_source)
        assert other.count() == 0


def test_a_token_is_not_handed_to_the_command_line_of_workers(server: CaveServer, client: ImageryClient) -> None:
    """Every user of a machine sees command lines; environments only the own."""
    from imagery_dask.cluster import connect

    with connect("local", 1) as cluster:
        (pid,) = cluster.run(os.getpid).values()
        command = Path(f"/proc/{pid}/cmdline")
        if sys.platform == "linux":
            assert TOKEN.encode() not in command.read_bytes()
        assert TOKEN not in str(cluster.scheduler_info())


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line and return exit code, stdout and stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["imagery-dask", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, errors = capfd.readouterr()
        return int(stopped.value.code or 0), out, without_dashboard(errors)

    return call


def options_of(server: CaveServer, world: World, box: Box = SOME) -> list[Any]:
    low, high = bounds(world, box) * (2, 2, 1)
    return ["--datastack", server.datastack, "--server", server.url, "--bounds", *low, *high, "--chunks", "32,32,16"]


@pytest.mark.parametrize(
    ("arguments", "moment"),
    [
        (["--timestamp", "2024-01-03T00:00:00Z"], "split_1"),
        (["--timestamp", "1704240000"], "split_1"),
        (["--version", "2"], "split_1"),
        ([], "split_2"),
        (["--timestamp", "now"], "split_2"),
    ],
)
def test_exports_by_command(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Client,
    arguments: list[str], moment: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    out = tmp_path / "out.zarr"
    address = threads.scheduler.address
    code, text, errors = run("export", "zarr", out, *options_of(server, world), "--cluster", address, *arguments)
    assert code == 0, errors
    right = expected(world, np.ceil(world.times[moment]), SOME)
    np.testing.assert_array_equal(labels(out)[::2, ::2], right)
    assert re.search(r"supervoxels without a root: 0$", text, re.MULTILINE)
    assert re.search(r"supervoxels looked up: \d+ in \d+ requests", text)
    assert TOKEN not in text + errors


def test_listed_roots_by_command(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Client
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    address = threads.scheduler.address
    (first, _), (merged,) = changed(world, "merge_1")
    common = [*options_of(server, world), "--cluster", address, "--version", "2"]
    code, text, errors = run("export", "zarr", tmp_path / "a.zarr", *common, "--root-ids", f"{merged}")
    assert code == 0, errors
    right = expected(world, world.times["split_1"], SOME, keep=[merged])
    np.testing.assert_array_equal(labels(tmp_path / "a.zarr")[::2, ::2], right)
    code, text, errors = run("export", "zarr", tmp_path / "b.zarr", *common, "--root-ids", f"{first},{merged}")
    assert code == 2
    assert f"1 of 2 were no root ids at 2024-01-03T12:00:01Z: {first} " in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "b.zarr").exists()
    with pytest.warns(UserWarning, match=f"{first} "):
        code, text, errors = run(
            "export", "zarr", tmp_path / "b.zarr", *common, "--root-ids", f"{first},{merged}", "--stale-roots", "warn"
        )
    assert code == 0, errors
    np.testing.assert_array_equal(labels(tmp_path / "b.zarr")[::2, ::2], right)


def test_zero_roots_by_command(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Client
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    address = threads.scheduler.address
    code, text, errors = run(
        "export", "zarr", tmp_path / "a.zarr", *options_of(server, world), "--cluster", address, "--timestamp",
        "2023-12-31",
    )  # fmt: skip
    assert code == 0, errors
    assert re.search(r"supervoxels without a root: [1-9]\d* \(written as 0\): \d+, ", text)
    assert not labels(tmp_path / "a.zarr").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timestamp", "2100-01-01"], "future"),
        (["--timestamp", "soon"], "date and time"),
        (["--version", "9"], "Version 9 of datastack"),
        (["--version", "2", "--timestamp", "now"], "no timestamp beside it"),
        (["--root-ids", "1.5"], "whole numbers"),
        (["--root-ids", "-5"], "root_ids"),
        (["--root-ids", "123"], "no root ids of table"),
        (["--stale-roots", "maybe"], "maybe"),
        (["--datastack", "other"], "no datastack 'other'"),
    ],
)
def test_bad_input_by_command(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    code, text, errors = run("export", "zarr", tmp_path / "out.zarr", *options_of(server, world), *arguments)
    assert code == 2, text + errors
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors
    assert TOKEN not in text + errors
    assert not (tmp_path / "out.zarr").exists()


def test_refusals_by_command(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, common = tmp_path / "out.zarr", options_of(server, world)
    code, text, errors = run("export", "zarr", out, *common)
    assert (code, "CAVE_TOKEN" in errors, "Traceback" in errors) == (2, True, False)
    monkeypatch.setenv("CAVE_TOKEN", "badbadbad0123456789")
    code, text, errors = run("export", "zarr", out, *common)
    assert (code, "refused" in errors, "badbadbad" in errors, "Traceback" in errors) == (2, True, False, False)
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    code, text, errors = run("export", "zarr", out, *common[:3], closed_port(), *common[4:])
    assert (code, "does not answer" in errors, TOKEN in errors, "Traceback" in errors) == (2, True, False, False)
    assert not out.exists()


def test_info_by_command(run: Any, server: CaveServer, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    code, text, errors = run("info", "--datastack", server.datastack, "--server", server.url)
    assert code == 0, errors
    assert server.segmentation_source in text
    assert world.image_source in text
    code, text, errors = run("info", server.segmentation_source)
    assert code == 0, errors
    assert TOKEN not in text + errors
