"""An export of a few objects that is killed goes on with the blocks that are left, and ends with the same bytes."""

from __future__ import annotations

import math
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.harness import (
    MANY,
    SEEDS,
    assert_same,
    comparable_files,
    records_of,
    run_killed,
)
from support.dynamic import TOKEN, secrets_file
from support.version_stores import make_store

from imagery_dask.records.receipts import RECEIPT
from imagery_dask.testing.cave import CaveServer, World, make_world

pytestmark = pytest.mark.long

KILLS = 8 if MANY else 4
# A block is a chunk, so that most blocks change a file.
FORMAT = ("--chunks", "16,16,16", "--block-mib", 0.03, "--levels", 2)
KINDS = {"zarr": ("--shards", "none"), "shards": ("--shards", "32,32,16"), "precomputed": ()}
Words = Callable[[Path, str], list[Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[CaveServer]:
    with CaveServer(world, tokens=(TOKEN,)) as server, secrets_file(server):
        yield server


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    moment = math.ceil(world.versions[3].timestamp)
    return make_store(tmp_path_factory.mktemp("store") / "OUT", world, {"3": (moment, 3)})


@pytest.fixture(params=["graph", "store"])
def words(request: pytest.FixtureRequest, world: World, server: CaveServer, out: Path) -> Words:
    """Return the command line of an export of two large objects, from a graph server or a version store."""
    moment = math.ceil(world.versions[3].timestamp)
    ids, counts = np.unique(world.roots_volume(moment), return_counts=True)
    roots = ids[ids != 0][np.argsort(-counts[ids != 0])][[2, 4]].tolist()
    start = np.array(world.voxel_offset)
    given = ["--bounds", *start, *start + world.supervoxels.shape, "--root-ids", ",".join(map(str, roots)), "--sparse"]
    if request.param == "store":
        given += ["--versions", out, "--version", 3]
    else:
        given += ["--segmentation-source", server.segmentation_source, "--timestamp", moment]
        given += ["--resolution", *world.resolution]

    def line(folder: Path, kind: str) -> list[Any]:
        folder.mkdir(exist_ok=True)
        form = "precomputed" if kind == "precomputed" else "zarr"
        return ["export", form, folder / "out", *given, *FORMAT, *KINDS[kind]]

    return line


def receipted(folder: Path) -> Counter[int]:
    """Count the receipts of each block, of all processes."""
    found: Counter[int] = Counter()
    for file in records_of(folder).glob("*/receipts-*.bin"):
        content = file.read_bytes()
        whole = len(content) // RECEIPT.itemsize * RECEIPT.itemsize
        found.update(np.frombuffer(content[:whole], RECEIPT)["block"].tolist())
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_sparse_export_goes_on(tmp_path: Path, words: Words, kind: str, seed: int) -> None:
    chance, whole, folder = random.Random(f"sparse {kind} {seed}"), tmp_path / "whole", tmp_path / "killed"
    assert run_killed(words(whole, kind), 10**9, tmp_path / "whole.log") == 0
    blocks, done, kills = len(receipted(whole)), set[int](), []
    while True:
        is_enough = len(kills) >= KILLS and any(0 < count < blocks for count in kills)
        at = 10**9 if is_enough else chance.randint(1, 40)
        status = run_killed(words(folder, kind), at, tmp_path / f"run{len(kills)}.log")
        found = receipted(folder) if list(folder.glob("*.receipts")) else Counter()
        assert [block for block in done if found[block] != 1] == []  # none is done again
        if status == 0:
            break
        assert status == -signal.SIGKILL
        done = set(found)
        kills.append(len(done))
    assert len(kills) >= KILLS
    assert sorted(found) == list(range(blocks))
    assert_same(comparable_files(folder), comparable_files(whole))
