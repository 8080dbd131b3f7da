"""A disk that fills up ends an export with one clear error and nothing torn; with more room the same command ends."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faults.conftest import World
from faults.harness import MANY, SEEDS, assert_same, check_receipts, driver, receipts_so_far, settled, wait_for
from integration.stores import files_of

pytestmark = pytest.mark.long
LATENCY_S = 0.0

SMALL, LARGE = "3m", "64m"


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not permitted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def run(world: World, kind: str, folder: Path, said: Path) -> tuple[int, str]:
    process = driver(world.export(kind, folder, "--cluster", world.cluster.address), said)
    try:
        return process.wait(), process.said
    finally:
        process.end()


def assert_nothing_torn(folder: Path, expected: dict[str, bytes]) -> None:
    """What is there under the name of a chunk or picture is whole; metadata may still lack what was missing."""
    chunks = {
        name: content
        for name, content in files_of(folder).items()
        if ".receipts" not in name and "partial" not in name and not name.endswith((".json", "info", "provenance"))
    }
    assert [name for name, content in chunks.items() if expected.get(name) != content] == []


@pytest.mark.parametrize("kind", ["zarr", "shards", "precomputed", "png"])
def test_a_disk_that_fills_up(tmp_path: Path, world: World, disk: Path, kind: str) -> None:
    expected, folder = world.expected(kind), disk / "export"
    size = sum(-(-len(content) // 4096) * 4096 for content in expected.values())
    if size < 3 * 2**20:
        mount("-o", f"remount,size={size // 2}", str(disk))
    code, said = run(world, kind, folder, tmp_path / "first.log")
    assert code == 1, said
    assert "Error: No space is left" in said
    assert "run the same command again to resume" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 3, said
    assert_nothing_torn(folder, expected)
    done = receipts_so_far(folder)
    # It cannot end before there is room.
    if MANY or kind == "zarr":
        assert run(world, kind, folder, tmp_path / "second.log")[0] == 1
        assert_nothing_torn(folder, expected)
    mount("-o", f"remount,size={LARGE}", str(disk))
    world.server.reset()
    code, said = run(world, kind, folder, tmp_path / "third.log")
    assert code == 0, said
    assert world.server.count(lambda request: "info" not in request.path) <= 128 - done / 2
    check_receipts(folder)
    assert_same(settled(folder), expected)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_records_that_find_no_space(tmp_path: Path, world: World, disk: Path, seed: int) -> None:
    """Filled by another program at any moment: the plan, a receipt, the ledger may be what does not fit."""
    expected, folder, chance = world.expected("precomputed"), disk / "export", random.Random(seed)
    mount("-o", f"remount,size={LARGE}", str(disk))
    filler = disk / "of another program"
    for number in range(4):
        process = driver(
            world.export("precomputed", folder, "--cluster", world.cluster.address), tmp_path / f"{number}.log"
        )
        goal = receipts_so_far(folder) + chance.choice([0, 0, 1, 20, 60])
        wait_for(lambda: receipts_so_far(folder) >= goal or process.code is not None)  # noqa: B023
        fill(filler, chance.randint(0, 3) * 4096)
        code, said = process.wait(), process.said
        process.end()
        if code == 0:
            break
        assert code == 1, said
        assert "Error: No space is left" in said
        assert "Traceback" not in said
        assert_nothing_torn(folder, expected)
        filler.unlink()
    filler.unlink(missing_ok=True)
    code, said = run(world, "precomputed", folder, tmp_path / "last.log")
    assert code == 0, said
    check_receipts(folder)
    assert_same(settled(folder), expected)


def fill(file: Path, leave: int) -> None:
    """Take all space but some bytes."""
    with file.open("wb") as opened, suppress(OSError):
        while True:
            os.write(opened.fileno(), bytes(2**16))
    with file.open("ab") as opened, suppress(OSError):
        while True:
            os.write(opened.fileno(), bytes(4096))
    os.truncate(file, max(0, file.stat().st_size - leave))
