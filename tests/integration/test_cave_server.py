"""The local CAVE server, queried by caveclient, CloudVolume, imageryclient and requests."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import imageryclient
import numpy as np
import pytest
import requests
from caveclient import CAVEclient
from cloudvolume import Bbox, CloudVolume

from imagery_dask.testing.cave import CaveServer, Fault, World, make_world, world_from_arrays

HEX, BASE64 = "0123456789abcdef", "c2VjcmV0L3Rva2VuKw=="


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One world for all tests of this module that only read."""
    return make_world(tmp_path_factory.mktemp("cave"))


@pytest.fixture
def serve() -> Iterator[Callable[..., CaveServer]]:
    with ExitStack() as stack:
        yield lambda world, **options: stack.enter_context(CaveServer(world, **{"tokens": (HEX,), **options}))


@pytest.fixture
def server(world: World, serve: Callable[..., CaveServer]) -> CaveServer:
    return serve(world)


@pytest.fixture
def client(server: CaveServer) -> CAVEclient:
    return server.client()


def at(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


def volume(server: CaveServer, **options: Any) -> CloudVolume:
    return CloudVolume(server.segmentation_source, progress=False, **{"secrets": HEX, **options})


def moments(world: World) -> list[float]:
    """Return each moment of the world's history, and the millisecond before it."""
    return [moment for edit in world.times.values() for moment in (edit - 0.001, edit)]


def roots_at(world: World, moment: float) -> list[int]:
    return np.unique(world.graph.roots(world.graph.supervoxels, moment)).tolist()


def changed(world: World, edit: str) -> tuple[list[int], list[int]]:
    """Return the roots that an edit replaced, and those that it created."""
    moment = world.times[edit]
    before, after = set(roots_at(world, moment - 0.001)), set(roots_at(world, moment))
    return sorted(before - after), sorted(after - before)


# -- the world itself


def test_every_edit_of_the_world_changes_many_voxels(world: World) -> None:
    assert list(world.times) == ["created", "merge_1", "split_1", "merge_2", "split_2"]
    assert world.supervoxels.shape == (128, 128, 32)
    volumes = [world.roots_volume(moment) for moment in world.times.values()]
    for before, after in zip(volumes, volumes[1:], strict=False):
        assert (before != after).sum() > 5000
    assert all(np.array_equal(volume == 0, world.supervoxels == 0) for volume in volumes)
    assert {len(old) for old, _ in (changed(world, "merge_1"), changed(world, "merge_2"))} == {2}
    assert {len(new) for _, new in (changed(world, "split_1"), changed(world, "split_2"))} == {2}
    assert all(root > 2**53 for root in roots_at(world, world.times["created"]))
    assert world.times["split_2"] < world.versions[3].timestamp
    np.testing.assert_array_equal(world.roots_volume(world.times["created"] - 1), world.supervoxels)
    for edit in ("merge_1", "split_2"):  # edits within chunks
        nodes = [set(world.graph.roots(world.graph.supervoxels, t, 2).tolist()) for t in moments(world)]
        index = moments(world).index(world.times[edit])
        assert len(nodes[index] - nodes[index - 1]) > 3


def test_the_same_seed_makes_the_same_world(world: World, tmp_path: Path) -> None:
    again = make_world(tmp_path / "a")
    np.testing.assert_array_equal(world.supervoxels, again.supervoxels)
    np.testing.assert_array_equal(world.roots_volume(), again.roots_volume())
    other = make_world(tmp_path / "b", seed=1)
    assert not np.array_equal(world.supervoxels, other.supervoxels)


def test_a_world_can_be_made_of_arrays(tmp_path: Path, serve: Callable[..., CaveServer]) -> None:
    objects = np.arange(1, 2 * 3 * 5 + 1).reshape(2, 3, 5).repeat(20, 0).repeat(15, 1).repeat(7, 2)
    image = np.random.default_rng(0).integers(0, 2**16, size=(80, 45, 70), dtype=np.uint16)
    world = world_from_arrays(
        tmp_path, objects, image, chunk_size=(16, 16, 8), storage_chunk=(8, 16, 4), voxel_offset=(16, -32, 8),
        resolution=(8, 8, 30), n_mips=1, pieces=1, n_layers=6, created=1e9, edited=False,
    )  # fmt: skip
    assert (world.image_resolution, world.times) == ((4, 8, 15), {"created": 1e9})
    roots = world.roots_volume()
    pairs = set(zip(objects.ravel().tolist(), roots.ravel().tolist(), strict=True))
    assert (len(pairs), len(np.unique(objects)), len(np.unique(roots))) == (30, 30, 30)
    np.testing.assert_array_equal(CloudVolume(world.image_source, progress=False)[:][..., 0], image)
    np.testing.assert_array_equal(volume(serve(world), agglomerate=True)[:][..., 0], roots)


def test_arrays_of_unsuitable_shape_are_refused(tmp_path: Path) -> None:
    objects = np.ones((32, 32, 16), np.uint64)
    with pytest.raises(ValueError, match="does not fit"):
        world_from_arrays(tmp_path, objects, np.zeros((48, 64, 16), np.uint8))
    with pytest.raises(ValueError, match="edited=False"):
        world_from_arrays(tmp_path, objects)


# -- caveclient


def test_caveclient_reads_datastack_and_segmentation_info(server: CaveServer, client: CAVEclient, world: World) -> None:
    assert client.info.get_datastacks() == [server.datastack]
    assert client.info.segmentation_source() == server.segmentation_source
    assert client.info.image_source() == world.image_source
    assert client.info.viewer_resolution().tolist() == [8, 8, 40]
    assert client.info.get_aligned_volume_info()["name"] == world.aligned_volume
    assert client.info.get_aligned_volume_info_by_id()["image_source"] == world.image_source
    assert client.info.get_datastacks_by_aligned_volume() == [server.datastack]
    assert client.info.get_image_mirror_names() == ["default"]
    assert client.local_server == client.server_address == server.url
    assert client.auth.token == HEX
    assert client.auth.get_tokens() == []
    assert client.auth.get_user_information([3])[0]["id"] == 3
    assert client.chunkedgraph.table_name == server.table
    assert client.chunkedgraph.base_resolution == [16, 16, 40]
    graph = client.chunkedgraph.segmentation_info["graph"]
    assert graph["chunk_size"] == [32, 32, 16]
    assert graph["n_layers"] == world.graph.layout.n_layers == 4
    assert not (Path.home() / ".cloudvolume").exists()  # caveclient has written no cache


def test_caveclient_gets_the_roots_of_every_moment(client: CAVEclient, world: World) -> None:
    ids = world.graph.supervoxels[::-1]
    seen = []
    for moment in moments(world):
        roots = client.chunkedgraph.get_roots(ids, timestamp=at(moment))
        np.testing.assert_array_equal(roots, world.graph.roots(ids, moment))
        seen.append(roots.tobytes())
    assert len(set(seen)) == 1 + len(world.times)
    assert seen[0] == ids.tobytes()  # before the graph existed
    np.testing.assert_array_equal(client.chunkedgraph.get_roots(ids), world.graph.roots(ids))
    some = [int(ids[0]), 12345, 0]
    assert client.chunkedgraph.get_roots(some).tolist() == [int(world.graph.roots(ids[:1])[0]), 0, 0]
    assert client.chunkedgraph.get_roots([12345]).tolist() == [12345]


def test_caveclient_gets_ids_of_other_layers(client: CAVEclient, world: World) -> None:
    moment = world.times["merge_1"]
    for layer in range(1, 5):
        nodes = client.chunkedgraph.get_roots(world.graph.supervoxels, at(moment), stop_layer=layer)
        np.testing.assert_array_equal(nodes, world.graph.roots(world.graph.supervoxels, moment, layer))
    sv = int(world.graph.supervoxels[7])
    assert client.chunkedgraph.get_root_id(sv, at(moment)) == world.graph.roots([sv], moment)[0]
    assert client.chunkedgraph.get_root_id(sv, at(moment), level2=True) >> 56 == 2
    with pytest.raises(requests.HTTPError, match="Cannot find root id"):
        client.chunkedgraph.get_root_id(sv, at(world.times["created"] - 1))


def test_caveclient_gets_leaves_of_the_chunks_that_bounds_touch(client: CAVEclient, world: World) -> None:
    graph, cg = world.graph, client.chunkedgraph
    root = changed(world, "merge_1")[1][0]
    assert np.sort(cg.get_leaves(root)).tolist() == graph.leaves(root).tolist()
    assert cg.get_leaves(root, stop_layer=2).tolist() == graph.leaves(root, stop_layer=2).tolist()
    leaves = graph.leaves(root)
    chunks = graph.layout.chunks(leaves)
    low = world.voxel_offset + chunks[0] * (32, 32, 16) + 1  # one voxel inside a chunk: the chunk counts as a whole
    within = cg.get_leaves(root, bounds=np.stack([low, low + 1], axis=1))
    assert within.tolist() == leaves[(chunks == chunks[0]).all(axis=1)].tolist()
    assert 0 < len(within) < len(chunks)
    wider = cg.get_leaves(root, bounds=np.stack([low, low + (32, 33, 34)], axis=1))
    near = (chunks - chunks[0] <= (1, 1, 2)) & (chunks >= chunks[0])
    assert wider.tolist() == leaves[near.all(axis=1)].tolist()
    many = cg.get_leaves_many([root, *changed(world, "split_1")[1]])
    assert {int(key): value.tolist() for key, value in many.items()} == {int(k): graph.leaves(k).tolist() for k in many}
    assert cg.get_children(root).tolist() == list(graph.children(root))


def test_caveclient_follows_roots_through_edits(client: CAVEclient, world: World) -> None:
    cg, times = client.chunkedgraph, world.times
    (first, second), (merged,) = changed(world, "merge_1")
    halves = changed(world, "split_2")[1]
    assert cg.is_latest_roots([first, merged, *halves]).tolist() == [False, False, True, True]
    assert cg.is_latest_roots([first, merged], at(times["merge_1"] - 0.001)).tolist() == [True, False]
    assert cg.is_latest_roots([first, merged], at(times["merge_1"])).tolist() == [False, True]
    assert cg.get_root_timestamps([first, merged]).tolist() == [at(times["created"]), at(times["merge_1"])]
    until = cg.get_root_timestamps([first, merged], latest=True, timestamp=at(times["split_2"] + 5))
    assert [moment.timestamp() for moment in until] == [times["merge_1"] - 0.001, times["split_2"] - 0.001]
    assert sorted(cg.get_latest_roots(first).tolist()) == halves
    assert cg.get_latest_roots(first, at(times["split_1"])).tolist() == [merged]
    assert sorted(cg.get_latest_roots(halves[0], at(times["created"])).tolist()) == [first, second]
    assert sorted(cg.get_original_roots(halves[0]).tolist()) == [first, second]
    assert cg.suggest_latest_roots(merged) in halves
    assert cg.suggest_latest_roots(merged, at(times["split_1"])) == merged
    assert {*cg.suggest_latest_roots(merged, stop_layer=1, return_all=True).tolist()} == {*halves}


def test_caveclient_gets_the_lineage_as_a_graph(client: CAVEclient, world: World) -> None:
    (first, second), (merged,) = changed(world, "merge_1")
    halves = changed(world, "split_2")[1]
    graph = client.chunkedgraph.get_lineage_graph(merged, timestamp_future=datetime.now(UTC), as_nx_graph=True)
    assert set(graph.edges) == {(first, merged), (second, merged), (merged, halves[0]), (merged, halves[1])}
    assert graph.nodes[merged]["timestamp"] == world.times["merge_1"]
    raw = client.chunkedgraph.get_lineage_graph(merged, timestamp_future=at(world.times["merge_1"]))
    assert raw.keys() == {"directed", "multigraph", "graph", "nodes", "links"}


def test_caveclient_gets_the_roots_that_changed_between_moments(client: CAVEclient, world: World) -> None:
    cg, times = client.chunkedgraph, world.times
    old, new = cg.get_delta_roots(at(times["created"]), at(times["split_1"]))
    edits = [changed(world, "merge_1"), changed(world, "split_1")]
    assert sorted(old.tolist()) == sorted(edits[0][0] + edits[1][0])
    assert sorted(new.tolist()) == sorted(edits[0][1] + edits[1][1])
    assert cg.get_oldest_timestamp() == at(times["created"])
    sv = int(world.graph.supervoxels[0])
    assert cg.is_valid_nodes([sv, sv + 1, edits[0][1][0], 0]).tolist() == [True, False, True, False]
    before = cg.is_valid_nodes([sv, edits[0][1][0]], end_timestamp=at(times["created"]))
    assert before.tolist() == [True, False]


def test_caveclient_knows_the_versions(client: CAVEclient, world: World) -> None:
    materialize = client.materialize
    assert materialize.get_versions() == [2, 3]
    assert materialize.get_versions(expired=True) == [1, 2, 3]
    assert materialize.most_recent_version() == materialize.version == 3
    for number, version in world.versions.items():
        assert materialize.get_timestamp(number) == at(version.timestamp)
        assert materialize.get_version_metadata(number)["expires_on"] == at(version.expires)
    assert [metadata["version"] for metadata in materialize.get_versions_metadata()] == [2, 3]


def test_a_client_of_a_version_reads_the_roots_of_its_moment(server: CaveServer, world: World) -> None:
    for number, version in world.versions.items():
        client = server.client(version=number)
        assert client.timestamp == at(version.timestamp)
        roots = client.chunkedgraph.get_roots(world.graph.supervoxels)
        np.testing.assert_array_equal(roots, world.graph.roots(world.graph.supervoxels, version.timestamp))
    with pytest.raises(ValueError, match="not available"):
        server.client(version=4)


def test_caveclient_can_edit(tmp_path: Path, serve: Callable[..., CaveServer]) -> None:
    world = make_world(tmp_path, (128, 128, 32), edited=False)
    cg = serve(world).client().chunkedgraph
    graph, before = world.graph, time.time()
    first, second, *_ = np.unique(graph.roots(graph.supervoxels)).tolist()
    nodes = [int(graph.leaves(first)[0]), int(graph.leaves(second)[0])]
    answer = cg.do_merge(nodes, np.zeros((2, 3)))
    (merged,) = answer["new_root_ids"]
    assert graph.roots(nodes).tolist() == [merged, merged]
    assert graph.roots(nodes, before - 1).tolist() == [first, second]
    operation, new = cg.execute_split([[0, 0, 0]], [[1, 1, 1]], merged, nodes[:1], nodes[1:])
    assert operation == answer["operation_id"] + 1
    assert graph.roots(nodes).tolist() == new
    with pytest.raises(requests.HTTPError, match="400 Client Error"):
        cg.do_merge([nodes[0], nodes[0]], np.zeros((2, 3)))


# -- CloudVolume


@pytest.mark.parametrize("mip", [0, 1, 2])
def test_cloudvolume_reads_the_roots_of_every_moment(server: CaveServer, world: World, mip: int) -> None:
    for moment in moments(world):
        cv = volume(server, agglomerate=True, timestamp=moment, mip=mip)
        whole = cv[:][..., 0]
        # CloudVolume rounds up to whole seconds.
        np.testing.assert_array_equal(whole, world.roots_volume(np.ceil(moment), mip))
    np.testing.assert_array_equal(volume(server, mip=mip)[:][..., 0], world.mips[mip])


@pytest.mark.parametrize("box", [((5, 9, 3), (77, 70, 29)), ((31, 31, 15), (33, 33, 17)), ((40, 40, 4), (41, 90, 5))])
def test_cloudvolume_reads_boxes_across_chunks(server: CaveServer, world: World, box: Any) -> None:
    moment = int(world.times["split_1"])
    low, high = np.array(box)
    cv = volume(server, agglomerate=True, timestamp=moment)
    voxels = cv.download(Bbox(low + world.voxel_offset, high + world.voxel_offset))
    part = tuple(map(slice, low, high))
    np.testing.assert_array_equal(voxels[..., 0], world.roots_volume(moment)[part])
    second = cv.download(Bbox(low + world.voxel_offset, high + world.voxel_offset), stop_layer=2)
    np.testing.assert_array_equal(second[..., 0], world.roots_volume(moment, stop_layer=2)[part])
    assert server.count("info") == 1
    assert server.count("roots_binary") == 2
    assert server.ids_sent == 2 * len(np.unique(world.supervoxels[part][world.supervoxels[part] != 0]))


def test_cloudvolume_reads_chosen_roots(server: CaveServer, world: World) -> None:
    moment = world.times["merge_1"]
    chosen = [changed(world, "merge_1")[1][0], roots_at(world, moment)[0]]
    roots = world.roots_volume(moment)
    voxels = volume(server).download(volume(server).bounds, segids=chosen)
    np.testing.assert_array_equal(voxels[..., 0], np.where(np.isin(roots, chosen), roots, 0))
    assert server.count("leaves") == 2


def test_cloudvolume_reads_ids_through_its_other_methods(server: CaveServer, world: World) -> None:
    moment = int(world.times["merge_1"]) + 1
    roots = world.roots_volume(moment)
    cv = volume(server, agglomerate=True, timestamp=moment)
    assert set(cv.unique(cv.bounds)) - {0} == set(roots_at(world, moment))
    point = tuple(np.array(world.voxel_offset) + (70, 50, 20))
    assert cv.scattered_points([point])[point] == roots[70, 50, 20]
    root = changed(world, "merge_1")[1][0]
    assert sorted(cv.get_leaves(root, cv.bounds, 0)) == world.graph.leaves(root).tolist()
    node = int(world.graph.leaves(root, stop_layer=2)[0])
    mapping = cv.get_chunk_mappings(node, timestamp=moment)
    assert sorted(mapping[np.uint64(node)]) == world.graph.leaves(node).tolist()
    assert {int(key): tuple(value) for key, value in mapping.items()} == world.graph.level2_children(node, moment)
    label = cv.meta.decode_label(int(world.supervoxels[70, 50, 20]))
    assert (int(label.level), int(label.x), int(label.y), int(label.z)) == (1, 2, 1, 1)
    assert tuple(cv.meta.point_to_chunk_position(point, mip=0)) == (2, 1, 1)


def test_many_ids_are_sent_compressed(server: CaveServer, world: World) -> None:
    known = world.graph.supervoxels
    ids = np.append(known, np.arange(1, 300_000, dtype=np.uint64) + (np.uint64(1) << np.uint64(55)))
    roots = volume(server).get_roots(ids)
    np.testing.assert_array_equal(roots[: len(known)], world.graph.roots(known))
    # 2**55 is of layer 0, so it is neither a root nor known; the answer is 0 or the id, depending on its batch.
    assert server.count("roots_binary") == 2
    assert server.ids_sent == len(ids)
    answer = post(server, "roots_binary", gzip.compress(known.tobytes()), {"Content-Encoding": "gzip"})
    np.testing.assert_array_equal(np.frombuffer(answer.content, np.uint64), world.graph.roots(known))
    assert answer.headers["Content-Encoding"] == "gzip"  # requests accepts gzip by default, as caveclient does


def post(server: CaveServer, name: str, data: bytes, headers: dict[str, str] | None = None, **query: Any) -> Any:
    url = f"{server.url}/segmentation/api/v1/table/{server.table}/{name}"
    return requests.post(url, data, headers={"Authorization": f"Bearer {HEX}", **(headers or {})}, params=query)


# -- imageryclient


def test_the_released_imageryclient_reads_image_and_segmentation(client: CAVEclient, world: World) -> None:
    moment = world.times["split_1"]
    pictures = imageryclient.ImageryClient(client=client, timestamp=moment)
    start = np.array(world.voxel_offset) * (2, 2, 1)
    bounds = [start + (20, 30, 3), start + (160, 150, 29)]
    roots = world.roots_volume(moment)[10:80, 15:75, 3:29]
    np.testing.assert_array_equal(pictures.segmentation_cutout(bounds), roots)
    image = CloudVolume(world.image_source, progress=False)[:][20:160, 30:150, 3:29, 0]
    np.testing.assert_array_equal(pictures.image_cutout(bounds), image)
    chosen = np.unique(roots)[1:3].tolist()
    some = pictures.segmentation_cutout(bounds, root_ids=chosen)
    np.testing.assert_array_equal(some, np.where(np.isin(roots, chosen), roots, 0))


# -- tokens


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer abcd"}, {"Authorization": f"Basic {HEX}"}])
def test_no_endpoint_answers_without_a_token(server: CaveServer, header: dict[str, str]) -> None:
    paths = [
        "info/version", f"info/api/v2/datastack/full/{server.datastack}", "segmentation/api/versions",
        f"segmentation/table/{server.table}/info", "materialize/version", "auth/api/v1/user/token", "nothing/here",
    ]  # fmt: skip
    for path in paths:
        answer = requests.get(f"{server.url}/{path}", headers=header)
        assert (answer.status_code, answer.json()["code"]) == (401, 401)
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_clients_with_a_wrong_token_fail(server: CaveServer) -> None:
    with pytest.raises(requests.HTTPError, match="401 Client Error"):
        server.client(token="abcd")
    with pytest.raises(requests.HTTPError, match="401 Client Error"):
        volume(server, secrets="abcd")
    assert {request.status for request in server.requests} == {401}


@pytest.mark.parametrize("token", [HEX, BASE64])
def test_each_token_is_accepted(world: World, serve: Callable[..., CaveServer], token: str) -> None:
    server = serve(world, tokens=(HEX, BASE64))
    assert server.client(token).chunkedgraph.get_oldest_timestamp()
    assert volume(server, secrets=token).info["graph"]


def test_cloudvolume_finds_the_token_in_its_secrets(server: CaveServer) -> None:
    secrets = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    file = secrets / f"{server.url.removeprefix('http://')}-cave-secret.json"
    secrets.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{{"token": "{HEX}"}}')
    try:
        assert volume(server, secrets=None).info["graph"]
    finally:
        file.unlink()


# -- counts and faults


def test_requests_are_counted(server: CaveServer, world: World) -> None:
    client = server.client()
    client.chunkedgraph.get_roots(world.graph.supervoxels[:10], at(world.times["merge_1"]))
    client.chunkedgraph.is_latest_roots([1, 2, 3])
    assert (server.ids_sent, server.count("roots_binary"), server.count("datastack_info")) == (10, 1, 1)
    assert server.count() == len(server.requests) == server.count(lambda request: request.status == 200)
    last, latest = server.requests[-2:]
    assert (last.method, last.endpoint, last.status, last.n_ids) == ("POST", "roots_binary", 200, 10)
    assert last.path.endswith(f"/roots_binary?timestamp={world.times['merge_1']}")
    assert (latest.endpoint, latest.n_ids) == ("is_latest_roots", 3)
    assert server.max_in_flight == 1
    server.reset()
    assert (server.requests, server.ids_sent, server.max_in_flight) == ([], 0, 0)


def test_latency_is_applied_to_concurrent_requests(server: CaveServer, client: CAVEclient, world: World) -> None:
    client.chunkedgraph.get_roots([1])
    server.latency_s = 0.6
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client.chunkedgraph.get_roots, [world.graph.supervoxels] * 4))
    assert time.monotonic() - started >= 0.6
    assert server.max_in_flight == 4


