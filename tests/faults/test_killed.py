"""Whatever is killed, and whenever: the same command goes on, and what it leaves is what an export leaves in peace."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.conftest import World
from faults.harness import (
    BOUND_S,
    CLI,
    MANY,
    SEEDS,
    Cluster,
    Process,
    assert_same,
    check_receipts,
    cluster,
    driver,
    receipts_so_far,
    settled,
    wait_for,
)

pytestmark = pytest.mark.long

# Blocks that an export has at least; kills are spread over them.
BLOCKS = 60
KILLS = 5 if MANY else 2


class Killer:
    """Runs a command until it is done, and kills at random moments what takes part in it."""

    def __init__(self, seed: str, folder: Path, start: Callable[[Path], Process], running: Cluster | None) -> None:
        self.random, self.folder = random.Random(seed), folder
        self.start, self.cluster = start, running
        self.killed: list[str] = []
        self.runs = 0

    def run(self) -> Process:
        """Run until an export ends well; give the last one."""
        while True:
            self.runs += 1
            if self.cluster is not None:
                self.cluster.ensure()
            process = self.start(self.folder.with_name(f"driver{self.runs}.log"))
            try:
                while len(self.killed) < KILLS and self._moment(process):
                    self._kill(process)
                code = process.wait()
                if code == 0:
                    return process
                if code != -signal.SIGKILL:
                    assert code in (1, 2), (code, process.said)
                    assert "Traceback" not in process.said, process.said
                    assert "Error: " in process.said, process.said
            finally:
                process.end()
            assert self.runs <= 2 * KILLS, (self.killed, process.said)

    def _moment(self, process: Process) -> bool:
        """Wait for the moment of the next kill; False when the export ends before it."""
        if self.random.random() < 0.25:
            at = time.monotonic() + self.random.uniform(0, 1.5)
            wait_for(lambda: time.monotonic() > at or process.code is not None)
        else:
            goal = receipts_so_far(self.folder) + self.random.randint(1, BLOCKS // KILLS)
            wait_for(lambda: receipts_so_far(self.folder) >= goal or process.code is not None)
            time.sleep(self.random.uniform(0, 0.05))
        return process.code is None

    def _kill(self, process: Process) -> None:
        choices = ["driver"] if self.cluster is None else ["driver", "worker0", "worker1", "scheduler", "all"]
        victim = self.random.choice(choices)
        self.killed.append(victim)
        if victim in ("driver", "all"):
            process.kill()
        if self.cluster is None:
            return
        if victim in ("scheduler", "all"):
            self.cluster.kill("scheduler")
            started = time.monotonic()
            process.wait(BOUND_S)  # it does not wait for a scheduler that is dead
            assert time.monotonic() - started < BOUND_S
        elif victim != "driver":
            self.cluster.kill(victim)
            self.cluster.ensure()


FEW = range(max(1, SEEDS // 4))
CASES = [("zarr", seed) for seed in range(SEEDS)]
CASES += [(kind, seed) for kind in ("shards", "precomputed", "png") for seed in FEW]


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_kills_of_anything_on_a_cluster(tmp_path: Path, world: World, kind: str, seed: int) -> None:
    expected, folder = world.expected(kind), tmp_path / "export"
    with cluster(tmp_path / "cluster") as running:
        arguments = world.export(kind, folder, "--cluster", running.address)
        killer = Killer(f"{kind} {seed}", folder, lambda said: driver(arguments, said), running)
        killer.run()
    assert killer.killed
    check_receipts(folder)
    assert_same(settled(folder), expected)


def test_a_scheduler_that_stands_still(tmp_path: Path, world: World) -> None:
    """Its connections stay open, and nothing comes."""
    folder = tmp_path / "export"
    with cluster(tmp_path / "cluster") as running:
        arguments = world.export("zarr", folder, "--cluster", running.address)
        impatient = "from imagery_dask.run import window; window.SILENCE_S = 2.0\n"
        process = driver(arguments, tmp_path / "driver.log", impatient + CLI)
        wait_for(lambda: receipts_so_far(folder) >= 5 or process.code is not None)
        running.running["scheduler"].send(signal.SIGSTOP)
        assert process.wait(30) == 1, process.said
        assert "scheduler is lost" in process.said
        assert "Traceback" not in process.said
        running.running["scheduler"].send(signal.SIGCONT)
        again = driver(arguments, tmp_path / "again.log")
        assert again.wait() == 0, again.said
    check_receipts(folder)
    assert_same(settled(folder), world.expected("zarr"))


@pytest.mark.parametrize("seed", FEW)
def test_kills_of_a_driver_with_workers_of_its_own(tmp_path: Path, world: World, seed: int) -> None:
    expected, folder = world.expected("zarr"), tmp_path / "export"
    arguments = world.export("zarr", folder, "--cluster", "local", "--workers", 2)
    killer = Killer(f"local {seed}", folder, lambda said: driver(arguments, said), None)
    killer.run()
    assert killer.killed
    assert killer.runs > 1
    check_receipts(folder)
    assert_same(settled(folder), expected)
