"""An overwrite that is killed leaves the complete old or new store, and the same command resumes."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from faults.conftest import World
from faults.harness import CLI, MANY, assert_same, check_receipts, comparable_files, driver, receipts_so_far, wait_for
from integration.stores import files_of

pytestmark = pytest.mark.long
LATENCY_S = 0.0

# Code of a driver that kills itself before or after a rename of the swap.
DIES = """
import os, signal
real, when, which = os.rename, {when!r}, {which!r}
def rename(source, target):
    here = which in f"{{source}} {{target}}" and "lease" not in str(source)
    if here and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if here:
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = rename
"""


@pytest.fixture
def old(tmp_path: Path, world: World) -> Path:
    """Folder for the exports of a test."""
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "logs").mkdir()
    return folder


def run(world: World, folder: Path, arguments: list[str], code: str = CLI) -> tuple[int, str]:
    """Run a command to its end; return exit code and output."""
    log = folder.parent / "logs" / f"{len(list((folder.parent / 'logs').iterdir()))}.log"
    process = driver([*arguments, "--cluster", world.cluster.address], log, code)
    try:
        return process.wait(), process.output
    finally:
        process.end()


def old_arguments(world: World, folder: Path, kind: str) -> list[str]:
    """Return the command line of the store that is replaced, whose chunks differ."""
    arguments = world.export_arguments(kind, folder)
    arguments[arguments.index("16,16,16")] = "32,32,32"
    return arguments


@pytest.mark.parametrize("kind", ["zarr", "precomputed"] if MANY else ["zarr"])
def test_an_overwrite_that_is_killed_resumes(world: World, old: Path, kind: str) -> None:
    expected = world.expected(kind)
    assert run(world, old, old_arguments(world, old, kind))[0] == 0
    store, records, random_numbers = files_of(old / "out"), receipts_so_far(old), random.Random(kind)
    arguments = [*world.export_arguments(kind, old), "--cluster", world.cluster.address]
    world.server.latency_s = 0.03
    # The overwrite begins with --overwrite and resumes without it.
    for options in (["--overwrite"], *[[]] * (3 if MANY else 1)):
        process = driver([*arguments, *options], old.parent / "driver.log")
        goal = receipts_so_far(old) + random_numbers.randint(5, 30)
        wait_for(lambda: receipts_so_far(old) >= goal)  # noqa: B023
        process.kill()
        process.end()
        assert files_of(old / "out") == store
    done = receipts_so_far(old) - records
    world.server.reset()
    assert run(world, old, world.export_arguments(kind, old))[0] == 0
    # Storage chunks and info files; workers may have finished a few blocks after the last count.
    assert world.server.count() <= 128 + 10 - done / 2
    check_receipts(old)
    assert_same(comparable_files(old), expected)


@pytest.mark.parametrize(
    ("when", "which"),
    [("before", ".replaced-"), ("after", ".replaced-"), ("after", ".incoming-")],
    ids=["before the first rename", "between", "after the second"],
)
def test_a_swap_that_is_killed_leaves_the_old_or_the_new_store(world: World, old: Path, when: str, which: str) -> None:
    expected, before = world.expected("zarr"), old_arguments(world, old, "zarr")
    assert run(world, old, before)[0] == 0
    store, arguments = files_of(old / "out"), world.export_arguments("zarr", old)
    dies = DIES.format(when=when, which=f"{old}/out {old}/.out{which}" if which == ".replaced-" else f"{which}")
    code, output = run(world, old, [*arguments, "--overwrite"], dies + CLI)
    assert code == -signal.SIGKILL, output
    left_store = {"before": store, "after": None if which == ".replaced-" else "new"}[when]
    if left_store is None:
        assert not (old / "out").exists()
    else:
        assert (files_of(old / "out") == store) == (left_store == store)
    if left_store == "new":
        # The new store was not written with the old arguments.
        code, output = run(world, old, before)
        assert (code, "other arguments" in output) == (2, True), output
    world.server.reset()
    code, output = run(world, old, arguments)
    assert code == 0, output
    # All blocks are written already. Since the source has missing chunks, two others of four blocks are looked for.
    assert world.server.count(lambda request: "info" not in request.path and request.status == 200) <= 8
    check_receipts(old)
    assert_same(comparable_files(old), expected)


def test_an_overwrite_with_equal_arguments_resumes_after_its_swap(world: World, old: Path) -> None:
    """The records of the replaced store are not taken for those of the new one."""
    expected, arguments = world.expected("zarr"), world.export_arguments("zarr", old)
    assert run(world, old, arguments)[0] == 0
    (first,) = old.glob("out.receipts/*/plan.json")
    code, _ = run(world, old, [*arguments, "--overwrite"], DIES.format(when="after", which=".incoming-") + CLI)
    assert code == -signal.SIGKILL
    assert run(world, old, arguments)[0] == 0
    assert not first.exists()
    check_receipts(old)
    assert_same(comparable_files(old), expected)
