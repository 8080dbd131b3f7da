"""An update of a copy that is killed, at any moment and also between versions, ends with the bytes of a fresh copy."""

from __future__ import annotations

import math
import random
import signal
import time
from pathlib import Path

import pytest
from faults.harness import MANY, SEEDS, Process, driver
from support.version_stores import contents_without_dates, make_store

from imagery_dask import open_versions, verify_export
from imagery_dask.testing.cave import make_world

pytestmark = pytest.mark.long

BLOCKS = ("--chunks", "16,16,16", "--shards", "none", "--block-mib", 0.04, "--levels", 3)
KILLS = 8 if MANY else 4


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(tmp_path_factory.mktemp("world"))
    moments = {str(number): (math.ceil(one.timestamp), number) for number, one in world.versions.items()}
    return make_store(tmp_path_factory.mktemp("store") / "out", world, moments)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, out: Path) -> dict[str, dict[str, bytes]]:
    folder, store = tmp_path_factory.mktemp("fresh"), open_versions(out)
    expected = {}
    for name in ("1", "2", "3"):
        store.materialize(
            name, folder / name, chunks=(16, 16, 16), shards=None, levels=3, block_mib=0.04, progress=False
        )  # fmt: skip
        expected[name] = contents_without_dates(folder / name)
    return expected


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_killed_update_goes_on(tmp_path: Path, out: Path, fresh: dict[str, dict[str, bytes]], seed: int) -> None:
    chance, copy = random.Random(f"copies {seed}"), tmp_path / "copy.zarr"

    def start(version: str, run: int) -> Process:
        arguments = ["versions", "materialize", str(out), "--version", version, str(copy), *map(str, BLOCKS)]
        return driver(arguments, tmp_path / f"driver{run}.log")

    assert start("1", 0).wait() == 0
    assert contents_without_dates(copy) == fresh["1"]
    killed = run = 0
    longest = 2.5  # an update takes a second or two, most of which finds out what differs; on fast machines it is less
    while killed < KILLS:
        run += 1
        process = start(chance.choice(["1", "2", "3", "3"]), run)
        time.sleep(chance.uniform(0.05, longest))
        if process.code is None:
            process.kill()
            killed += 1
        else:
            longest = max(0.1, longest / 2)
        assert process.wait() in (0, -signal.SIGKILL), process.output
    assert killed
    last = chance.choice(["1", "2", "3"])
    process = start(last, run + 1)
    assert process.wait() == 0, process.output
    assert contents_without_dates(copy) == fresh[last]
    assert not list(copy.rglob(".partial*"))
    assert verify_export(str(copy), sample=None).ok
    assert len(list(Path(f"{copy}.receipts").glob("*/plan.json"))) == 1
