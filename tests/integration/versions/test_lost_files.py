"""A file of a store's volume that is lost is an error wherever a version is read; where there is nothing, all is 0."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from support.dynamic import forget, secrets_file
from support.http_server import FileServer
from support.made_stores import create
from support.programs import Done
from support.version_stores import make_store, write_supervoxels

from imagery_dask import open_versions, to_zarr
from imagery_dask.errors import BlockFailedError, MissingChunkError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.sources import SourceHandle, collect_counts, handle
from imagery_dask.sources.graph.root_tables import IdTable, forget_tables
from imagery_dask.testing.cave import CaveServer, World
from imagery_dask.versions.opened_versions import VersionStore

Moments = dict[str, tuple[float, int | None]]
Command = Callable[..., Done]
Lost = Callable[..., tuple[VersionStore, np.ndarray, Path]]

# Of graph chunks of 32 x 32 x 16 voxels: whole ones, several, and parts of one, with and without shards.
FILES: dict[str, dict[str, Any]] = {
    "shards": {},
    "large shards": {"chunks": (32, 32, 16), "shards": (64, 64, 32)},
    "small shards": {"chunks": (8, 8, 8), "shards": (16, 16, 8)},
    "chunks": {"shards": None},
}


def reopened(out: Path | str) -> VersionStore:
    handle._volumes.clear()
    forget_tables()
    forget()
    return open_versions(out)


class Proofs:
    """Records which rows of supervoxels are read, and which boxes of which levels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows_within, read = IdTable.rows_within, SourceHandle.read
        self.rows: list[int] = []
        self.boxes: list[tuple[int, VoxelGrid]] = []

        def recorded_rows(table: IdTable, *arguments: Any) -> Iterator[Any]:
            for rows in rows_within(table, *arguments):
                if table.url.endswith("/supervoxels.parquet"):
                    self.rows += rows["supervoxel"].tolist()
                yield rows

        def recorded_read(handle: SourceHandle, box: VoxelGrid, *arguments: Any, **options: Any) -> np.ndarray:
            self.boxes.append((handle.mip.level, box))
            return read(handle, box, *arguments, **options)

        monkeypatch.setattr(IdTable, "rows_within", recorded_rows)
        monkeypatch.setattr(SourceHandle, "read", recorded_read)

    def taken(self) -> tuple[list[int], list[tuple[int, VoxelGrid]]]:
        """Return what was recorded since the last call."""
        taken = self.rows, self.boxes
        self.rows, self.boxes = [], []
        return taken


def file_at(out: Path, level: int, number: int) -> Path:
    files = sorted(path for path in (out / f"volume.zarr/{level}/c").rglob("*") if path.is_file())
    return files[number % len(files)]


def box_of(out: Path, path: Path, level: int = 0) -> list[slice]:
    """Return the voxels of a file, x, y, z from the first of the volume."""
    array = zarr.open_array(out / "volume.zarr", path=str(level), mode="r")
    z, y, x = (int(part) for part in path.parts[-3:])
    shape = (array.shards or array.chunks)[::-1]
    return [slice(at * size, (at + 1) * size) for at, size in zip((x, y, z), shape, strict=True)]


@pytest.fixture(params=list(FILES))
def lost(request: pytest.FixtureRequest, tmp_path: Path, world: World, moments: Moments) -> Lost:
    """Return a store without a file of a level, the voxels of version 3, and the file."""
    out = make_store(tmp_path / "out", world, {"2": moments["2"], "3": moments["3"]}, **FILES[request.param])

    def lose(level: int = 0, number: int = 5) -> tuple[VersionStore, np.ndarray, Path]:
        path = file_at(out, level, number)
        path.unlink()
        return reopened(out), world.roots_volume(moments["3"][0]), path

    return lose


def refused(path: Path) -> Any:
    key = "/".join(path.parts[-6:])
    return pytest.raises(MissingChunkError, match=rf"{key}(, chunk [\d, ]+)? is not stored, .* is lost")


