"""A process that makes a store, or adds a version, may be killed before any change of a file: the command goes on."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import numpy as np
import pytest
from faults.harness import SEEDS, SMALL, Process
from support.dynamic import SOME, TOKEN, bounds, crop, secrets_file
from support.made_stores import assert_roots, columns

from imagery_dask import open_versions, verify_versions
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.testing.cave import CaveServer, World, make_world
from imagery_dask.versions.recorded import names_of_tables

pytestmark = pytest.mark.long

KILLS = 6
# Kills this process before the n-th change of a name: files appear by renames and links, and are removed.
CODE = (
    SMALL
    + """
import os, signal, sys, threading
import imagery_dask.versions.tables.table_files as table_files
table_files.GROUP_ROWS = (8, 16)
config.set({"export.block_bytes": 2**14, "lease.look_again_s": 0.01})
left, lock = int(sys.argv.pop(1)), threading.Lock()
def counted(change):
    def count(*arguments, **options):
        global left
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **options)
    return count
for name in ("rename", "replace", "link", "remove", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
from imagery_dask.cli.main import main; main()
"""
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("killed"))


def run(words: list[str], kill_at: int, log: Path) -> int:
    process = Process(CODE, [str(kill_at), *words], log)
    try:
        code = process.wait()
    finally:
        process.end()
    assert code in (0, -signal.SIGKILL), process.output
    return code


def killed_and_resumed(words: list[str], out: Path, chance: random.Random, world: World, moments: dict) -> int:
    """Run a command until it succeeds, killing it at changes of files; return how often it was killed."""
    kills = 0
    while True:
        at = chance.randint(1, 24) if kills < KILLS else 10**9
        log = out.with_name(f"{out.name}-{kills}.log")
        code = run(words, at, log)
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
