"""Whichever process is killed, at any time, the same command resumes and leaves the files of an undisturbed export."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.conftest import World
from faults.harness import (
    BOUND_S,
    CLI,
    MANY,
    SEEDS,
    SHAPE,
    Cluster,
    Process,
    assert_same,
    check_receipts,
    cluster,
    comparable_files,
    driver,
    receipts_so_far,
    wait_for,
)
from support.http_server import FileServer
from support.volumes import random_labels

from imagery_dask import to_zarr
from imagery_dask.export.verify import verify_export

pytestmark = pytest.mark.long

# Lower bound of an export's blocks; kills are spread over that many.
BLOCKS = 60
KILLS = 5 if MANY else 2


class Killer:
    """Run a command until it succeeds, and kill processes that take part in it at random moments."""

    def __init__(self, seed: str, folder: Path, start: Callable[[Path], Process], running: Cluster | None) -> None:
        self.random, self.folder = random.Random(seed), folder
        self.start, self.cluster = start, running
        self.killed: list[str] = []
        self.runs = 0

    def run(self) -> Process:
        """Start the command again until it succeeds; return the last process."""
        while True:
            self.runs += 1
            if self.cluster is not None:
                self.cluster.ensure()
            process = self.start(self.folder.with_name(f"driver{self.runs}.log"))
            try:
                while len(self.killed) < KILLS and self._wait_for_next_kill(process):
                    self._kill(process)
                code = process.wait()
                if code == 0:
                    return process
                if code != -signal.SIGKILL:
                    assert code in (1, 2), (code, process.output)
                    assert "Traceback" not in process.output, process.output
                    assert "Error: " in process.output, process.output
            finally:
                process.end()
            assert self.runs <= 2 * KILLS, (self.killed, process.output)

    def _wait_for_next_kill(self, process: Process) -> bool:
        """Wait for the moment of the next kill; return False if the export ends before it."""
        if self.random.random() < 0.25:
            kill_at = time.monotonic() + self.random.uniform(0, 1.5)
            wait_for(lambda: time.monotonic() > kill_at or process.code is not None)
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
            process.wait(BOUND_S)  # the driver does not wait for the dead scheduler
            assert time.monotonic() - started < BOUND_S
        elif victim != "driver":
            self.cluster.kill(victim)
            self.cluster.ensure()


FEW = range(max(1, SEEDS // 4))


@pytest.mark.parametrize("shards", ["none", "32,32,32"])
def test_a_copy_of_zarr_that_was_killed_is_the_undisturbed_copy(tmp_path: Path, shards: str) -> None:
    made = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20), "progress": False}
    to_zarr(random_labels(SHAPE, n=60), tmp_path / "ids.zarr", chunks=(16, 16, 16), shards=None, **made)
    with FileServer(tmp_path, latency_s=0.02) as server:

        def arguments(folder: Path) -> list[str]:
            folder.mkdir(exist_ok=True)
            source = ["--segmentation-source", f"zarr://{server.url}/ids.zarr", "--bounds", 0, 0, 0, *SHAPE]
            how = ["--chunks", "16,16,16", "--block-mib", 0.2, "--levels", 2, "--shards", shards]
            return list(map(str, ["export", "zarr", folder / "out", *source, *how]))

        undisturbed, folder = tmp_path / "undisturbed", tmp_path / "export"
        process = driver(arguments(undisturbed), tmp_path / "driver.log")
        assert process.wait() == 0, process.output
        assert "100% of the chunks" in process.output
        killer = Killer(f"copy {shards}", folder, lambda log: driver(arguments(folder), log), None)
        killer.run()
    assert killer.killed
    assert_same(comparable_files(folder), comparable_files(undisturbed))
    assert verify_export(folder / "out", sample=None, source=False, progress=False).ok


CASES = [("zarr", seed) for seed in range(SEEDS)]
CASES += [(kind, seed) for kind in ("shards", "precomputed", "png") for seed in FEW]


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_an_export_survives_kills_of_any_process_of_a_cluster(
    tmp_path: Path, world: World, kind: str, seed: int
) -> None:
    expected, folder = world.expected(kind), tmp_path / "export"
    with cluster(tmp_path / "cluster") as running:
        arguments = world.export_arguments(kind, folder, "--cluster", running.address)
        killer = Killer(f"{kind} {seed}", folder, lambda log: driver(arguments, log), running)
        killer.run()
    assert killer.killed
    check_receipts(folder)
    assert_same(comparable_files(folder), expected)


def test_a_stopped_scheduler_is_reported_as_lost(tmp_path: Path, world: World) -> None:
    """The connections of a stopped scheduler stay open, and nothing arrives."""
    folder = tmp_path / "export"
    with cluster(tmp_path / "cluster") as running:
        arguments = world.export_arguments("zarr", folder, "--cluster", running.address)
        impatient = "from imagery_dask.run import dask_workers; dask_workers.SILENCE_S = 2.0\n"
        process = driver(arguments, tmp_path / "driver.log", impatient + CLI)
        wait_for(lambda: receipts_so_far(folder) >= 5 or process.code is not None)
        running.running["scheduler"].send(signal.SIGSTOP)
        assert process.wait(30) == 1, process.output
        assert "scheduler is lost" in process.output
        assert "Traceback" not in process.output
        running.running["scheduler"].send(signal.SIGCONT)
        again = driver(arguments, tmp_path / "again.log")
        assert again.wait() == 0, again.output
    check_receipts(folder)
    assert_same(comparable_files(folder), world.expected("zarr"))


@pytest.mark.parametrize("seed", FEW)
@pytest.mark.parametrize("where", [(), ("--cluster", "local", "--workers", 2)], ids=["threads", "processes"])
def test_an_export_survives_kills_of_a_driver_with_local_workers(
    tmp_path: Path, world: World, where: tuple[Any, ...], seed: int
) -> None:
    expected, folder = world.expected("zarr"), tmp_path / "export"
    arguments = world.export_arguments("zarr", folder, *where)
    killer = Killer(f"local {len(where)} {seed}", folder, lambda log: driver(arguments, log), None)
    killer.run()
    assert killer.killed
    assert killer.runs > 1
    check_receipts(folder)
    assert_same(comparable_files(folder), expected)
