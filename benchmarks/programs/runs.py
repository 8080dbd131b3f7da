"""Exports of a million blocks of no work: planning, running, resuming, and what receipts cost."""

from __future__ import annotations

import functools
import json
import pydoc
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

from benchmarks.programs.exports import _peak_mib
from benchmarks.programs.reads import lazy
from benchmarks.simulated_workers import SimulatedWorkers
from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import NewRun
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.execution.resume import open_run
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.records.receipts import RECEIPT, receipt
from imagery_dask.records.runs import Records
from imagery_dask.run import Rules, RunReport, Written, run_blocks
from imagery_dask.run.dask_workers import DaskWorkers
from imagery_dask.sources import ReadCounts

WORKERS = WorkerResources(2, 8 * 2**30)
BLOCK_BYTES = 64**3


@dataclass(frozen=True, slots=True)
class NoBlock:
    """A block without work, or one that waits."""

    name: str
    volume: str = "nothing"
    seconds: float = 0.0

    def __call__(self) -> Written:
        """Do nothing."""
        if self.seconds:
            time.sleep(self.seconds)
        return Written(1, 1, b"0123456789abcdef")

    def stored(self) -> bytes:
        """Return a hash."""
        return b"0123456789abcdef"

    expected = stored


@dataclass(frozen=True, slots=True)
class NoBlocks(Sequence[NoBlock]):
    """Sequence of blocks without work."""

    blocks: int
    seconds: float = 0.0

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, number: Any) -> Any:
        name = f"read+write nothing, z{number // 10_000} y{number // 100 % 100} x{number % 100}"
        return NoBlock(name, seconds=self.seconds)


def _export_of(folder: Path, blocks: int) -> ZarrExport:
    """Return an export of `blocks` single chunks of a volume that has an info and no data."""
    side = round(blocks ** (1 / 3))
    source = folder / "volume"
    if not source.exists():
        source.mkdir()
        scale = {
            "key": "8_8_8", "resolution": [8, 8, 8], "voxel_offset": [0, 0, 0], "size": [64 * side] * 3,
            "chunk_sizes": [[64, 64, 64]], "encoding": "raw",
        }  # fmt: skip
        info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale]}
        (source / "info").write_text(json.dumps(info))
    volume = ImageryClient(image_source=str(source)).image_volume()
    return ZarrExport(volume, folder / "out.zarr", ZarrOptions(chunks=(64, 64, 64), shards=None))


def finished_export(folder: Path, blocks: int, processes: int = 2) -> int:
    """Write the records of a complete export, as processes have left them; return its number of blocks."""
    export = _export_of(folder, blocks)
    with open_run(export, overwrite=False) as new:
        assert isinstance(new, NewRun)
        run = new.start(export.plan(WORKERS, BLOCK_BYTES))
        export.create(run, _NoClient())
        run.begun()
        write_receipts(run.records, run.plan.blocks, processes)
    execute(_export_of(folder, blocks), RunOptions(progress=False))  # sets its state to complete
    return run.plan.blocks


def write_receipts(records: Records, blocks: int, processes: int) -> None:
    """Write a receipt for each block: process N has every N-th block, and 500 blocks were done in a second."""
    first = np.frombuffer(receipt(0, b"0123456789abcdef", 64**3, 64**3, ReadCounts(chunks=1), 1, 2.0), RECEIPT)[0]
    for process in range(processes):
        numbers = np.arange(process, blocks, processes)
        rows = np.full(len(numbers), first)
        rows["block"], rows["finished"] = numbers, first["finished"] - (blocks - numbers) / 500
        content = rows.tobytes()
        size = RECEIPT.itemsize
        checks = (zlib.crc32(content[at : at + size - 4]) for at in range(0, len(content), size))
        rows["crc"] = np.fromiter(checks, np.uint32, len(rows))
        records.files.put(f"{records.run}/receipts-host-{process}.bin", rows.tobytes())


class _NoClient:
    """A client without workers, for an export that computes nothing."""

    def run(self, *_: Any) -> dict[str, Any]:
        """Return the results of no workers."""
        return {}


def resume(source: str, export: str, blocks: int) -> None:
    """Export again what is complete."""
    report = execute(_export_of(Path(export).parent, blocks), RunOptions(progress=False))
    assert report.before == report.blocks, report


def plan(source: str, blocks: int) -> dict[str, Any]:
    """Plan an export."""
    with tempfile.TemporaryDirectory() as folder:
        planned = _export_of(Path(folder), blocks).plan(WORKERS, BLOCK_BYTES)
        return {"counts": {"plan bytes": len(json.dumps(planned.to_json()))}}