def test_a_kept_connection_answers_without_delay(server: CaveServer, client: CAVEclient) -> None:
    client.chunkedgraph.get_roots([1])
    seconds = []
    for _ in range(50):
        started = time.monotonic()
        client.chunkedgraph.get_roots([1])
        seconds.append(time.monotonic() - started)
    assert (
        np.quantile(seconds, 0.25) < 0.03
    )  # a quartile, since the machine may be busy; delayed acknowledgements would take 0.04 s


def test_closing_does_not_wait_for_latencies(world: World) -> None:
    def ask() -> None:
        with suppress(requests.ConnectionError):  # unless the answer comes before the server closes
            post(server, "roots_binary", b"")

    with CaveServer(world, tokens=(HEX,)) as server:
        server.latency_s = 60
        thread = threading.Thread(target=ask)
        thread.start()
        while not server.max_in_flight:
            time.sleep(0.01)
        started = time.monotonic()
    thread.join()
    assert time.monotonic() - started < 30


def test_clients_repeat_requests_as_released(world: World, serve: Callable[..., CaveServer]) -> None:
    """Both repeat roots_binary after 503; CloudVolume repeats neither its info nor leaves."""
    server = serve(world)
    client, cv = server.client(), volume(server)
    ids, roots = world.graph.supervoxels, world.graph.roots(world.graph.supervoxels)
    server.faults = lambda endpoint, n: Fault(503, {"Retry-After": "0"}) if n == 1 else None
    for ask in (client.chunkedgraph.get_roots, cv.get_roots):
        server.reset()
        np.testing.assert_array_equal(ask(ids), roots)
        assert [request.status for request in server.requests] == [503, 200]
    server.reset()
    with pytest.raises(requests.HTTPError, match="503"):
        cv.get_leaves(int(roots[0]), cv.bounds, 0)
    with pytest.raises(requests.HTTPError, match="503"):
        volume(server)


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500])
def test_caveclient_gives_up_at_once_on_other_statuses(server: CaveServer, client: CAVEclient, status: int) -> None:
    client.chunkedgraph.get_roots([1])
    server.reset()
    server.faults = lambda endpoint, n: Fault(status, body=b'{"message": "because", "error": "reason"}')
    with pytest.raises(requests.HTTPError, match=rf"{status} .*because"):
        client.chunkedgraph.get_roots([1])
    assert [(request.endpoint, request.status) for request in server.requests] == [("roots_binary", status)]


