"""A store follows supervoxels that were split since it was made, whatever it is interrupted by."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.dynamic import Box, client_of, crop, forget_roots, served
from support.made_stores import columns, create
from support.settings import Configure

from imagery_dask import add_version, open_versions, plan_version, verify_versions
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.testing.cave import World, make_world
from imagery_dask.versions import split_supervoxels
from imagery_dask.versions.recorded import recorded_in

pytest.importorskip("tensorstore")

WHOLE: Box = ((0, 0, 0), (64, 64, 32))
PARTLY: Box = ((5, 9, 3), (60, 64, 29))
OPTIONS: dict[str, Any] = {"chunks": (16, 16, 16), "shards": (32, 32, 16), "levels": 2}


def split(world: World, rank: int = 0) -> None:
    """Split one of the largest supervoxels in two, now."""
    ids, sizes = np.unique(world.supervoxels[world.supervoxels != 0], return_counts=True)
    supervoxel = ids[np.argsort(-sizes, kind="stable")[rank]]
    at = np.argwhere(world.supervoxels == supervoxel) + world.voxel_offset
    world.split_supervoxel(int(supervoxel), at[[0, -1]])


def next_second() -> int:
    now = int(time.time()) + 1
    time.sleep(now - time.time() + 0.01)
    return now


def assert_versions(out: Path, world: World, moments: list[float], box: Box) -> None:
    forget_tables()
    store = open_versions(out)
    for moment in moments:
        data = store.at(timestamp=moment)["segmentation"].values
        np.testing.assert_array_equal(data, crop(world.roots_volume(moment), box))


def shards(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (out / "volume.zarr/0/c").rglob("*") if path.is_file()}


@pytest.fixture(params=["spec", "path"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return make_world(tmp_path / "world", (128, 128, 32), splits=request.param)


@pytest.mark.parametrize("box", [WHOLE, PARTLY], ids=["whole chunks", "cut chunks"])
def test_touched_chunks_are_read_again_and_old_versions_answer(
    world: World, tmp_path: Path, box: Box, configure: Configure
) -> None:
    for name in ("block_bytes", "small_block_bytes", "fused_bytes", "small_fused_bytes"):
        configure(f"export.{name}", 32 * 32 * 16 * 8)  # a shard
    out, first = tmp_path / "out", float(np.ceil(world.times["merge_1"]))
    with served(world) as server:
        client_of(server)
        create(server, out, first, box, **OPTIONS)
        before, moments = shards(out), [first]
        for rank in (0, 2):
            split(world, rank)
            moments.append(next_second())
            forget_roots()
            planned = plan_version(out, timestamp=moments[-1])
            assert 0 < planned.split_chunks < 8
            report = add_version(out, timestamp=moments[-1], progress=False)
            assert f"{planned.split_chunks} graph chunks were read again" in report.notes[0]
            assert_versions(out, world, moments, box)
        earlier = float(np.ceil(world.times["split_1"]))
        forget_roots()
        assert "volume" not in add_version(out, timestamp=earlier, progress=False).stages
        assert_versions(out, world, [*moments, earlier], box)
        check = verify_versions(out, live=20)
    assert check.ok, check.problems
    after = shards(out)
    written = [name for name in after if after[name] != before[name]]
    assert 0 < len(written) < len(after)
    table, voxels = columns(out / "supervoxels.parquet"), crop(world.supervoxels, box)
    ids, counts = np.unique(voxels[voxels != 0], return_counts=True)
    np.testing.assert_array_equal(table["supervoxel"], ids)
    np.testing.assert_array_equal(table["voxels"], counts)


@pytest.mark.parametrize("step", ["_add_rows", "_write_voxels", "_write_supervoxels", "write_facts"])
def test_a_store_is_readable_and_goes_on_after_each_step(
    world: World, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = tmp_path / "out", float(np.ceil(world.times["merge_1"]))

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with served(world) as server:
        client_of(server)
        create(server, out, first, WHOLE, **OPTIONS)
        split(world)
        moment = next_second()
        forget_roots()
        with monkeypatch.context() as patch:
            patch.setattr(split_supervoxels, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                add_version(out, timestamp=moment, progress=False)
        assert_versions(out, world, [first], WHOLE)
        split(world, rank=1)  # meanwhile
        moment = next_second()
        forget_roots()
        add_version(out, timestamp=moment, progress=False)
        assert_versions(out, world, [first, moment], WHOLE)
        check = verify_versions(out, live=20)
    assert check.ok, check.problems


def test_copies_follow_supervoxels_that_were_split(world: World, tmp_path: Path) -> None:
    out, copy, first = tmp_path / "out", tmp_path / "copy.zarr", float(np.ceil(world.times["merge_1"]))
    with served(world) as server:
        client_of(server)
        create(server, out, first, WHOLE, **OPTIONS)
        open_versions(out).materialize(open_versions(out).versions.index[0], copy, progress=False)
        for rank in (0, 2):
            split(world, rank)
            moment = next_second()
            forget_roots()
            add_version(out, timestamp=moment, progress=False)
            forget_tables()
            for at in (moment, first, moment):
                store = open_versions(out)
                name = next(one.name for one in recorded_in(store.url) if one.timestamp == int(at))
                store.materialize(name, copy, progress=False)
                voxels = zarr.open_array(copy / "0", mode="r")[:].T
                np.testing.assert_array_equal(voxels, crop(world.roots_volume(at), WHOLE))


def test_records_that_are_gone_are_an_error_that_says_so(world: World, tmp_path: Path) -> None:
    import shutil

    out, first = tmp_path / "out", float(np.ceil(world.times["merge_1"]))
    with served(world) as server:
        client_of(server)
        create(server, out, first, WHOLE, **OPTIONS)
        shutil.rmtree(out / "volume.zarr.receipts")
        split(world)
        moment = next_second()
        with pytest.raises(Exception, match=r"volume\.zarr\.receipts, are gone"):
            add_version(out, timestamp=moment, progress=False)
        assert_versions(out, world, [first], WHOLE)
