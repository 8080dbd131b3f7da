"""Supervoxels that were split are read as they were at the moment of a cutout, and without the means, refused."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorstore
from cloudvolume import CloudVolume
from support.dynamic import TOKEN, Box, bounds, client_of, crop, cut, forget, resolution, secrets_file, served
from support.http_server import FileServer
from support.packages import hide_package
from support.recording import RecordingProxy
from support.settings import Configure
from support.volumes import sharding_spec

from imagery_dask import ImageryClient, to_precomputed, to_zarr
from imagery_dask.errors import InvalidInfoError, SourceError
from imagery_dask.model import chunkedgraph
from imagery_dask.sources import changed_supervoxel_chunks, open_volume, volumes_at
from imagery_dask.sources.precomputed import ocdbt_files
from imagery_dask.testing.cave import CaveServer, Fault, World, make_world
from imagery_dask.testing.cave.split_store import SplitStore

SHAPE = (128, 128, 32)
WHOLE: Box = ((0, 0, 0), (64, 64, 32))
SOME: Box = ((3, 5, 2), (40, 61, 29))


def largest(world: World, rank: int = 0) -> int:
    """Return one of the largest current supervoxels."""
    ids, sizes = np.unique(world.supervoxels[world.supervoxels != 0], return_counts=True)
    return int(ids[np.argsort(-sizes, kind="stable")[rank]])


def ends(world: World, supervoxel: int, pieces: int = 2) -> np.ndarray:
    """Return voxels of a supervoxel, from its first to its last."""
    at = np.argwhere(world.supervoxels == np.uint64(supervoxel)) + world.voxel_offset
    return at[np.linspace(0, len(at) - 1, pieces).astype(int)]


def split(world: World, rank: int = 0, pieces: int = 2, **options: Any) -> np.ndarray:
    """Split one of the largest supervoxels."""
    supervoxel = largest(world, rank)
    return world.split_supervoxel(supervoxel, ends(world, supervoxel, pieces), **options)


def store_folder(world: World) -> Path:
    """Return the folder of the graph's edits."""
    assert world.splits is not None
    return world.splits.folder


def next_second() -> int:
    now = int(time.time()) + 1
    time.sleep(now - time.time() + 0.01)
    return now


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "world", SHAPE, splits="spec")


@pytest.fixture
def server(world: World) -> Iterator[CaveServer]:
    with served(world) as server:
        yield server


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read supervoxels of exactly the moment, for roots too."""
    monkeypatch.setattr(chunkedgraph, "SETTLED_S", 0)


# ------------------------------------------------------------------------------------------ moments


def in_shards(world: World, folder: Path) -> None:
    """Store a world's watershed in shards, and begin its store of splits again."""
    for mip, voxels in enumerate(world.mips):
        nm = resolution(world, mip)
        scale = {
            "size": voxels.shape,
            "voxel_offset": bounds(world, WHOLE, mip)[0].tolist(),
            "chunk_size": [32, 32, 16],
            "resolution": nm,
            "encoding": "compressed_segmentation",
            "compressed_segmentation_block_size": [8, 8, 8],
            "sharding": sharding_spec(voxels.shape, (32, 32, 16)),
        }
        level = {"driver": "neuroglancer_precomputed", "kvstore": folder.as_uri() + "/", "scale_metadata": scale}
        level["multiscale_metadata"] = {"type": "segmentation", "data_type": "uint64", "num_channels": 1}
        tensorstore.open(level, create=True).result().write(voxels[..., None]).result()
    world.watershed_source = f"precomputed://{folder.as_uri()}"
    world.watershed_info = json.loads((folder / "info").read_text())
    world.splits = SplitStore(folder, world.table, world.mips, populated=True)