def test_faults_cut_corrupt_and_delay_answers(server: CaveServer, client: CAVEclient, world: World) -> None:
    ids, graph = world.graph.supervoxels, client.chunkedgraph
    correct = graph.get_roots(ids)
    server.faults = lambda endpoint, n: Fault(cut=100)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        graph.get_roots(ids)
    server.faults = lambda endpoint, n: Fault(corrupt=True)
    corrupted = graph.get_roots(ids)
    assert corrupted[:8].tolist() == (~correct[:8]).tolist()
    assert corrupted[8:].tolist() == correct[8:].tolist()
    server.faults = lambda endpoint, n: Fault(delay_s=0.3) if endpoint == "roots_binary" else None
    started = time.monotonic()
    assert graph.get_roots(ids).tolist() == correct.tolist()
    assert time.monotonic() - started >= 0.3


def test_an_error_of_a_fault_hook_is_not_swallowed(world: World) -> None:
    def raise_error(endpoint: str, n: int) -> Fault | None:
        raise RuntimeError("in the hook")

    with (
        pytest.raises(RuntimeError, match="in the hook"),
        CaveServer(world, tokens=(HEX,), faults=raise_error) as server,
    ):
        assert post(server, "roots_binary", b"").status_code == 500


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/segmentation/table/other/info", 404),
        ("POST", "/segmentation/api/v1/table/other/roots_binary", 404),
        ("GET", "/info/api/v2/datastack/full/other", 404),
        ("GET", "/info/api/v2/aligned_volume/other", 404),
        ("GET", "/materialize/api/v3/datastack/other/versions", 404),
        ("GET", "/materialize/api/v3/datastack/demo_datastack/version/99", 404),
        ("GET", "/materialize/api/v2/datastack/demo_datastack/version/3", 200),
        ("GET", "/meshing/api/v1/table/demo_v1/manifest/1", 404),
        ("GET", "/", 404),
        ("GET", "/segmentation/api/v1/table/demo_v1/roots_binary", 405),
        ("POST", "/segmentation/api/v1/table/demo_v1/roots_binary?timestamp=never", 400),
        ("POST", "/segmentation/api/v1/table/demo_v1/roots_binary?timestamp=nan", 400),
        ("POST", "/segmentation/api/v1/table/demo_v1/roots_binary?stop_layer=x", 400),
        ("POST", "/segmentation/api/v1/table/demo_v1/roots_binary?stop_layer=5", 500),
        ("POST", "/segmentation/api/v1/table/demo_v1/roots", 400),
        ("POST", "/segmentation/api/v1/table/demo_v1/merge", 400),
        ("GET", "/segmentation/api/v1/table/demo_v1/node/x/leaves", 400),
        ("GET", "/segmentation/api/v1/table/demo_v1/node/1/leaves?bounds=1-2_3-4", 400),
        ("GET", "/segmentation/api/v1/table/demo_v1/node/1/leaves", 200),
        ("GET", "/segmentation/api/v1/table/demo_v1/root/1/lineage_graph", 500),
        ("GET", "/segmentation/api/v1/table/demo_v1/l2_chunk_children_binary/1?as_array=True", 500),
        ("GET", "/segmentation/api/v1/table/demo_v1/delta_roots", 400),
    ],
)
def test_invalid_requests_get_a_status_and_a_message(server: CaveServer, method: str, path: str, status: int) -> None:
    answer = requests.request(method, server.url + path, headers={"Authorization": f"Bearer {HEX}"})
    assert answer.status_code == status
    assert status == 200 or (answer.json()["code"], bool(answer.json()["message"])) == (status, True)
    assert server.requests[-1].status == status


