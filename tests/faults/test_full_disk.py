"""A full disk ends an export with one clear error and no torn file; with more space the same command finishes it."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faults.conftest import World
from faults.harness import MANY, SEEDS, assert_same, check_receipts, comparable_files, driver, receipts_so_far, wait_for
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


def run(world: World, kind: str, folder: Path, log: Path) -> tuple[int, str]:
    """Run an export to its end; return exit code and output."""
    process = driver(world.export_arguments(kind, folder, "--cluster", world.cluster.address), log)
    try:
        return process.wait(), process.output
    finally:
        process.end()


def assert_nothing_torn(folder: Path, expected: dict[str, bytes]) -> None:
    """Check that each chunk or picture is complete; metadata may still lack what did not fit."""
    chunks = {
        name: content
        for name, content in files_of(folder).items()
        if ".receipts" not in name and "partial" not in name and not name.endswith((".json", "info", "provenance"))
    }
    assert [name for name, content in chunks.items() if expected.get(name) != content] == []


@pytest.mark.parametrize("kind", ["zarr", "shards", "precomputed", "png"])
def test_an_export_resumes_after_a_full_disk(tmp_path: Path, world: World, disk: Path, kind: str) -> None:
    expected, folder = world.expected(kind), disk / "export"
    size = sum(-(-len(content) // 4096) * 4096 for content in expected.values())
    if size < 3 * 2**20:
        mount("-o", f"remount,size={size // 2}", str(disk))
    code, output = run(world, kind, folder, tmp_path / "first.log")
    assert code == 1, output
    assert "Error: No space is left" in output
    assert "run the same command again to resume" in output
    assert "Traceback" not in output
    assert len(output.splitlines()) <= 3, output
    assert_nothing_torn(folder, expected)
    done = receipts_so_far(folder)
    # The same command fails again until there is space.
    if MANY or kind == "zarr":
        assert run(world, kind, folder, tmp_path / "second.log")[0] == 1
        assert_nothing_torn(folder, expected)
    mount("-o", f"remount,size={LARGE}", str(disk))
    world.server.reset()
    code, output = run(world, kind, folder, tmp_path / "third.log")
    assert code == 0, output
    assert world.server.count(lambda request: "info" not in request.path) <= 128 - done / 2
    check_receipts(folder)
    assert_same(comparable_files(folder), expected)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_export_resumes_when_its_records_did_not_fit(tmp_path: Path, world: World, disk: Path, seed: int) -> None:
    """Another program fills the disk at any moment, so the plan, a receipt or the ledger may be what does not fit."""
    expected, folder, random_numbers = world.expected("precomputed"), disk / "export", random.Random(seed)
    mount("-o", f"remount,size={LARGE}", str(disk))
    filler = disk / "of another program"
    for number in range(4):
        process = driver(
            world.export_arguments("precomputed", folder, "--cluster", world.cluster.address),
            tmp_path / f"{number}.log",
        )
        goal = receipts_so_far(folder) + random_numbers.choice([0, 0, 1, 20, 60])
        wait_for(lambda: receipts_so_far(folder) >= goal or process.code is not None)  # noqa: B023
        fill(filler, random_numbers.randint(0, 3) * 4096)
        code, output = process.wait(), process.output
        process.end()
        if code == 0:
            break
        assert code == 1, output
        assert "Error: No space is left" in output
        assert "Traceback" not in output
        assert_nothing_torn(folder, expected)
        filler.unlink()
    filler.unlink(missing_ok=True)
    code, output = run(world, "precomputed", folder, tmp_path / "last.log")
    assert code == 0, output
    check_receipts(folder)
    assert_same(comparable_files(folder), expected)


def fill(file: Path, leave: int) -> None:
    """Fill the disk with a file, except for `leave` bytes."""
    with file.open("wb") as opened, suppress(OSError):
        while True:
            os.write(opened.fileno(), bytes(2**16))
    with file.open("ab") as opened, suppress(OSError):
        while True:
            os.write(opened.fileno(), bytes(4096))
    os.truncate(file, max(0, file.stat().st_size - leave))