@pytest.mark.parametrize(
    ("form", "populated", "settled_s"),
    [("spec", False, 0), ("spec", True, 180), ("path", False, 180), ("path", True, 0), ("shards", True, 0)],
)
def test_voxels_of_every_moment_are_the_servers(
    tmp_path: Path, form: Any, populated: bool, settled_s: int, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    monkeypatch.setattr(chunkedgraph, "SETTLED_S", settled_s)
    configure("lazy.block_bytes", 32 * 32 * 16 * 8)
    splits = "path" if form == "path" else "spec"
    n_mips = 2 if form == "shards" else 3
    world = make_world(tmp_path / "world", SHAPE, splits=splits, populated=populated, n_mips=n_mips)
    if form == "shards":
        in_shards(world, tmp_path / "shards")
    moments = [world.times["created"], world.times["split_2"], next_second()]
    for pieces in (2, 4, 3):
        split(world, rank=pieces, pieces=pieces)
        split(world)  # again, a piece of a piece
        moments.append(next_second())
    with served(world) as server:
        client = client_of(server)
        for moment in moments:
            for mip in range(n_mips):
                stored = world.supervoxels_at(moment, mip)
                options = {"mip": mip, "timestamp": moment}
                box = ((0, 0, 0), stored.shape)
                got = np.asarray(cut(client, world, box, root_ids=None, **options))
                np.testing.assert_array_equal(got, stored)
                if settled_s == 0 or mip == 0:  # coarser supervoxels are those of three minutes later
                    ids, inverse = np.unique(stored, return_inverse=True)
                    roots = world.graph.roots(ids, moment)[inverse.reshape(stored.shape)]
                    np.testing.assert_array_equal(np.asarray(cut(client, world, box, **options)), roots)


def test_pieces_are_seen_from_the_time_of_the_edit_though_they_are_written_later(
    world: World, server: CaveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = int(time.time()) - 5
    new = split(world, timestamp=edited)  # which is committed now
    client = client_of(server)
    expected = world.roots_volume(edited)
    assert set(world.graph.roots(new, edited).tolist()) <= set(expected.ravel().tolist())
    np.testing.assert_array_equal(np.asarray(cut(client, world, WHOLE, timestamp=edited)), expected)
    before = np.asarray(cut(client, world, WHOLE, timestamp=edited - 1))
    np.testing.assert_array_equal(before, world.roots_volume(edited - 1))
    monkeypatch.setattr(chunkedgraph, "SETTLED_S", 0)
    assert (np.asarray(cut(client, world, WHOLE, timestamp=edited)) != expected).any()


@pytest.mark.usefixtures("small_lazy_blocks")
@pytest.mark.parametrize("rank", [0, 3])
def test_a_few_roots_have_all_voxels_at_earlier_moments(world: World, server: CaveServer, rank: int) -> None:
    moment = world.times["created"]
    root = int(world.graph.roots([largest(world, rank)], moment)[0])
    expected = crop(np.where(world.roots_volume(moment) == root, np.uint64(root), np.uint64(0)), WHOLE)
    split(world, rank)  # whose pieces are among the leaves of the old root
    client = client_of(server)
    np.testing.assert_array_equal(np.asarray(cut(client, world, WHOLE, root_ids=[root], timestamp=moment)), expected)
    masks = client.split_segmentation_cutout(
        bounds(world, WHOLE), root_ids=[root], mip=0, resolution=resolution(world), timestamp=moment
    )
    np.testing.assert_array_equal(np.asarray(masks[root]), expected != 0)


def test_points_and_counts_of_objects_see_splits(world: World, server: CaveServer) -> None:
    seeds = ends(world, largest(world))
    new = split(world)
    now = next_second()
    client = client_of(server)
    assert client.root_at(seeds, mip=0, resolution=resolution(world), timestamp=now).tolist() == [
        int(root) for root in world.graph.roots(new)
    ]
    ids, sizes = np.unique(world.roots_volume(now), return_counts=True)
    expected = {int(root): int(size) for root, size in zip(ids, sizes, strict=True) if root}
    found = client.unique_roots(bounds(world, WHOLE), mip=0, resolution=resolution(world), timestamp=now)
    assert found == expected


def test_kept_chunks_are_of_their_moment(world: World, server: CaveServer, prompt: None) -> None:
    for file in Path(world.watershed_source.removeprefix("precomputed://file://")).rglob("*.gz"):
        os.utime(file, (1_700_000_000, 1_700_000_000))  # chunks that were written just now are not kept
    before = next_second()
    client = client_of(server)
    first = np.asarray(cut(client, world, WHOLE, root_ids=None, timestamp=before))
    split(world)
    after = next_second()
    for moment in (after, before, after):
        array = cut(client, world, WHOLE, root_ids=None, timestamp=moment)
        np.testing.assert_array_equal(array.compute(), world.supervoxels_at(moment))
    shutil.rmtree(store_folder(world))  # of which nothing is read now
    np.testing.assert_array_equal(array.compute(), world.supervoxels_at(after))
    np.testing.assert_array_equal(first, world.supervoxels_at(before))


def test_the_moment_of_supervoxels_is_in_names_and_attributes(world: World, server: CaveServer) -> None:
    client = client_of(server)
    whole = [client.segmentation_volume(mip=0, root_ids=None, timestamp=at) for at in (1_750_000_000, 1_760_000_000)]
    assert [volume.attrs["timestamp_unix_s"] for volume in whole] == [1_750_000_000, 1_760_000_000]
    assert whole[0].data.name != whole[1].data.name


# ------------------------------------------------------------------------------------------ others that read


def test_cloudvolume_agrees_up_to_the_first_split_and_not_after_it(world: World, server: CaveServer) -> None:
    before = next_second()
    split(world)
    after = next_second()
    client, ours = client_of(server), {}
    with secrets_file(server):
        volume = CloudVolume(server.segmentation_source, progress=False, fill_missing=True)
        for moment in (world.times["split_1"], before, after):
            got = np.asarray(cut(client, world, WHOLE, timestamp=moment))
            theirs = volume.download(volume.bounds, agglomerate=True, timestamp=moment)[..., 0]
            ours[moment] = (got == theirs).all()
            np.testing.assert_array_equal(got, world.roots_volume(moment))
    assert list(ours.values()) == [True, True, False]
    with pytest.raises(SourceError, match="CloudVolume reads the supervoxels of .* before any"):
        _ = client.segmentation_cv


def test_tensorstore_reads_the_same_supervoxels(tmp_path: Path) -> None:
    world = make_world(tmp_path, SHAPE, splits="spec", populated=True)
    split(world, pieces=3)
    now = next_second()
    with served(world) as server:
        got = np.asarray(cut(client_of(server), world, WHOLE, root_ids=None, timestamp=now))
    spec = {"driver": "neuroglancer_precomputed", "kvstore": world.split_info["ocdbt_kvstore_spec"]}
    np.testing.assert_array_equal(got, tensorstore.open(spec).result()[..., 0].read().result())


def test_the_volume_by_its_own_path_is_read_without_tensorstore(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.supervoxels
    split(world)
    hide_package(monkeypatch, "tensorstore")
    client = ImageryClient(segmentation_source=world.watershed_source)
    np.testing.assert_array_equal(np.asarray(cut(client, world, WHOLE)), before)
    assert (before != world.supervoxels).any()


# ------------------------------------------------------------------------------------------ exports


def test_exports_of_roots_and_supervoxels_have_the_voxels_of_their_moment(
    world: World, server: CaveServer, tmp_path: Path, prompt: None
) -> None:
    split(world)
    moment = next_second()
    split(world, rank=1)
    client = client_of(server)
    stored = world.supervoxels_at(moment)
    ids, inverse = np.unique(stored, return_inverse=True)
    roots = world.graph.roots(ids, moment)[inverse.reshape(stored.shape)]
    for name, expected, options in (("supervoxels", stored, {"root_ids": None}), ("roots", roots, {})):
        volume = client.segmentation_volume(mip=0, timestamp=moment, **options)
        to_zarr(volume, tmp_path / f"{name}.zarr")
        to_precomputed(volume, tmp_path / name, encoding="compressed_segmentation")
        written = CloudVolume(f"file://{tmp_path / name}", progress=False)[:][..., 0]
        np.testing.assert_array_equal(written, expected)
        exported = open_volume(volumes_at(f"{tmp_path / name}.zarr")[-1])
        voxels, _ = exported.read(0, exported.layer.mips[0].grid, "error")
        np.testing.assert_array_equal(voxels[..., 0], expected)


# ------------------------------------------------------------------------------------------ refused


def test_without_tensorstore_the_graph_is_refused_when_it_is_opened(
    server: CaveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_package(monkeypatch, "tensorstore")
    with pytest.raises(InvalidInfoError) as caught:
        client_of(server)
    assert 'pip install "imagery_dask[ocdbt]"' in str(caught.value)
    assert "watershed/ocdbt" in str(caught.value)
    assert server.count() == server.count("info")


def test_a_worker_without_tensorstore_refuses_a_block(
    world: World, server: CaveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = cut(client_of(server), world)
    forget()
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    hide_package(monkeypatch, "tensorstore")
    with pytest.raises(InvalidInfoError, match="also for workers"):
        array.compute()


def broken(folder: Path, how: str) -> None:
    """Break a store: its manifest or its data."""
    files = (
        [folder / "manifest.ocdbt"] if how.startswith("manifest") else [*folder.rglob("*_d/*"), *folder.rglob("d/*")]
    )
    for file in files:
        if how.endswith("gone"):
            file.unlink()
        else:
            file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.parametrize("how", ["manifest gone", "manifest zeros", "data gone", "data zeros"])
def test_a_broken_store_is_an_error_and_never_zeros(world: World, server: CaveServer, how: str) -> None:
    split(world)
    assert world.splits is not None
    broken(world.splits.folder, how)
    ocdbt_files._context.cache_clear()
    with pytest.raises(SourceError, match="OCDBT store"):
        np.asarray(cut(client_of(server), world, WHOLE))


def test_a_broken_store_is_an_error_in_an_open_volume(world: World, server: CaveServer) -> None:
    split(world)
    client = client_of(server)
    np.asarray(cut(client, world, SOME))
    assert world.splits is not None
    broken(world.splits.folder, "data gone")
    ocdbt_files._context.cache_clear()
    open_volume(server.segmentation_source).forget_chunks()
    with pytest.raises(SourceError):
        np.asarray(cut(client, world, WHOLE))


def test_a_mip_that_the_store_does_not_have_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path, SHAPE, splits="path")
    assert world.splits is not None
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": world.splits.folder.as_uri() + "/"}).result()
    info = json.loads(store["info"])
    info["scales"] = [info["scales"][0], info["scales"][1] | {"chunk_sizes": [[64, 64, 16]]}]
    store["info"] = json.dumps(info).encode()
    with served(world) as server:
        client = client_of(server)
        assert cut(client, world, mip=0) is not None
        with pytest.raises(ValueError, match=r"mip 1 .* chunk_sizes is \[64, 64, 16\], not \[32, 32, 16\]"):
            cut(client, world, mip=1)
        with pytest.raises(ValueError, match="mip 2 .* no scale has this resolution"):
            cut(client, world, mip=2)


def test_no_token_is_sent_with_reads_of_the_store(world: World, server: CaveServer) -> None:
    split(world)
    now = next_second()
    info = requests.get(
        f"{server.url}/segmentation/table/{server.table}/info", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
    ).json()
    with FileServer(store_folder(world).parent) as files, RecordingProxy(int(files.url.rpartition(":")[2])) as proxy:
        address = proxy.address.replace("tcp", "http")
        text = json.dumps(info | {"graph": info["graph"]}).replace(f"{store_folder(world).parent.as_uri()}", address)
        body = text.replace('"ocdbt/base"', f'"{address}/base"').encode()
        server.faults = lambda name, n: Fault(status=200, body=body) if name == "info" else None
        got = np.asarray(cut(client_of(server), world, WHOLE, root_ids=None, timestamp=now))
        sent = b"".join(proxy.recorded)
    np.testing.assert_array_equal(got, world.supervoxels)
    assert b"manifest.ocdbt" in sent
    assert TOKEN.encode() not in sent
    assert b"authorization" not in sent.lower()


# ------------------------------------------------------------------------------------------ what changed


def test_chunks_that_splits_touched_are_found(world: World, server: CaveServer) -> None:
    moments = [next_second()]
    for rank in (0, 5):
        split(world, rank)
        moments.append(next_second())
    client_of(server)  # opens the volume, with a token
    path = server.segmentation_source
    for mip in (0, 1, 2):
        level = open_volume(path).layer.mips[mip]
        for first in moments:
            for second in moments:
                one, other = world.supervoxels_at(first, mip), world.supervoxels_at(second, mip)
                changed = changed_supervoxel_chunks(path, mip, level.grid, first, second)
                outside = one != other
                for chunk in changed:
                    here = tuple(map(slice, chunk.start - level.grid.start, chunk.stop - level.grid.start))
                    assert mip or outside[here].any()
                    outside[here] = False
                assert not outside.any()
                assert changed == changed_supervoxel_chunks(path, mip, level.grid, second, first)
    part = level.grid.crop((0, 0, 0), (1, 1, 1))
    assert all(chunk.start == level.grid.start for chunk in changed_supervoxel_chunks(path, mip, part, *moments[:2]))


# ------------------------------------------------------------------------------------------ the wire protocol


def test_a_multicut_within_a_supervoxel_splits_it(world: World, server: CaveServer) -> None:
    supervoxel = largest(world)
    first, last = (ends(world, supervoxel) * world.resolution).tolist()
    url = f"{server.url}/segmentation/api/v1/table/{server.table}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    body = {"sources": [[str(supervoxel), *first]], "sinks": [[str(supervoxel), *last]]}
    old = int(world.graph.roots([supervoxel])[0])
    whole = world.graph.leaves(old).tolist()
    answer = requests.post(f"{url}/split", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    new = answer.json()["new_root_ids"]
    assert len(new) == 2
    leaves = [requests.get(f"{url}/node/{root}/leaves", headers=headers, timeout=30).json()["leaf_ids"] for root in new]
    pieces = {*leaves[0], *leaves[1]} - set(whole)
    assert len(pieces) == 2
    assert set(whole) - {*leaves[0], *leaves[1]} == {supervoxel}
    assert {int(world.graph.layout.chunk_ids(piece)) for piece in pieces} == {
        int(world.graph.layout.chunk_ids(supervoxel))
    }
    assert min(pieces) > supervoxel
    past = requests.get(f"{url}/node/{old}/leaves", headers=headers, timeout=30).json()["leaf_ids"]
    assert sorted(past) == sorted([*leaves[0], *leaves[1]])
    delta = requests.get(f"{url}/delta_roots?timestamp_past=0", headers=headers, timeout=30).json()
    assert delta["old_roots"][-1] == old
    assert delta["new_roots"][-2:] == new


def test_a_graph_without_a_store_splits_no_supervoxel(tmp_path: Path) -> None:
    world = make_world(tmp_path, (128, 128, 32))
    supervoxel = largest(world)
    ends_nm = (ends(world, supervoxel) * world.resolution).tolist()
    with served(world) as server:
        url = f"{server.url}/segmentation/api/v1/table/{server.table}/split"
        rows = [[[supervoxel, *end]] for end in ends_nm]
        answer = requests.post(
            url, json={"sources": rows[0], "sinks": rows[1]}, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
        )
    assert answer.status_code == 400
    assert "no OCDBT store" in answer.text
    assert "ocdbt_seg" not in json.dumps(world.split_info)