@pytest.mark.parametrize("body", [b"1234567", b"not gzip"])
def test_invalid_bodies_of_ids_are_refused(server: CaveServer, body: bytes) -> None:
    headers = {"Content-Encoding": "gzip"} if body == b"not gzip" else {}
    assert post(server, "roots_binary", body, headers).status_code == 400
    assert post(server, "roots", b'{"node_ids": [-1]}').status_code == 400
    answer = post(server, "roots", b'{"node_ids": [0, 5]}', timestamp=0)
    assert answer.json() == {"root_ids": [0, 5]}


def test_the_graph_may_be_edited_while_it_is_served(tmp_path: Path, serve: Callable[..., CaveServer]) -> None:
    world = make_world(tmp_path, (128, 128, 32), edited=False)
    graph, server = world.graph, serve(world)
    client, ids = server.client(), world.graph.supervoxels
    client.chunkedgraph.get_roots(ids)
    first, second, *others = np.unique(graph.roots(ids)).tolist()
    counts = {len(others) + 1, len(others) + 2}
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(client.chunkedgraph.get_roots, ids) for _ in range(60)]
        for _ in range(20):
            merged = graph.merge(first, second)
            first, second = graph.split(merged, graph.leaves(merged)[::2])
        assert {len(np.unique(future.result())) for future in futures} <= counts
    time.sleep(0.05)  # edits a millisecond apart may be ahead of the clock
    np.testing.assert_array_equal(client.chunkedgraph.get_roots(ids), graph.roots(ids))
    assert client.chunkedgraph.is_latest_roots([first, second, merged]).tolist() == [True, True, False]


@pytest.mark.long
def test_the_server_runs_as_a_command(tmp_path: Path, world: World) -> None:
    command = [sys.executable, "-m", "imagery_dask.testing.cave", str(tmp_path), "--token", HEX]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, datastack, segmentation, token = (process.stdout.readline().split()[-1] for _ in range(4))
            assert token == HEX
            client = CAVEclient(datastack, server_address=url, auth_token=token, write_server_cache=False)
            assert client.info.segmentation_source() == segmentation
            np.testing.assert_array_equal(
                client.chunkedgraph.get_roots(world.graph.supervoxels), world.graph.roots(world.graph.supervoxels)
            )
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
