"""A process that makes a store, or adds a version, may be killed before any change of a file: the command goes on."""

from __future__ import annotations

import math
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from faults.harness import KILLED_AT_CHANGE, MAIN, SEEDS, run_killed
from support.dynamic import SOME, TOKEN, bounds, crop, forget, secrets_file
from support.made_stores import assert_roots, chunks_of, columns, table_of

from imagery_dask import open_versions, verify_versions
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.testing.cave import CaveServer, World, make_world
from imagery_dask.versions.recorded import names_of_tables

pytestmark = pytest.mark.long

KILLS = 6
CODE = (
    KILLED_AT_CHANGE
    + """
import imagery_dask.versions.tables.table_files as table_files
table_files.GROUP_ROWS = (8, 16)
config.set({"export.block_bytes": 2**14})
"""
    + MAIN
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("killed"))


def killed_and_resumed(words: list[str], out: Path, chance: random.Random, world: World, moments: dict) -> int:
    """Run a command until it succeeds, killing it at changes of files; return how often it was killed."""
    kills = 0
    while True:
        at = chance.randint(1, 24) if kills < KILLS else 10**9
        log = out.with_name(f"{out.name}-{kills}.log")
        code = run_killed(words, at, log, CODE)
        for name in names_of_tables(str(out)):  # a version that exists is whole, at any moment
            forget_tables()
            assert_roots(out, name, world, moments[name])
        if (out / "versions.json").exists():
            forget_tables()
            assert open_versions(out).versions.index.tolist()
        if code == 0:
            return kills
        kills += 1


@pytest.mark.parametrize("seed", range(SEEDS))
def test_create_and_add_go_on_after_any_kill(world: World, tmp_path: Path, seed: int) -> None:
    chance, out = random.Random(f"versions {seed}"), tmp_path / "OUT"
    first, second = (float(np.ceil(world.times[name])) for name in ("merge_1", "split_2"))
    box = [str(value) for value in bounds(world, SOME).ravel()]
    moments = {"2024-01-02T00-00-01Z": first, "2024-01-05T00-00-01Z": second}
    with CaveServer(world, tokens=(TOKEN,)) as server, secrets_file(server):
        source = ["--segmentation-source", server.segmentation_source, "--resolution", *map(str, world.resolution)]
        create = ["versions", "create", str(out), *source, "--bounds", *box, "--timestamp", "2024-01-02T00:00:01Z"]
        add = ["versions", "add", str(out), "--timestamp", "2024-01-05T00:00:01Z"]
        kills = killed_and_resumed(create, out, chance, world, moments)
        kills += killed_and_resumed(add, out, chance, world, moments)
    assert kills >= KILLS
    assert sorted(names_of_tables(str(out))) == sorted(moments)
    check = verify_versions(out)
    assert check.ok, check.problems
    segmentation = open_versions(out).at(timestamp=second)["segmentation"]
    np.testing.assert_array_equal(segmentation.values, crop(world.roots_volume(second), SOME))
    table = columns(out / "supervoxels.parquet")
    assert table["voxels"].sum() == np.count_nonzero(crop(world.supervoxels, SOME))
    left = [str(path.relative_to(out)) for path in out.rglob("*") if "partial" in path.name or "piece" in path.name]
    assert left == []
    assert not (out / "lease.json").exists()
    assert not (out / "creating.json").exists()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_add_goes_on_after_any_kill_while_it_follows_splits(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("tensorstore")
    chance, out, whole = random.Random(f"splits {seed}"), tmp_path / "OUT", tmp_path / "whole"
    world = make_world(tmp_path / "world", splits="spec")
    first = float(np.ceil(world.times["merge_1"]))
    box = ((0, 0, 0), (64, 64, 32))
    with CaveServer(world, tokens=(TOKEN,)) as server, secrets_file(server):
        source = ["--segmentation-source", server.segmentation_source, "--resolution", *map(str, world.resolution)]
        where = ["--bounds", *map(str, bounds(world, box).ravel()), "--timestamp", "2024-01-02T00:00:01Z"]
        form = ["--chunks", "16,16,16", "--shards", "32,32,16", "--levels", "2"]
        assert (
            run_killed(["versions", "create", out, *source, *where, *form], 10**9, tmp_path / "create.log", CODE) == 0
        )
        ids, sizes = np.unique(world.supervoxels[:64, :64], return_counts=True)
        for supervoxel in ids[np.argsort(-sizes, kind="stable")][[1, 4]].tolist():
            at = np.argwhere(world.supervoxels == supervoxel) + world.voxel_offset
            world.split_supervoxel(supervoxel, at[[0, -1]])
        second = math.ceil(time.time()) + 1
        time.sleep(second - time.time())
        before = table_of(out / "supervoxels.parquet")
        shutil.copytree(out, whole)
        add = ["versions", "add", "--timestamp", str(second)]
        assert run_killed([*add, whole], 10**9, tmp_path / "whole.log", CODE) == 0
        kills, status = 0, -1
        while status != 0:
            at_change = chance.randint(1, 20) if kills < KILLS else 10**9
            status = run_killed([*add, out], at_change, tmp_path / f"add{kills}.log", CODE)
            forget()
            for moment in (first, second) if status == 0 else (first,):
                data = open_versions(out).at(timestamp=moment)["segmentation"]
                np.testing.assert_array_equal(data, crop(world.roots_volume(moment), box))
            kills += status != 0
        check = verify_versions(out, live=20)
    assert check.ok, check.problems
    assert kills > KILLS / 2
    names = sorted(path.relative_to(whole) for path in whole.rglob("*.parquet"))
    assert len(names) == 3
    assert names == sorted(path.relative_to(out) for path in out.rglob("*.parquet"))
    for name in names:
        assert table_of(out / name) == table_of(whole / name), name
    assert table_of(out / "supervoxels.parquet") != before
    assert chunks_of(out) == chunks_of(whole)
    left = [str(path.relative_to(out)) for path in out.rglob("*") if "partial" in path.name or "piece" in path.name]
    assert left == []