def test_a_version_is_not_read_without_a_file(lost: Lost, tmp_path: Path) -> None:
    store, expected, path = lost()
    box = tuple(box_of(tmp_path / "out", path))
    own = expected[box]
    root = int(np.unique(own[own != 0])[0])
    # As lazy arrays, of roots, an object, its masks and supervoxels.
    for options in ({}, {"root_ids": [root]}, {"root_ids": None}, {"convert_to_int64": True}):
        with refused(path):
            store.at(3, **options)["segmentation"][box].to_numpy()
    with refused(path):
        store.diff(2, 3).layer()[box].to_numpy()
    low, high = (np.array(store.facts.bounds[0]) + [getattr(one, end) for one in box] for end in ("start", "stop"))
    with refused(path):
        store.diff(2, 3).picture(z=int(low[2]), bounds=[low, high])
    with refused(path):
        np.asarray(zarr.open_array(store.zarr_store(3), path="0", mode="r")[tuple(reversed(box))])
    with pytest.raises(BlockFailedError, match="is lost"):
        store.materialize(3, tmp_path / "copy.zarr", progress=False)
    with pytest.raises(BlockFailedError, match="is lost"):
        to_zarr(store.at(3, root_ids=[root])["segmentation"], tmp_path / "sparse.zarr", progress=False)
    with pytest.raises(BlockFailedError, match="is lost"):
        to_zarr(store.at(3, root_ids=None)["segmentation"], tmp_path / "supervoxels.zarr", progress=False)


def test_all_other_voxels_are_read(lost: Lost, tmp_path: Path) -> None:
    store, expected, path = lost()
    left = np.ones(expected.shape, bool)
    box = box_of(tmp_path / "out", path)
    left[tuple(box)] = False
    segmentation = store.at(3)["segmentation"]
    for axis in range(3):
        for part in (slice(None, box[axis].start), slice(box[axis].stop, None)):
            there = tuple(part if one == axis else slice(None) for one in range(3))
            np.testing.assert_array_equal(segmentation[there].to_numpy(), expected[there])


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("level", [1, 2])
def test_files_of_coarser_levels_are_lost_too(lost: Lost, level: int, number: int) -> None:
    store, _, path = lost(level, number)
    with refused(path):
        store.at(3, level=level)["segmentation"].to_numpy()


def test_the_message_says_how_to_write_the_file_again(
    server: CaveServer, world: World, tmp_path: Path, command: Command
) -> None:
    moment = world.times["split_1"]
    create(server, tmp_path / "OUT", moment)
    whole = reopened(tmp_path / "OUT").at(timestamp=moment)["segmentation"].to_numpy()
    path = file_at(tmp_path / "OUT", 0, 0)
    content = path.read_bytes()
    path.unlink()
    with refused(path) as error:
        reopened(tmp_path / "OUT").at(timestamp=moment)["segmentation"].to_numpy()
    words = [part.split()[1:] for part in str(error.value).split("'") if part.startswith("imagery-dask ")]
    assert [words_[0] for words_ in words] == ["versions", "verify", "export"]
    with secrets_file(server):
        done = [command(*one) for one in words]
    assert [one.code for one in done] == [1, 1, 0], done[-1].error
    assert path.read_bytes() == content
    np.testing.assert_array_equal(reopened(tmp_path / "OUT").at(timestamp=moment)["segmentation"], whole)


@pytest.fixture
def hollow(tmp_path: Path, world: World, moments: Moments) -> tuple[Path, tuple[slice, ...]]:
    """A store in which a graph chunk is empty: it has no voxel, and the tables have no rows of it; and its box."""
    out = make_store(tmp_path / "out", world, {"3": moments["3"]}, levels=1)
    path = file_at(out, 0, 5)
    box = tuple(box_of(out, path))
    gone = np.unique(world.supervoxels[box])
    path.unlink()
    for table in (out / "supervoxels.parquet", out / "roots/3.parquet"):
        rows = pq.read_table(table)
        kept = rows.filter(~np.isin(rows["supervoxel"].to_numpy(), gone))
        pq.write_table(kept.replace_schema_metadata(rows.schema.metadata), table, row_group_size=64)
    return out, box