def no_blocks(source: str, blocks: int) -> dict[str, Any]:
    """Run blocks without work on two workers; measure driver and scheduler, which are this process."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        seen: list[float] = []

        def progress(report: RunReport) -> None:
            if report.done % max(1, blocks // 10) == 0:
                seen.append(_peak_mib())

        started, cpu = time.perf_counter(), time.process_time()
        report = run_blocks(DaskWorkers(client), [NoBlocks(blocks)], RunReport(blocks), progress, Rules())
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert report.ok
    figures = {
        "ms of driver per block": 1e3 * cpu / blocks,
        "memory at the end, times that of a fifth": seen[-1] / seen[1],
    }
    return {"wall_s": seconds, "cpu_s": cpu, "figures": figures}


def window(source: str, blocks: int, threads: int, seconds: float) -> dict[str, Any]:
    """Run blocks on threads in simulated time: what the driver alone needs, and how it divides blocks into tasks."""
    workers, seen = SimulatedWorkers(threads, seconds), list[float]()

    def progress(report: RunReport) -> None:
        if report.done % max(1, blocks // 10) == 0:
            seen.append(_peak_mib())

    rules = Rules(todo=np.ones(blocks, bool))
    started, cpu = time.perf_counter(), time.process_time()
    report = run_blocks(workers, [NoBlocks(blocks)], RunReport(blocks), progress, rules)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert report.ok
    tasks = workers.submitted
    figures = {
        "ms of driver per block, without dask": 1e3 * cpu / blocks,
        "blocks a task": blocks / tasks.count,
        "tasks a second": tasks.count / tasks.now,
        "% of the threads' time with blocks": 100 * tasks.busy,
        "memory at the end, times that of a fifth": seen[-1] / seen[1],
    }
    return {"wall_s": wall, "cpu_s": cpu, "figures": figures, "counts": {"tasks": tasks.count}}


def thousand(
    source: str, blocks: int, workers: int, threads: int, processes: int, seconds: float, idle_s: float
) -> dict[str, Any]:
    """Run blocks that wait on many workers in few processes; measure driver and scheduler, which are this process."""
    with (
        LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster) as client,
        ExitStack() as stack,
    ):
        cpu = time.process_time()
        hosts = [sys.executable, "-m", "benchmarks.worker_host", cluster.scheduler_address, str(workers // processes)]
        for _ in range(processes):
            stack.callback(stack.enter_context(subprocess.Popen([*hosts, str(threads)])).terminate)
        client.wait_for_workers(workers)
        figures = {"ms of scheduler per worker that joins": 1e3 * (time.process_time() - cpu) / workers}
        cpu = time.process_time()
        time.sleep(idle_s)  # only heartbeats
        figures["% of a core for workers that wait"] = 100 * (time.process_time() - cpu) / idle_s
        seen: list[float] = []

        def progress(report: RunReport) -> None:
            if report.done % max(1, blocks // 10) == 0:
                seen.append(_peak_mib())

        rules = Rules(todo=np.ones(blocks, bool))
        started, cpu = time.perf_counter(), time.process_time()
        report = run_blocks(DaskWorkers(client), [NoBlocks(blocks, seconds)], RunReport(blocks), progress, rules)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert report.ok
    figures |= {
        "ms of driver and scheduler per block": 1e3 * cpu / blocks,
        "% of the workers' time with blocks": 100 * blocks * seconds / (workers * threads) / wall,
        "memory at the end, times that of a fifth": seen[-1] / seen[1],
    }
    return {"wall_s": wall, "cpu_s": cpu, "figures": figures}


def futures(source: str, blocks: int) -> dict[str, Any]:
    """Run as many tasks without work by plain futures of dask."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        started, cpu = time.perf_counter(), time.process_time()
        client.gather(client.map(abs, range(blocks), pure=False))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"wall_s": seconds, "cpu_s": cpu, "figures": {"ms of driver per block": 1e3 * cpu / blocks}}


COSTS = {
    "receipts": ("imagery_dask.records.runs.Records.append", "imagery_dask.run.block.receipt"),
    "hashes": ("imagery_dask.export.zarr.block_array.digest_of",),
    "waiting for the disk": ("imagery_dask.storage.atomic_files._wait_for_disk",),
}


def costs(
    source: str, kind: str, start: list[int], stop: list[int], out: str, shard: list[int] | None
) -> dict[str, Any]:
    """Export on two threads; measure the shares of some functions in the time of the blocks."""
    spent: dict[str, float] = dict.fromkeys((*COSTS, "all"), 0.0)
    with ExitStack() as stack:
        for name, functions in {**COSTS, "all": ("imagery_dask.run.block.run_block",)}.items():
            for function in functions:
                stack.enter_context(_timed(function, name, spent))
        to_zarr(lazy(source, kind, start, stop), out, progress=False, workers=2, shards=shard)
    return {"figures": {f"{name}, % of the blocks' time": 100 * spent[name] / spent["all"] for name in COSTS}}


@contextmanager
def _timed(function: str, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Add up the time that threads of this process spend in a function."""
    owner_name, _, attribute = function.rpartition(".")
    owner = pydoc.locate(owner_name)
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    setattr(owner, attribute, timed)
    try:
        yield
    finally:
        setattr(owner, attribute, original)
