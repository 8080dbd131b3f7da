"""Files of an OCDBT store at its versions, against what was written; damage is an error; versions are compared."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tensorstore
from support.buckets import BucketUnavailable, gcs_emulator, seaweedfs
from support.http_server import FileServer
from support.packages import hide_package

from imagery_dask.errors import InvalidInfoError, SourceError
from imagery_dask.model.supervoxel_store import StoreLayer, SupervoxelStore
from imagery_dask.sources.precomputed.ocdbt_files import OcdbtFiles, OcdbtStore
from imagery_dask.sources.requests.counts import collect_counts
from imagery_dask.sources.requests.transport import Request

GRAPH = "graphene://http://127.0.0.1:1/segmentation/table/t"
# Small nodes make a tree of several levels, and a low arity a tree of versions.
CONFIG = {"max_decoded_node_bytes": 500, "version_tree_arity_log2": 1}
KEYS = [f"8_8_40/{32 * n}-{32 * n + 32}_0-32_0-16" for n in range(40)]

State = dict[str, bytes]


def opened(url: str, path: str = GRAPH) -> OcdbtStore:
    return OcdbtStore(path, SupervoxelStore((StoreLayer(f"{url.rstrip('/')}/"),)), "precomputed://file:///ws")


def read(files: OcdbtFiles, keys: list[str] = KEYS) -> State:
    found = files.get_many([Request(key) for key in keys])
    return {request.key: bytes(blob.content) for request, blob in found if blob is not None}


def next_second() -> int:
    """Wait for the next second, and return it."""
    now = int(time.time()) + 1
    time.sleep(now - time.time() + 0.01)
    return now


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, State]]]:
    """A folder with a store, and seconds with the files at them; the first second is before the store."""
    folder = tmp_path_factory.mktemp("store")
    before = int(time.time()) - 10
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": folder.as_uri() + "/", "config": CONFIG}).result()
    states: list[tuple[int, State]] = [(before, {})]
    state: State = {}
    for change in range(4):
        for number in range(0, 40, 1 if change == 0 else 7 + change):
            state[KEYS[number]] = os.urandom(150 if number % 3 else 20)  # some are in the tree itself
            store.write(KEYS[number], state[KEYS[number]]).result()
        if change == 2:
            del state[KEYS[3]]
            store.write(KEYS[3], None).result()
        states.append((next_second(), dict(state)))
    return folder, states


def test_files_are_those_of_the_last_version_at_or_before_a_moment(history: Any) -> None:
    folder, states = history
    store = opened(folder.as_uri())
    for moment, state in states:
        assert read(store.at(moment)) == state
    assert read(store.at(None)) == states[-1][1]
    assert read(store.at(int(time.time()) + 10**6)) == states[-1][1]


def test_a_version_that_the_server_names_is_the_only_one(history: Any) -> None:
    folder, states = history
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(states[2][0]))
    spec = SupervoxelStore((StoreLayer(folder.as_uri() + "/"),), moment)
    store = OcdbtStore(GRAPH, spec, "precomputed://file:///ws")
    assert read(store.at(states[1][0])) == read(store.at(None)) == states[2][1]
    assert store.changed_keys(states[1][0], states[3][0]) == set()


def test_ranges_of_bytes_are_read_and_requests_counted(history: Any) -> None:
    folder, states = history
    files, content = opened(folder.as_uri()).at(None), states[-1][1][KEYS[1]]
    with collect_counts() as counts:
        part = files.get(Request(KEYS[1], 10, 30))
        assert part is not None
        assert bytes(part.content) == content[10:30]
        assert files.get(Request("nothing")) is None
        large = files.get(Request(KEYS[1], most=100))
        assert large is not None
        assert "more than 100 bytes" in large.damage
    assert counts.requests == 3


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("second", range(5))
def test_changed_keys_are_those_whose_files_differ(history: Any, first: int, second: int) -> None:
    folder, states = history
    (one, before), (other, after) = states[first], states[second]
    differ = {key for key in KEYS if before.get(key) != after.get(key)}
    assert opened(folder.as_uri()).changed_keys(one, other) == differ


def test_only_the_nodes_that_differ_are_read_to_compare(history: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, states = history
    store, read_nodes = opened(folder.as_uri()), []
    dump = store._dump
    monkeypatch.setattr(store, "_dump", lambda location: read_nodes.append(location) or dump(location))
    store.changed_keys(states[-1][0], states[-1][0])
    of_versions = [node for node in read_nodes if node is None or node.startswith("versionnode")]
    assert len(read_nodes) == len(of_versions)


# ------------------------------------------------------------------------------------------ damage


def damaged(folder: Path, content: bytes | None) -> Iterator[Path]:
    """Yield each file of data after it was removed, or replaced."""
    for file in sorted((folder / "d").iterdir()):
        original = file.read_bytes()
        file.unlink()
        if content is not None:
            file.write_bytes(content[: len(original)])
        yield file
        file.write_bytes(original)


@pytest.mark.parametrize("content", [None, b"", b"\0" * 50, b"\0" * 10**6], ids=["gone", "empty", "cut", "zeros"])
def test_files_of_a_damaged_store_are_never_missing(tmp_path: Path, content: bytes | None) -> None:
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": tmp_path.as_uri() + "/"}).result()
    for key in "ab":
        store.write(key, key.encode() * 5000).result()
    n_errors = 0
    for _ in damaged(tmp_path, content):
        # A new process, so to speak: nodes that were read are kept.
        from imagery_dask.sources.precomputed import ocdbt_files

        ocdbt_files._context.cache_clear()
        for key in "ab":
            try:
                blob = opened(tmp_path.as_uri()).at(None).get(Request(key))
            except SourceError:
                n_errors += 1
                continue
            assert blob is not None
            assert blob.damage or set(blob.content) == {ord(key)} or not any(blob.content)
            n_errors += bool(blob.damage)
    assert n_errors > 0


@pytest.mark.parametrize("content", [None, b"", b"\0" * 100], ids=["gone", "empty", "zeros"])
def test_a_store_without_a_readable_manifest_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    tensorstore.KvStore.open({"driver": "ocdbt", "base": tmp_path.as_uri() + "/"}).result().write("a", b"b").result()
    manifest = tmp_path / "manifest.ocdbt"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    with pytest.raises(SourceError, match="no OCDBT store" if content is None else r"'manifest\.ocdbt' of the OCDBT"):
        opened(tmp_path.as_uri()).at(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"] + ([] if content is None else ["manifest.ocdbt"])


# ------------------------------------------------------------------------------------------ where it is


@pytest.mark.parametrize(
    ("url", "graph", "message"),
    [
        ("middleauth+https://host/ws", "graphene://https://host/segmentation/table/t", "tensorstore cannot read"),
        ("middleauth+https://other/ws", "graphene://https://host/segmentation/table/t", "token to be sent"),
        ("file:///home/me", "graphene://https://host/segmentation/table/t", "on this machine, and the info is not"),
        ("mem://ws", GRAPH, "tensorstore cannot read"),
        ("https://host/ws?token=abc", GRAPH, "without tokens"),
        ("s3://https://host/bucket/ws", GRAPH, "asks for keys to be sent"),
        ("../../secret", GRAPH, "is a relative path"),
    ],
    ids=str,
)
def test_an_info_cannot_name_what_only_the_user_may(url: str, graph: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        opened(url, graph)
    assert "abc" not in str(caught.value)


def test_without_tensorstore_the_store_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package(monkeypatch, "tensorstore")
    with pytest.raises(InvalidInfoError) as caught:
        opened("gs://bucket/ws/ocdbt/base")
    for part in (GRAPH, "gs://bucket/ws/ocdbt/base/", 'pip install "imagery_dask[ocdbt]"', "before any was split"):
        assert part in str(caught.value)


def test_a_store_is_read_over_http(history: Any) -> None:
    folder, states = history
    with FileServer(folder) as server:
        assert read(opened(server.url).at(states[2][0])) == states[2][1]
        assert opened(server.url).changed_keys(states[2][0], states[3][0])


@contextmanager
def google(folder: Path, data: Path) -> Iterator[str]:
    with gcs_emulator(folder) as server, server.environment(TENSORSTORE_GCS_HTTP_URL=server.url):
        yield server.upload(data, "bucket", "ws")


@contextmanager
def amazon(folder: Path, data: Path) -> Iterator[str]:
    with seaweedfs(folder) as server, server.environment():
        yield server.upload(data, "bucket", "ws")


@pytest.mark.parametrize("bucket", [google, amazon])
def test_a_store_is_read_from_a_bucket_with_tensorstores_own_credentials(
    history: Any, tmp_path: Path, bucket: Any
) -> None:
    folder, states = history
    try:
        with bucket(tmp_path, folder) as url:
            assert read(opened(url).at(states[2][0])) == states[2][1]
    except BucketUnavailable as error:
        pytest.skip(str(error))
