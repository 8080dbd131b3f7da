"""Workers are added while they make a run faster, and no longer: the rule, and what asks for them."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.settings import Configure

from imagery_dask.cluster.growing import (
    BLOCKS_EACH,
    LEAST_GAIN,
    Grower,
    Rate,
    WorkDone,
    first_count,
    next_count,
)

counts = st.integers(1, 2000)


@given(counts, counts)
def test_the_first_workers_are_few_and_within_the_limits(least: int, most: int) -> None:
    first = first_count(min(least, most), most)
    assert min(least, most) <= first <= most
    assert first <= max(4, least)


@given(counts, counts, st.floats(0.0, 1.5), st.integers(1, 10_000))
def test_workers_double_if_the_last_ones_gave_half_of_what_the_others_did(
    workers: int, most: int, gain: float, blocks: int
) -> None:
    before = Rate(workers, blocks, 60)
    now = Rate(2 * workers, round(blocks * (1 + gain)), 60)
    asked = min(2 * workers, most)
    decision = next_count(asked, before, now, most)
    assert asked <= decision.workers <= most
    enough = now.blocks - blocks >= LEAST_GAIN * blocks
    assert decision.workers == (min(2 * asked, most) if enough else asked)
    assert bool(decision.reason) == (not enough or asked == most)


@given(counts, st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_source_that_asks_for_fewer_requests_gets_no_more_workers(
    workers: int, requests: int, throttled: int
) -> None:
    now = Rate(workers, 100, 60, requests, min(throttled, requests))
    decision = next_count(workers, None, now, most=10 * workers)
    assert ("HTTP 429 or 503" in decision.reason) == (now.throttled > 0.05 * requests)
    assert (decision.workers == workers) == bool(decision.reason)


def test_the_reason_has_both_rates() -> None:
    decision = next_count(16, Rate(8, 195, 60), Rate(16, 210, 60), most=100)
    assert decision.reason.startswith("16 workers write 210 blocks/min, 8 wrote 195: the source or the store is the")


@dataclass
class Simulated:
    """A run on a cluster whose workers write `each` blocks a second, and all of them at most `limit`."""

    grower: Grower
    limit: float
    left: float
    each: float = 1.0
    asked: list[int] = field(default_factory=list)
    now: float = 0.0
    done: float = 0.0
    # Seconds until workers that were asked for connect.
    start_s: float = 5.0
    workers: int = 0
    throttled_above: int | None = None
    requests: float = 0.0
    throttled: float = 0.0

    def run(self) -> None:
        """Run all blocks."""
        coming = [(self.start_s, self.grower.asked)]
        while self.left >= 1:
            self.now += 1
            self.workers = max(count for when, count in [(0.0, 1), *coming] if when <= self.now)
            written = min(self.left, self.limit, self.workers * self.each)
            self.done, self.left = self.done + written, self.left - written
            self.requests += 10 * written
            if self.throttled_above is not None and self.workers > self.throttled_above:
                self.throttled += written
            before = self.grower.asked
            work = WorkDone(int(self.done), int(self.left), int(self.requests), int(self.throttled))
            self.grower.look(self.workers, self.workers, work)
            if self.grower.asked != before:
                coming.append((self.now + self.start_s, self.grower.asked))


def simulated(first: int, most: int, limit: float, left: float, **more: int) -> tuple[Simulated, list[int]]:
    asked: list[int] = []
    run = Simulated(None, limit, left, **more)  # type: ignore[arg-type]
    run.grower = Grower(asked.append, first, most, clock=lambda: run.now)  # type: ignore[arg-type]
    run.run()
    return run, asked


@given(st.integers(1, 8), st.integers(8, 500), st.floats(1.0, 1000.0), st.integers(100, 200_000))
def test_a_cluster_grows_to_what_the_source_serves(first: int, most: int, limit: float, left: int) -> None:
    run, asked = simulated(first, most, limit, left)
    assert asked == sorted(set(asked))
    assert all(first < count <= most for count in asked)
    # One step past the limit shows that it is there: no worker of a second step is asked for.
    assert max(asked, default=first) <= max(2 * first, 4 * limit)
    if left > 500 * most and limit >= most:
        assert asked[-1:] == ([most] if most > first else [])


def test_steps_of_an_unlimited_and_of_a_limited_source(configure: Configure) -> None:
    run, asked = simulated(4, 100, 1e9, 1e6)
    assert asked == [8, 16, 32, 64, 100]
    assert run.grower.note == "100 workers are the most that are allowed."
    run, asked = simulated(4, 100, 10, 1e5)
    assert asked == [8, 16]
    assert "16 workers write 600 blocks/min, 8 wrote 480" in run.grower.note
    configure("run.measure_s", 1e9)
    assert simulated(4, 100, 1e9, 1e5)[1] == []


def test_a_server_that_throttles_ends_the_growth() -> None:
    run, asked = simulated(4, 100, 1e9, 1e6, throttled_above=8)
    assert asked == [8, 16]
    assert "it is the limit" in run.grower.note


@pytest.mark.parametrize("left", [0, 3, 50])
def test_no_workers_are_added_for_few_blocks(left: int) -> None:
    run, asked = simulated(4, 100, 1e9, left)
    assert asked == []
    assert run.grower.note == ""


def test_workers_that_do_not_connect_are_waited_for() -> None:
    asked: list[int] = []
    now = [0.0]
    grower = Grower(asked.append, 8, 64, clock=lambda: now[0])  # type: ignore[arg-type]
    for second in range(1000):
        now[0] = second
        grower.look(5, 5, WorkDone(5 * second, 10**6 - 5 * second))
    assert asked == []
    assert grower.note == ""


def test_a_stage_is_measured_by_itself() -> None:
    """Blocks of the second stage take ten times as long, which is no sign of a limit."""
    asked: list[int] = []
    now, done = [0.0], [0]
    grower = Grower(asked.append, 4, 64, clock=lambda: now[0])  # type: ignore[arg-type]

    def look(per_second: int, left: int) -> None:
        now[0] += 1
        done[0] += per_second
        grower.look(grower.asked, grower.asked, WorkDone(done[0], left))

    while grower.asked == 4:
        look(40, 10**5 - done[0])
    for second in range(100):
        look(grower.asked, 10**6 - grower.asked * second)
        if grower.asked == 16:
            break
    assert asked == [8, 16]
    assert grower.note == ""


@pytest.mark.parametrize("how", ["at once", "later"])
def test_a_refusal_ends_the_growth_and_not_the_run(how: str) -> None:
    submitted: Future[None] = Future()

    def scale(count: int) -> Future[None]:
        if how == "at once":
            raise OSError("sbatch:\n no more")
        return submitted

    now = [0.0]
    grower = Grower(scale, 1, 64, clock=lambda: now[0])
    for second in range(100):
        now[0] = second
        grower.look(2, 2, WorkDone(20 * second, 10**6 - 20 * second))
        if second == 60 and how == "later":
            assert (grower.asked, grower.note) == (2, "")
            submitted.set_exception(OSError("sbatch:\n no more"))
    assert grower.asked == 2
    assert grower.note == "no more workers can be started: sbatch: no more"
    assert BLOCKS_EACH > 1