def test_what_is_empty_is_0(
    hollow: tuple[Path, tuple[slice, ...]], world: World, moments: Moments, tmp_path: Path,
    http_server_factory: Callable[[Path], FileServer],
) -> None:  # fmt: skip
    out, box = hollow
    expected = world.roots_volume(moments["3"][0]).copy()
    expected[box] = 0
    server = http_server_factory(out.parent)
    store = reopened(f"{server.url}/out")
    segmentation = store.at(3)["segmentation"]
    np.testing.assert_array_equal(segmentation, expected)
    # With the table of the version open, an empty box takes the request that finds nothing, and no other one.
    server.reset()
    with collect_counts() as counts:
        assert not segmentation[box].to_numpy().any()
    assert (counts.not_stored, counts.missing) == (1, 0)
    assert [request.path.partition("/out/")[2] for request in server.requests] == [
        f"volume.zarr/0/c/{'/'.join(str(one.start // n) for one, n in zip(box[::-1], (16, 32, 32), strict=True))}"
    ]
    view = zarr.open_array(store.zarr_store(3), path="0", mode="r")
    np.testing.assert_array_equal(np.asarray(view[:]).T, expected)
    reopened(out).materialize(3, tmp_path / "copy.zarr", levels=1, progress=False)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "copy.zarr", path="0", mode="r")[:].T, expected)


def test_what_is_stored_takes_no_request_more(
    tmp_path: Path, world: World, moments: Moments, http_server_factory: Callable[[Path], FileServer]
) -> None:
    out = make_store(tmp_path / "out", world, {"3": moments["3"]}, levels=1)
    server = http_server_factory(out.parent)
    store = reopened(f"{server.url}/out")
    server.reset()
    np.testing.assert_array_equal(store.at(3)["segmentation"], world.roots_volume(moments["3"][0]))
    assert not [request.path for request in server.requests if request.path.endswith("supervoxels.parquet")]
    shutil.rmtree(out)


# Shards are graph chunks of 32 x 32 x 16 voxels, with chunks that have no more than the middle of many supervoxels.
SMALL = {"chunks": (4, 4, 4), "shards": (32, 32, 16)}


@pytest.mark.parametrize("is_remote", [False, True])
def test_no_chunk_of_a_lost_shard_is_read(
    tmp_path: Path, world: World, moments: Moments, http_server_factory: Callable[[Path], FileServer], is_remote: bool
) -> None:
    out = make_store(tmp_path / "out", world, {"3": moments["3"]}, levels=1, **SMALL)
    path = file_at(out, 0, 5)
    path.unlink()
    box = box_of(out, path)
    segmentation = reopened(f"{http_server_factory(tmp_path).url}/out" if is_remote else out).at(3)["segmentation"]
    for cell in np.ndindex(8, 8, 4):
        chunk = tuple(slice(one.start + 4 * at, one.start + 4 * at + 4) for one, at in zip(box, cell, strict=True))
        with refused(path):
            segmentation[chunk].to_numpy()
    for axis in range(3):
        with refused(path):
            segmentation[tuple(box[axis].stop - 1 if one == axis else box[one] for one in range(3))].to_numpy()


