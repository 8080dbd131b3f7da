"""A file of a store's volume that is lost is an error wherever a version is read; where there is nothing, all is 0."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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
from support.version_stores import make_store

from imagery_dask import open_versions, to_zarr
from imagery_dask.errors import BlockFailedError, MissingChunkError
from imagery_dask.sources import collect_counts, handle
from imagery_dask.sources.graph.root_tables import forget_tables
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
