"""Parts of a plan, each by processes of its own: together they leave what one export leaves, whatever happens."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.conftest import World
from faults.harness import (
    CLI,
    MANY,
    SEEDS,
    Process,
    assert_same,
    check_receipts,
    driver,
    receipts_so_far,
    records_of,
    settled,
    wait_for,
)
from faults.test_lease import IMPATIENT

from imagery_dask.export.reports.status import Status, status_of

pytestmark = pytest.mark.long
LATENCY_S = 0.02
PARTS = 3


class Parts:
    """A plan into a folder, and processes that do parts of it."""

    def __init__(self, world: World, kind: str, folder: Path, more: tuple[str, ...]) -> None:
        self.world, self.folder = world, folder
        world.cluster.ensure()
        self._options = ["--cluster", world.cluster.address]
        folder.mkdir()
        planned = world.folder / f"planned-{kind}{''.join(more)}"
        made = planned.with_suffix(".json")
        if more and not made.exists():
            _, *arguments = world.export(kind, planned, *more)
            process = driver(["plan", *arguments, "--samples", "1", "--save", str(made)], made.with_suffix(".log"))
            assert process.wait() == 0, process.said
        elif not more:  # the plan of the export that nothing happened to
            world.expected(kind)
            planned = world.folder / f"expected-{kind}"
            (made,) = records_of(planned).glob("*/plan.json")
        plan = json.loads(made.read_text())
        plan = plan.get("plan", plan)
        plan["out"] = plan["out"].replace(str(planned), str(folder))
        self.plan = folder.with_suffix(".plan.json")
        self.plan.write_text(json.dumps(plan))
        self.started: list[Process] = []

    def start(self, part: str | None, *more: str, code: str = CLI) -> Process:
        """Start a part, or all of it."""
        of = [] if part is None else ["--part", part]
        arguments = ["export", "--plan", str(self.plan), *of, *self._options, *more]
        self.started.append(driver(arguments, self.folder.with_suffix(f".{len(self.started)}.log"), code))
        return self.started[-1]

    def run(self, part: str | None, *more: str) -> Process:
        """Start it, and wait."""
        process = self.start(part, *more)
        process.wait()
        return process

    def status(self) -> Status:
        """Say how far it is."""
        (found,) = status_of(self.plan_out)
        return found

    @property
    def plan_out(self) -> str:
        """Where to."""
        return str(json.loads(self.plan.read_text())["out"])


Plan = Callable[..., Parts]


@pytest.fixture
def parts(world: World, tmp_path: Path) -> Iterator[Plan]:
    """Plan an export; its processes are ended with the test."""
    made: list[Parts] = []

    def plan(kind: str = "zarr", *more: str) -> Parts:
        made.append(Parts(world, kind, tmp_path / f"{kind}-{len(made)}", more))
        return made[-1]

    yield plan
    for each in made:
        for process in each.started:
            process.send(signal.SIGCONT)
            process.end()


@pytest.mark.parametrize("kind", ["zarr", "shards", "precomputed", "png"] if MANY else ["zarr", "png"])
def test_parts_together_leave_what_one_export_leaves(world: World, parts: Plan, kind: str) -> None:
    expected = world.expected(kind)
    of = parts(kind)
    started = [of.start(f"{part}/{PARTS}") for part in range(1, PARTS + 1)]
    assert [process.wait() for process in started] == [0] * PARTS, [process.said for process in started]
    assert_same(settled(of.folder), expected)
    check_receipts(of.folder)
    said = [process.said for process in started]
    assert any("and so are all others" in each for each in said), said
    assert not list(records_of(of.folder).glob("*.json"))  # no lease is left


def test_the_last_of_parts_closes_the_store(world: World, parts: Plan) -> None:
    expected, of = world.expected("zarr"), parts()
    blocks = of_first_stage = 0
    for part in (3, 1, 2):
        process = of.run(f"{part}/{PARTS}")
        assert process.code == 0, process.said
        found = of.status()
        blocks = found.blocks
        of_first_stage = sum(stage.blocks for stage in found.stages if stage.stage == 0)
        if part != 2:
            assert found.state == "interrupted"
            parts_done = [range(2, of_first_stage, PARTS), range(0, of_first_stage, PARTS)][: 1 if part == 3 else 2]
            assert found.done == sum(map(len, parts_done))
            assert f"{of_first_stage - found.done} blocks of other parts are left" in process.said
    assert blocks > of_first_stage  # levels that are made of others, by the last part
    assert found.state == "complete"
    assert f": {blocks} of {blocks} blocks" in process.said
    assert_same(settled(of.folder), expected)
    again = of.run(f"1/{PARTS}")
    assert again.code == 0
    assert f"{blocks} blocks were there already; 0 were left to do" in again.said
    assert of.run(None).code == 0
    assert_same(settled(of.folder), expected)


def test_more_parts_than_blocks_and_one_part(world: World, parts: Plan) -> None:
    of = parts()
    assert of.run("1/1").code == 0
    assert_same(settled(of.folder), world.expected("zarr"))
    of = parts()
    nothing = of.run("5000/5000")
    assert nothing.code == 0, nothing.said
    assert "0 of 0 blocks" in nothing.said
    assert of.run(None).code == 0  # a plain export does what parts have left
    assert_same(settled(of.folder), world.expected("zarr"))


def test_who_waits_for_whom(world: World, parts: Plan) -> None:
    of = parts()
    world.server.latency_s = 0.4
    first = of.start("1/2")
    wait_for(lambda: receipts_so_far(of.folder) >= 1 or first.code is not None)
    assert first.code is None, first.said
    (holder,) = of.status().holders
    assert (of.status().state, holder.pid, holder.part) == ("running", first.pid, "1/2")
    for part, more in ((None, []), (None, ["--overwrite"]), ("1/2", []), ("1/4", [])):
        refused = of.run(part, *more)
        assert refused.code == 2
        assert f"part 1 of 2 of {of.plan_out} is being written by process {first.pid}" in refused.said
        assert "Traceback" not in refused.said
    world.server.latency_s = LATENCY_S
    assert of.run("2/2").code == 0
    assert first.wait() == 0, first.said
    assert_same(settled(of.folder), world.expected("zarr"))
    whole = parts()
    world.server.latency_s = 0.4
    all_of_it = whole.start(None)
    wait_for(lambda: receipts_so_far(whole.folder) >= 1 or all_of_it.code is not None)
    refused = whole.run("1/2")
    assert refused.code == 2
    assert f"is being written by process {all_of_it.pid}" in refused.said


def test_what_parts_cannot_do(parts: Plan) -> None:
    of = parts()
    for more in ("--overwrite", "--repair"):
        refused = of.run("1/2", more)
        assert refused.code == 2
        assert f"{more}) concerns a whole export and cannot be combined with part 1 of 2" in refused.said
    (of.folder / "out").mkdir()
    (of.folder / "out" / "something else").write_text("")
    refused = of.run("1/2")
    assert refused.code == 2
    assert "Error: " in refused.said
    assert [path.name for path in of.folder.iterdir()] == ["out"]


def test_a_part_whose_blocks_fail(parts: Plan) -> None:
    of = parts("zarr", "--missing", "error")  # of the source a few chunks are not there
    codes = [of.run(f"{part}/{PARTS}").code for part in range(1, PARTS + 1)]
    assert set(codes) <= {0, 1}
    assert 1 in codes
    found = of.status()
    assert (found.state, found.finished) == ("failed", None)
    first = [stage for stage in found.stages if stage.stage == 0]
    assert found.done == sum(stage.done for stage in first)  # other stages would read what is not there
    assert found.done == sum(stage.blocks for stage in first) - found.failed


@pytest.mark.parametrize("seed", range(SEEDS))
def test_kills_of_parts(world: World, parts: Plan, seed: int) -> None:
    expected, of = world.expected("zarr"), parts()
    chance = random.Random(seed)
    kills = 0
    deadline = time.monotonic() + 240
    while not kills or of.status().state != "complete":
        assert time.monotonic() < deadline
        running = [of.start(f"{part}/{PARTS}") for part in range(1, PARTS + 1)]
        if kills < 4:
            goal = receipts_so_far(of.folder) + chance.randrange(1, 20)
            wait_for(lambda goal=goal, running=running: receipts_so_far(of.folder) >= goal or _ended(running))
            time.sleep(chance.uniform(0, 0.1))
            for process in chance.sample(running, chance.randrange(1, PARTS + 1)):
                process.kill()
                kills += 1
        codes = [process.wait() for process in running]
        assert set(codes) <= {0, -signal.SIGKILL}, [process.said for process in running]
    assert kills
    assert_same(settled(of.folder), expected)
    check_receipts(of.folder)


def _ended(running: list[Process]) -> bool:
    return all(process.code is not None for process in running)


def test_the_one_that_closes_is_killed(world: World, parts: Plan) -> None:
    expected, of = world.expected("zarr"), parts()
    assert of.run("1/2").code == 0
    last = of.start("2/2")

    def is_closing() -> bool:
        return last.code is not None or any(stage.stage and stage.done for stage in of.status().stages)

    wait_for(is_closing)
    assert last.code is None, "it was too fast"
    last.kill()
    assert of.status().state == "interrupted"
    again = [of.start(f"{part}/2") for part in (1, 2)]
    assert [process.wait() for process in again] == [0, 0], [process.said for process in again]
    assert of.status().state == "complete"
    assert_same(settled(of.folder), expected)


def test_a_part_that_stood_still_ends(world: World, parts: Plan) -> None:
    expected, of = world.expected("zarr"), parts()
    part = of.start("1/2", code=IMPATIENT + CLI)
    wait_for(lambda: receipts_so_far(of.folder) >= 3 or part.code is not None)
    part.send(signal.SIGSTOP)
    # Its process lives, so that only the time says that it is over.
    all_of_it = of.start(None, code=IMPATIENT + CLI)
    refused = all_of_it.wait()
    if refused:
        wait_for(lambda: of.start(None, code=IMPATIENT + CLI).wait() == 0)
    part.send(signal.SIGCONT)
    assert part.wait() == 2
    assert "another process has taken over" in part.said
    assert_same(settled(of.folder), expected)


def test_more_missing_than_allowed_in_all_parts_together(parts: Plan) -> None:
    of = parts()
    assert of.run("1/2", "--max-missing", "100").code == 0
    allowed = of.status().missing  # in this part; there are others in the other one
    last = of.run("2/2", "--max-missing", str(allowed))
    assert last.code == 1
    assert f"do not exist, and max_missing (--max-missing) allows {allowed}" in last.said
    assert of.status().state == "interrupted"
    assert of.run("2/2", "--max-missing", "100").code == 0
    assert of.status().state == "complete"
