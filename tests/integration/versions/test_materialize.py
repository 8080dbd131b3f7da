"""Copies of versions: written once, then updated block by block to the bytes of a copy that is written anew."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.settings import Configure

from imagery_dask import open_versions, verify_export
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.registry import run_at
from imagery_dask.run import RunReport
from imagery_dask.testing.cave import World
from imagery_dask.versions.opened_versions import VersionStore

Moments = dict[str, tuple[float, int | None]]
NAMES = ["1", "2024-01-03T00-00-00Z", "2", "3", "4"]


class StoppedError(Exception):
    """What stops a run in the middle."""


@pytest.fixture(autouse=True)
def _a_block_is_a_graph_chunk(configure: Configure) -> None:
    configure("export.block_bytes", 32 * 32 * 16 * 8)
    configure("export.small_block_bytes", 32 * 32 * 16 * 8)
    configure("export.fused_bytes", 32 * 32 * 16 * 8)


def contents(copy: Path) -> dict[str, bytes]:
    """Return the files of a store by name, without the dates of its metadata."""
    files = {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for name in files:
        if name.endswith("zarr.json"):
            described = json.loads(files[name])
            own = described.get("attributes", {}).get("imagery_dask", {})
            assert all(own.pop(date) for date in ("created", "finished") if own)
            files[name] = json.dumps(described).encode()
    return files


def written(copy: Path) -> dict[str, tuple[int, int]]:
    """Return the identity and time of the chunk files of a store: they change where a file is written again."""
    stats = {path: path.stat() for path in copy.rglob("*") if path.is_file() and path.name != "zarr.json"}
    return {str(path.relative_to(copy)): (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def make(store: VersionStore, name: str, copy: Path, **options: Any) -> RunReport:
    return store.materialize(name, copy, progress=options.pop("progress", False), **{"levels": 3, **options})


def blocks_that_change(copy: Path, world: World, before: float, after: float) -> list[int]:
    """Return how many planned blocks, of each level, have a voxel under which a root changes: seen in all voxels."""
    changed = world.roots_volume(before) != world.roots_volume(after)
    counts = []
    for _, part in ExportPlan.from_json(run_at(str(copy)).plan).parts:
        factor = 2**part.level
        regions = [region for _, region in part.blocks]
        scaled = [(slice(x.start * factor, x.stop * factor), slice(y.start * factor, y.stop * factor), z)
                  for x, y, z in regions]  # fmt: skip
        counts.append(sum(bool(changed[region].any()) for region in scaled))
    return counts


@pytest.mark.parametrize("image", [False, True])
def test_a_copy_is_an_ordinary_export(
    tmp_path: Path, out: Path, with_image: Path, world: World, moments: Moments, image: bool, no_network: None
) -> None:
    store, copy = open_versions(with_image if image else out), tmp_path / "copy.zarr"
    report = make(store, "3", copy, image=image)
    assert report.ok
    folder = "labels/segmentation/" if image else ""
    array = zarr.open_array(copy, path=f"{folder}0", mode="r")
    np.testing.assert_array_equal(np.asarray(array[:]).T, world.roots_volume(moments["3"][0]))
    assert (array.shards, array.chunks) == (None, (16, 32, 32))
    attributes = zarr.open_group(copy, path=folder.rstrip("/"), mode="r").attrs["imagery_dask"]
    assert attributes["materialization_version"] == 3
    assert attributes["timestamp_unix_s"] == moments["3"][0]
    assert verify_export(str(copy), sample=None).ok
    again = make(store, "3", copy, image=image)
    assert again.before == again.blocks


@pytest.mark.parametrize(("a", "b"), [("1", NAMES[1]), ("3", "4"), ("4", "3"), ("2", "4"), (NAMES[1], "1")])
def test_an_update_rewrites_the_blocks_that_differ_and_no_others(
    tmp_path: Path, store: VersionStore, world: World, moments: Moments, a: str, b: str
) -> None:
    copy, fresh = tmp_path / "copy.zarr", tmp_path / "fresh.zarr"
    make(store, a, copy)
    make(store, b, fresh)
    assert store.diff(a, b).voxels > 0
    before = written(copy)
    report = make(store, b, copy)
    assert contents(copy) == contents(fresh)
    now = written(copy)
    rewritten = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    expected = blocks_that_change(copy, world, moments[a][0], moments[b][0])
    assert len(expected) == 3
    assert report.blocks - report.before == sum(expected)
    assert (sum(expected) < 8) == ({a, b} == {"3", "4"})  # the last edit is small
    assert len([name for name in rewritten if name.startswith("0/")]) == expected[0]
    assert any(f"{sum(expected)} blocks differ between " in note for note in report.notes)
    assert verify_export(str(copy), sample=None).ok


def test_a_copy_follows_through_all_versions_and_back(tmp_path: Path, store: VersionStore, world: World) -> None:
    copy, order = tmp_path / "copy.zarr", np.random.default_rng(3).choice(NAMES, 12).tolist()
    fresh = {}
    for name in NAMES:
        make(store, name, tmp_path / name)
        fresh[name] = contents(tmp_path / name)
        shutil.rmtree(tmp_path / name)
    make(store, order[0], copy)
    for a, b in pairwise(order):
        report = make(store, b, copy)
        assert contents(copy) == fresh[b]
        assert (report.before == report.blocks) == (store.diff(a, b).voxels == 0)
        assert len(list(copy.with_name("copy.zarr.receipts").glob("*/plan.json"))) == 1


@pytest.mark.parametrize("after", [0, 1, 3, 20])
@pytest.mark.parametrize("then", ["3", "2", "1"])
def test_an_update_that_was_stopped_goes_on(tmp_path: Path, store: VersionStore, after: int, then: str) -> None:
    copy, fresh = tmp_path / "copy.zarr", tmp_path / "fresh.zarr"
    make(store, "1", copy)
    make(store, then, fresh)

    def stop(report: RunReport) -> None:
        if report.done - report.before >= after:
            raise StoppedError

    with pytest.raises(StoppedError):
        make(store, "3", copy, progress=stop)
    attributes = zarr.open_group(copy, mode="r").attrs["imagery_dask"]
    assert attributes["updating_to"] == "2024-01-05T12:00:00Z"
    report = make(store, then, copy)
    assert report.ok
    assert contents(copy) == contents(fresh)
    assert verify_export(str(copy), sample=None).ok


def test_a_copy_that_was_not_finished_is_updated(tmp_path: Path, store: VersionStore) -> None:
    copy, fresh = tmp_path / "copy.zarr", tmp_path / "fresh.zarr"

    def stop(report: RunReport) -> None:
        if report.done == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        make(store, "1", copy, progress=stop)
    make(store, "2", copy)
    make(store, "2", fresh)
    assert contents(copy) == contents(fresh)


def test_what_was_damaged_is_written_again(tmp_path: Path, store: VersionStore) -> None:
    copy, fresh = tmp_path / "copy.zarr", tmp_path / "fresh.zarr"
    make(store, "3", copy)
    make(store, "4", fresh)
    wanted = contents(fresh)
    same = [name for name, content in contents(copy).items() if name.startswith("0/c") and wanted[name] == content]
    (copy / same[0]).write_bytes(b"damaged")
    assert len(verify_export(str(copy), sample=None).damaged) == 1
    make(store, "4", copy)
    assert contents(copy) == contents(fresh)


def test_imagery_is_not_written_again(tmp_path: Path, with_image: Path, no_network: None) -> None:
    store, copy = open_versions(with_image), tmp_path / "copy.zarr"
    make(store, "3", copy, image=True)
    before = written(copy)
    report = make(store, "4", copy, image=True)
    now = written(copy)
    assert {name.partition("/")[0] for name in now if now[name] != before.get(name)} == {"labels"}
    assert report.before > report.blocks / 2


def test_other_options_and_unknown_moments_are_refused(
    tmp_path: Path, out: Path, world: World, moments: Moments, no_network: None
) -> None:
    shutil.copytree(out, tmp_path / "out")
    store, copy = open_versions(tmp_path / "out"), tmp_path / "copy.zarr"
    make(store, "1", copy)
    with pytest.raises(FileExistsError, match="written with other arguments.*levels"):
        make(store, "2", copy, levels=2)
    (tmp_path / "out" / "roots" / "1.parquet").unlink()
    with pytest.raises(ValueError, match=r"copy of the moment 2024-01-02T12:00:01Z.*no record.*Add that version again"):
        make(store, "2", copy)
    make(store, "2", copy, overwrite=True)
    make(store, "2", tmp_path / "fresh.zarr")
    assert contents(copy) == contents(tmp_path / "fresh.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(FileExistsError, match="will not be replaced"):
        make(store, "2", tmp_path / "folder")


def test_readers_see_each_file_as_it_was_or_becomes(tmp_path: Path, store: VersionStore) -> None:
    copy, states = tmp_path / "copy.zarr", list[int]()
    sharded: dict[str, Any] = {"chunks": (32, 32, 16), "shards": (64, 64, 16)}
    make(store, "1", copy, **sharded)
    first = contents(copy)
    make(store, "3", tmp_path / "fresh.zarr", **sharded)
    last = contents(tmp_path / "fresh.zarr")
    chunks = [name for name in first.keys() | last.keys() if "/c/" in name]

    def look(report: RunReport) -> None:
        now = {path: (copy / path).read_bytes() if (copy / path).exists() else None for path in chunks}
        assert all(now[name] in (first.get(name), last.get(name)) for name in chunks)
        states.append(sum(now[name] == last.get(name) for name in chunks))

    make(store, "3", copy, progress=look, **sharded)
    assert len(set(states)) > 3
    assert contents(copy) == last
