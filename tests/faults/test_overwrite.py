"""An overwrite that is killed leaves the old store or the new one, whole; the same command goes on."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from faults.conftest import World
from faults.harness import CLI, MANY, assert_same, check_receipts, driver, receipts_so_far, settled, wait_for
from integration.stores import files_of

pytestmark = pytest.mark.long
LATENCY_S = 0.0

# Kills itself at a rename of the swap: before or after it.
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
    """Folder with a finished export of the imagery alone."""
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "logs").mkdir()
    return folder


def run(world: World, folder: Path, arguments: list[str], code: str = CLI) -> tuple[int, str]:
    """Run a command until it ends."""
    said = folder.parent / "logs" / f"{len(list((folder.parent / 'logs').iterdir()))}.log"
    process = driver([*arguments, "--cluster", world.cluster.address], said, code)
    try:
        return process.wait(), process.said
    finally:
        process.end()


def old_arguments(world: World, folder: Path, kind: str) -> list[str]:
    """Arguments of the store that is replaced: other chunks."""
    arguments = world.export(kind, folder)
    arguments[arguments.index("16,16,16")] = "32,32,32"
    return arguments


@pytest.mark.parametrize("kind", ["zarr", "precomputed"] if MANY else ["zarr"])
def test_an_overwrite_that_is_killed_goes_on(world: World, old: Path, kind: str) -> None:
    expected = world.expected(kind)
    assert run(world, old, old_arguments(world, old, kind))[0] == 0
    store, records, chance = files_of(old / "out"), receipts_so_far(old), random.Random(kind)
    arguments = [*world.export(kind, old), "--cluster", world.cluster.address]
    world.server.latency_s = 0.03
    # Begun with --overwrite, and gone on with without it.
    for more in (["--overwrite"], *[[]] * (3 if MANY else 1)):
        process = driver([*arguments, *more], old.parent / "driver.log")
        goal = receipts_so_far(old) + chance.randint(5, 30)
        wait_for(lambda: receipts_so_far(old) >= goal)  # noqa: B023
        process.kill()
        process.end()
        assert files_of(old / "out") == store
    done = receipts_so_far(old) - records
    world.server.reset()
    assert run(world, old, world.export(kind, old))[0] == 0
    # Storage chunks, and what describes the volumes; workers may have ended a few blocks more.
    assert world.server.count() <= 128 + 10 - done / 2
    check_receipts(old)
    assert_same(settled(old), expected)


@pytest.mark.parametrize(
    ("when", "which"),
    [("before", ".replaced-"), ("after", ".replaced-"), ("after", ".incoming-")],
    ids=["before the first rename", "between", "after the second"],
)
def test_a_swap_that_is_killed(world: World, old: Path, when: str, which: str) -> None:
    expected, before = world.expected("zarr"), old_arguments(world, old, "zarr")
    assert run(world, old, before)[0] == 0
    store, arguments = files_of(old / "out"), world.export("zarr", old)
    dies = DIES.format(when=when, which=f"{old}/out {old}/.out{which}" if which == ".replaced-" else f"{which}")
    code, said = run(world, old, [*arguments, "--overwrite"], dies + CLI)
    assert code == -signal.SIGKILL, said
    there = {"before": store, "after": None if which == ".replaced-" else "new"}[when]
    if there is None:
        assert not (old / "out").exists()
    else:
        assert (files_of(old / "out") == store) == (there == store)
    if there == "new":
        # What is there now was not written with these arguments.
        code, said = run(world, old, before)
        assert (code, "other arguments" in said) == (2, True), said
    world.server.reset()
    code, said = run(world, old, arguments)
    assert code == 0, said
    # All blocks are there already.
    assert world.server.count(lambda request: "info" not in request.path and request.status == 200) == 0
    check_receipts(old)
    assert_same(settled(old), expected)


def test_an_overwrite_with_the_same_arguments_that_is_killed_after_its_swap(world: World, old: Path) -> None:
    """The records of what it replaced are not taken for its own."""
    expected, arguments = world.expected("zarr"), world.export("zarr", old)
    assert run(world, old, arguments)[0] == 0
    (first,) = old.glob("out.receipts/*/plan.json")
    code, _ = run(world, old, [*arguments, "--overwrite"], DIES.format(when="after", which=".incoming-") + CLI)
    assert code == -signal.SIGKILL
    assert run(world, old, arguments)[0] == 0
    assert not first.exists()
    check_receipts(old)
    assert_same(settled(old), expected)
