"""An update of a copy that is killed, at any moment and also between versions, ends with the bytes of a fresh copy."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from pathlib import Path

import pytest
from faults.harness import MANY, SEEDS, Process, driver
from support.version_stores import make_store

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


def contents(copy: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for name in [name for name in files if name.endswith("zarr.json")]:
        described = json.loads(files[name])
        for date in ("created", "finished"):
            described.get("attributes", {}).get("imagery_dask", {}).pop(date, None)
        files[name] = json.dumps(described).encode()
    return files


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, out: Path) -> dict[str, dict[str, bytes]]:
    folder, store = tmp_path_factory.mktemp("fresh"), open_versions(out)
    expected = {}
    for name in ("1", "2", "3"):
        store.materialize(
            name, folder / name, chunks=(16, 16, 16), shards=None, levels=3, block_mib=0.04, progress=False
        )  # fmt: skip
        expected[name] = contents(folder / name)
    return expected


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_killed_update_goes_on(tmp_path: Path, out: Path, fresh: dict[str, dict[str, bytes]], seed: int) -> None:
    chance, copy = random.Random(f"copies {seed}"), tmp_path / "copy.zarr"

    def start(version: str, run: int) -> Process:
        arguments = ["versions", "materialize", str(out), "--version", version, str(copy), *map(str, BLOCKS)]
        return driver(arguments, tmp_path / f"driver{run}.log")

    assert start("1", 0).wait() == 0
    assert contents(copy) == fresh["1"]
    killed = 0
    for run in range(1, KILLS + 1):
        process = start(chance.choice(["1", "2", "3", "3"]), run)
        # An update takes a second or two, most of which finds out what differs.
        time.sleep(chance.uniform(0.1, 2.5))
        if process.code is None:
            process.kill()
            killed += 1
        assert process.wait() in (0, -signal.SIGKILL), process.output
    assert killed
    last = chance.choice(["1", "2", "3"])
    process = start(last, KILLS + 1)
    assert process.wait() == 0, process.output
    assert contents(copy) == fresh[last]
    assert not list(copy.rglob(".partial*"))
    assert verify_export(str(copy), sample=None).ok
    assert len(list(Path(f"{copy}.receipts").glob("*/plan.json"))) == 1
