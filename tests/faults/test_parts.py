"""Parts of a plan in separate processes leave together the files of one export, even if processes are killed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
    comparable_files,
    driver,
    receipts_so_far,
    records_of,
    wait_for,
)
from faults.test_lease import IMPATIENT

from imagery_dask.export.reports.status import Status, status_of

pytestmark = pytest.mark.long
LATENCY_S = 0.02
# So that an export outlasts the commands that are refused meanwhile, on a slow machine too.
HELD_S = 10.0
PARTS = 3


class PlannedExport:
    """A plan of an export into a folder, and processes that do parts of it."""

    def __init__(self, world: World, kind: str, folder: Path, options: tuple[str, ...]) -> None:
        self.world, self.folder = world, folder
        world.cluster.ensure()
        self._cluster = ["--cluster", world.cluster.address]
        folder.mkdir()
        planned_path = world.folder / f"planned-{kind}{''.join(options)}"
        plan_file = planned_path.with_suffix(".json")
        if options and not plan_file.exists():
            _, *arguments = world.export_arguments(kind, planned_path, *options)
            process = driver(
                ["plan", *arguments, "--samples", "1", "--save", str(plan_file)], plan_file.with_suffix(".log")
            )
            assert process.wait() == 0, process.output
        elif not options:  # use the plan of the undisturbed export
            world.expected(kind)
            planned_path = world.folder / f"expected-{kind}"
            (plan_file,) = records_of(planned_path).glob("*/plan.json")
        plan = json.loads(plan_file.read_text())
        plan = plan.get("plan", plan)
        plan["out"] = plan["out"].replace(str(planned_path), str(folder))
        self.plan = folder.with_suffix(".plan.json")
        self.plan.write_text(json.dumps(plan))
        self.started: list[Process] = []

    def start(self, part: str | None, *options: str, code: str = CLI) -> Process:
        """Start a process for one part, or for the whole plan."""
        selection = [] if part is None else ["--part", part]
        arguments = ["export", "--plan", str(self.plan), *selection, *self._cluster, *options]
        self.started.append(driver(arguments, self.folder.with_suffix(f".{len(self.started)}.log"), code))
        return self.started[-1]

    def run(self, part: str | None, *options: str) -> Process:
        """Start a process and wait for its end."""
        process = self.start(part, *options)
        process.wait()
        return process

    def status(self) -> Status:
        """Return the progress of the export."""
        (status,) = status_of(self.plan_out)
        return status

    @property
    def plan_out(self) -> str:
        """Target of the plan."""
        return str(json.loads(self.plan.read_text())["out"])


PlanExport = Callable[..., PlannedExport]


@pytest.fixture
def plan_export(world: World, tmp_path: Path) -> Iterator[PlanExport]:
    """Plan exports, whose processes are killed when the test ends."""
    planned_exports: list[PlannedExport] = []

    def make_plan(kind: str = "zarr", *options: str) -> PlannedExport:
        planned_exports.append(PlannedExport(world, kind, tmp_path / f"{kind}-{len(planned_exports)}", options))
        return planned_exports[-1]

    yield make_plan
    for planned in planned_exports:
        for process in planned.started:
            process.send(signal.SIGCONT)
            process.end()


@pytest.mark.parametrize("kind", ["zarr", "shards", "precomputed", "png"] if MANY else ["zarr", "png"])
def test_parts_together_leave_what_one_export_leaves(world: World, plan_export: PlanExport, kind: str) -> None:
    expected = world.expected(kind)
    planned = plan_export(kind)
    started = [planned.start(f"{part}/{PARTS}") for part in range(1, PARTS + 1)]
    assert [process.wait() for process in started] == [0] * PARTS, [process.output for process in started]
    assert_same(comparable_files(planned.folder), expected)
    check_receipts(planned.folder)
    outputs = [process.output for process in started]
    assert any("and so are all others" in output for output in outputs), outputs
    assert not list(records_of(planned.folder).glob("*.json"))  # no lease is left


def test_the_last_part_to_finish_closes_the_store(world: World, plan_export: PlanExport) -> None:
    expected, planned = world.expected("zarr"), plan_export()
    blocks = first_stage_blocks = 0
    for part in (3, 1, 2):
        process = planned.run(f"{part}/{PARTS}")
        assert process.code == 0, process.output
        status = planned.status()
        blocks = status.blocks
        first_stage_blocks = sum(stage.blocks for stage in status.stages if stage.stage == 0)
        if part != 2:
            assert status.state == "interrupted"
            parts_done = [range(2, first_stage_blocks, PARTS), range(0, first_stage_blocks, PARTS)][
                : 1 if part == 3 else 2
            ]
            assert status.done == sum(map(len, parts_done))
            assert f"{first_stage_blocks - status.done} blocks of other parts are left" in process.output
    assert blocks > first_stage_blocks  # the last part builds the levels that are made of others
    assert status.state == "complete"
    assert f": {blocks} of {blocks} blocks" in process.output
    assert_same(comparable_files(planned.folder), expected)
    again = planned.run(f"1/{PARTS}")
    assert again.code == 0
    assert f"{blocks} blocks were written before; 0 were left to do" in again.output
    assert planned.run(None).code == 0
    assert_same(comparable_files(planned.folder), expected)


def test_one_part_is_the_whole_and_surplus_parts_are_empty(world: World, plan_export: PlanExport) -> None:
    planned = plan_export()
    assert planned.run("1/1").code == 0
    assert_same(comparable_files(planned.folder), world.expected("zarr"))
    planned = plan_export()
    nothing = planned.run("5000/5000")
    assert nothing.code == 0, nothing.output
    assert "0 of 0 blocks" in nothing.output
    assert planned.run(None).code == 0  # an export of the whole plan does the remaining blocks
    assert_same(comparable_files(planned.folder), world.expected("zarr"))


def test_other_parts_run_together_and_the_same_part_is_refused(world: World, plan_export: PlanExport) -> None:
    planned = plan_export()
    world.server.latency_s = 0.4
    first = planned.start("1/2")
    wait_for(lambda: receipts_so_far(planned.folder) >= 1 or first.code is not None)
    assert first.code is None, first.output
    world.server.latency_s = HELD_S
    (holder,) = planned.status().holders
    assert (planned.status().state, holder.pid, holder.part) == ("running", first.pid, "1/2")
    for part, options in ((None, []), (None, ["--overwrite"]), ("1/2", []), ("1/4", [])):
        refused = planned.run(part, *options)
        assert refused.code == 2
        assert f"part 1 of 2 of {planned.plan_out} is being written by process {first.pid}" in refused.output
        assert "Traceback" not in refused.output
    world.server.latency_s = LATENCY_S
    assert planned.run("2/2").code == 0
    assert first.wait() == 0, first.output
    assert_same(comparable_files(planned.folder), world.expected("zarr"))
    whole = plan_export()
    world.server.latency_s = 0.4
    whole_run = whole.start(None)
    wait_for(lambda: receipts_so_far(whole.folder) >= 1 or whole_run.code is not None)
    world.server.latency_s = HELD_S
    refused = whole.run("1/2")
    assert refused.code == 2
    assert f"is being written by process {whole_run.pid}" in refused.output


def test_parts_refuse_overwrite_repair_and_a_foreign_target(plan_export: PlanExport) -> None:
    planned = plan_export()
    for option in ("--overwrite", "--repair"):
        refused = planned.run("1/2", option)
        assert refused.code == 2
        assert f"{option}) concerns a whole export and cannot be combined with part 1 of 2" in refused.output
    (planned.folder / "out").mkdir()
    (planned.folder / "out" / "something else").write_text("")
    refused = planned.run("1/2")
    assert refused.code == 2
    assert "Error: " in refused.output
    assert [path.name for path in planned.folder.iterdir()] == ["out"]


def test_failed_blocks_of_a_part_keep_the_export_unfinished(plan_export: PlanExport) -> None:
    planned = plan_export("zarr", "--missing", "error")  # a few chunks of the source do not exist
    codes = [planned.run(f"{part}/{PARTS}").code for part in range(1, PARTS + 1)]
    assert set(codes) <= {0, 1}
    assert 1 in codes
    status = planned.status()
    assert (status.state, status.finished) == ("failed", None)
    first = [stage for stage in status.stages if stage.stage == 0]
    assert status.done == sum(stage.done for stage in first)  # other stages would read the missing blocks
    assert status.done == sum(stage.blocks for stage in first) - status.failed


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_export_survives_kills_of_its_parts(world: World, plan_export: PlanExport, seed: int) -> None:
    expected, planned = world.expected("zarr"), plan_export()
    random_numbers = random.Random(seed)
    kills = 0
    deadline = time.monotonic() + 240
    while not kills or planned.status().state != "complete":
        assert time.monotonic() < deadline
        running = [planned.start(f"{part}/{PARTS}") for part in range(1, PARTS + 1)]
        if kills < 4:
            goal = receipts_so_far(planned.folder) + random_numbers.randrange(1, 20)
            wait_for(lambda goal=goal, running=running: receipts_so_far(planned.folder) >= goal or _ended(running))
            time.sleep(random_numbers.uniform(0, 0.1))
            for process in random_numbers.sample(running, random_numbers.randrange(1, PARTS + 1)):
                process.kill()
                kills += 1
        codes = [process.wait() for process in running]
        assert set(codes) <= {0, -signal.SIGKILL}, [process.output for process in running]
    assert kills
    assert_same(comparable_files(planned.folder), expected)
    check_receipts(planned.folder)


def _ended(running: list[Process]) -> bool:
    return all(process.code is not None for process in running)


def test_an_export_resumes_when_the_closing_part_is_killed(world: World, plan_export: PlanExport) -> None:
    expected, planned = world.expected("zarr"), plan_export()
    assert planned.run("1/2").code == 0
    last = planned.start("2/2")

    def is_closing() -> bool:
        return last.code is not None or any(stage.stage and stage.done for stage in planned.status().stages)

    wait_for(is_closing)
    assert last.code is None, "the export ended before it was killed"
    last.kill()
    assert planned.status().state == "interrupted"
    again = [planned.start(f"{part}/2") for part in (1, 2)]
    assert [process.wait() for process in again] == [0, 0], [process.output for process in again]
    assert planned.status().state == "complete"
    assert_same(comparable_files(planned.folder), expected)


def test_a_stopped_part_exits_when_another_has_taken_over(world: World, plan_export: PlanExport) -> None:
    expected, planned = world.expected("zarr"), plan_export()
    part = planned.start("1/2", code=IMPATIENT + CLI)
    wait_for(lambda: receipts_so_far(planned.folder) >= 3 or part.code is not None)
    part.send(signal.SIGSTOP)
    # The process of the part still exists, so only the age of its lease shows that it has expired.
    whole_run = planned.start(None, code=IMPATIENT + CLI)
    refused = whole_run.wait()
    if refused:
        wait_for(lambda: planned.start(None, code=IMPATIENT + CLI).wait() == 0)
    part.send(signal.SIGCONT)
    assert part.wait() == 2
    assert "another process has taken over" in part.output

    def no_block_is_written() -> bool:
        with suppress(FileNotFoundError):  # a block that the part had submitted ends meanwhile
            return not any(planned.folder.rglob(".partial-*"))
        return False

    wait_for(no_block_is_written)
    assert_same(comparable_files(planned.folder), expected)


def test_max_missing_counts_all_parts_together(plan_export: PlanExport) -> None:
    planned = plan_export()
    assert planned.run("1/2", "--max-missing", "100").code == 0
    allowed = planned.status().missing  # of the first part; the second has more
    last = planned.run("2/2", "--max-missing", str(allowed))
    assert last.code == 1
    assert f"do not exist, and max_missing (--max-missing) allows {allowed}" in last.output
    assert planned.status().state == "interrupted"
    assert planned.run("2/2", "--max-missing", "100").code == 0
    assert planned.status().state == "complete"