@pytest.fixture
def holed(tmp_path: Path, world: World, moments: Moments) -> tuple[Path, World, list[tuple[slice, ...]]]:
    """A store without voxels in two boxes, each a part of a graph chunk at an end of the volume; the world, the boxes.

    In level 0, and in the coarser one, each box is whole chunks of a shard that exists.
    """
    out = make_store(tmp_path / "out", world, {"3": moments["3"]}, levels=2, group_rows=4, **SMALL)
    voxels = world.supervoxels.copy(order="F")
    shape = np.array(voxels.shape)
    corners = np.array([8, 8, 4]), shape // (32, 32, 16) * (32, 32, 16) - (16, 16, 8)
    boxes = [tuple(slice(int(at), int(at) + 8) for at in corner) for corner in corners]
    for level in range(2):
        array = zarr.open_array(out / "volume.zarr", path=str(level), mode="r+")
        step = np.round(shape / array.shape[::-1]).astype(int)
        for box in boxes:
            array[tuple(slice(one.start // n, one.stop // n) for one, n in zip(box, step, strict=True))[::-1]] = 0
            voxels[box] = 0
    hole = replace(world, mips=[voxels, *world.mips[1:]])
    write_supervoxels(out, hole, group_rows=4)
    return out, hole, boxes


@pytest.mark.parametrize("is_remote", [False, True])
def test_chunks_that_a_shard_leaves_out_are_0(
    holed: Any, moments: Moments, http_server_factory: Callable[[Path], FileServer], is_remote: bool
) -> None:
    out, hole, boxes = holed
    expected = np.where(hole.supervoxels == 0, 0, hole.roots_volume(moments["3"][0]))
    store = reopened(f"{http_server_factory(out.parent).url}/out" if is_remote else out)
    segmentation = store.at(3)["segmentation"]
    for box in boxes:
        with collect_counts() as counts:
            assert not segmentation[box].to_numpy().any()
        assert counts.not_stored == 2 * 2 * 2
        around = tuple(slice(one.start - 3, one.stop + 5) for one in box)
        np.testing.assert_array_equal(segmentation[around], expected[around])
    np.testing.assert_array_equal(segmentation, expected)


def test_chunks_that_a_shard_leaves_out_are_lost_if_tables_have_them(
    tmp_path: Path, world: World, moments: Moments
) -> None:
    out = make_store(tmp_path / "out", world, {"3": moments["3"]}, levels=1, **FILES["large shards"])
    zarr.open_array(out / "volume.zarr", path="0", mode="r+")[:16, 32:64, :32] = 0
    segmentation = reopened(out).at(3)["segmentation"]
    with pytest.raises(MissingChunkError, match=r"/c/0/0/0, chunk 0, 1, 0 is not stored, .* is lost"):
        segmentation[:32, 32:64, :16].to_numpy()
    expected = world.roots_volume(moments["3"][0])
    np.testing.assert_array_equal(segmentation[32:], expected[32:])
    np.testing.assert_array_equal(segmentation[:, :32], expected[:, :32])


def test_only_rows_of_graph_chunks_with_unstored_chunks_are_read(holed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, hole, boxes = holed
    store, proofs = reopened(out), Proofs(monkeypatch)
    segmentation = store.at(3)["segmentation"]
    segmentation.to_numpy()
    rows, _ = proofs.taken()
    expected: list[int] = []
    for box in boxes:
        size = hole.graph.layout.chunk_size
        own = tuple(slice(one.start // n * n, one.start // n * n + n) for one, n in zip(box, size, strict=True))
        ids = np.unique(hole.supervoxels[own])
        expected += ids[ids != 0].tolist() * 2 * 2 * 2  # for each chunk of the box
    assert sorted(rows) == sorted(expected)
    segmentation.to_numpy()
    assert proofs.taken()[0] == []


def test_an_unstored_chunk_of_a_coarser_level_is_compared_once(holed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, boxes = holed
    store, proofs = reopened(out), Proofs(monkeypatch)
    segmentation = store.at(3, level=1)["segmentation"]
    segmentation.to_numpy()
    _, read = proofs.taken()
    finer = [box for level, box in read if level == 0]
    assert len(finer) == len(set(finer)) == 1 * 1 * 2 * len(boxes)
    segmentation.to_numpy()
    rows, read = proofs.taken()
    assert (rows, [box for level, box in read if level == 0]) == ([], [])
