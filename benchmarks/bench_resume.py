"""Costs of an export of a million blocks: planning, running, receipts, resuming.

python benchmarks/bench_resume.py [--blocks N] [--only plan,run,receipts,resume] [--quick]
"""

from __future__ import annotations

import functools
import json
import os
import pydoc
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import arguments, em_volume, label_volume
from distributed import Client, LocalCluster

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import NewRun
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.execution.resume import open_run
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.run import Rules, RunReport, Written, run_blocks
from imagery_dask.run.block import run_block

BLOCKS = 1_000_000
QUICK_BLOCKS = 1000
MIB = 2**20


@dataclass(frozen=True, slots=True)
class NoBlock:
    """A block without work."""

    name: str
    volume: str = "nothing"

    def __call__(self) -> Written:
        """Do nothing."""
        return Written(1, 1, b"0123456789abcdef")

    def stored(self) -> bytes:
        """Return a hash."""
        return b"0123456789abcdef"

    expected = stored


@dataclass(frozen=True, slots=True)
class NoBlocks(Sequence[NoBlock]):
    """Sequence of blocks without work."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Any:
        return NoBlock(f"read+write nothing, z{number // 10_000} y{number // 100 % 100} x{number % 100}")


def volume_of_blocks(folder: Path, blocks: int) -> str:
    """Write the info of a volume without data, which an export with chunks of 64 divides into `blocks` blocks."""
    side = round(blocks ** (1 / 3))
    info = {
        "type": "image", "data_type": "uint8", "num_channels": 1,
        "scales": [{
            "key": "8_8_8", "resolution": [8, 8, 8], "voxel_offset": [0, 0, 0], "size": [64 * side] * 3,
            "chunk_sizes": [[64, 64, 64]], "encoding": "raw",
        }],
    }  # fmt: skip
    folder.mkdir()
    (folder / "info").write_text(json.dumps(info))
    return f"precomputed://file://{folder}"


def export_of(folder: Path, blocks: int) -> ZarrExport:
    """Return an export whose blocks are single chunks."""
    source = str(folder / "volume") if (folder / "volume").exists() else volume_of_blocks(folder / "volume", blocks)
    volume = ImageryClient(image_source=source.removeprefix("precomputed://file://")).image_volume()
    return ZarrExport(volume, folder / "out.zarr", ZarrOptions(chunks=(64, 64, 64), shards=None))


def plan(blocks: int) -> None:
    """Measure time and memory of a plan."""
    with tempfile.TemporaryDirectory() as name:
        export = export_of(Path(name), blocks)
        before = psutil.Process().memory_info().rss
        started = time.perf_counter()
        planned = export.plan(WorkerResources(2, 8 * 2**30), 64**3)
        text = json.dumps(planned.to_json())
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"\nplan: {planned.blocks:,} blocks in {seconds:.2f} s; process {peak / MIB:.0f} MiB at most, "
            f"{(peak - before) / MIB:.0f} MiB of it for the plan; {len(text) / 1e3:.0f} kB of JSON"
        )


def run(blocks: int) -> None:
    """Measure driver and scheduler time and memory of a run of blocks without work, on two workers."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        driver, seen, started = psutil.Process(), [], time.perf_counter()
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        before = driver.cpu_times()

        def progress(report: RunReport) -> None:
            if report.done % max(1, blocks // 100) == 0:
                seen.append((driver.memory_info().rss, sum(worker.memory_info().rss for worker in workers)))

        report = run_blocks(client, [NoBlocks(blocks)], RunReport(blocks), progress, Rules())
        after = driver.cpu_times()
        wall = time.perf_counter() - started
    assert report.ok
    rss = np.array(seen, float)
    tenth = len(rss) // 10
    first, last = rss[tenth : 2 * tenth].mean(axis=0), rss[-tenth:].mean(axis=0)
    cpu = after.user + after.system - before.user - before.system
    print(
        f"\nrun: {blocks:,} blocks in {wall:.0f} s: {1e3 * wall / blocks:.3f} ms of wall time and "
        f"{1e3 * cpu / blocks:.3f} ms of driver and scheduler (one process) for each; "
        f"memory of driver and scheduler {first[0] / MIB:.0f} MiB in the second tenth, {last[0] / MIB:.0f} in the last "
        f"({last[0] / first[0]:.2f}x); of both workers {first[1] / MIB:.0f} and {last[1] / MIB:.0f} "
        f"({last[1] / first[1]:.2f}x)"
    )


COSTS = {
    "receipts": ("imagery_dask.records.runs.Records.append", "imagery_dask.run.block.receipt"),
    "hashes": ("imagery_dask.export.zarr.block_array.digest_of",),
    "waiting for the disk": ("imagery_dask.storage.atomic_files._wait_for_disk",),
}


def receipts(repeats: int, folder: Path) -> None:
    """Measure the share of receipts, hashes and waiting for the disk in the time of an export's blocks."""
    image, labels = em_volume(folder, "raw"), label_volume(folder)
    for kind, client, options in (
        ("image, shards", ImageryClient(image_source=image), {"shards": (256, 256, 256)}),
        ("image, chunks", ImageryClient(image_source=image), {"shards": None}),
        ("labels, shards", ImageryClient(segmentation_source=labels), {"shards": (128, 128, 128)}),
        ("labels, chunks", ImageryClient(segmentation_source=labels), {"shards": None}),
    ):
        data = client.image_volume() if client.image_source else client.segmentation_volume()
        shares = sorted((_shares(data, options) for _ in range(repeats)), key=lambda by_cost: sum(by_cost.values()))
        shown = ", ".join(f"{name} {share:.2%}" for name, share in shares[repeats // 2].items())
        print(
            f"\nreceipts, {kind}: {shown}; all {sum(shares[repeats // 2].values()):.2%} of the blocks' time "
            f"(median of {repeats}; {sum(shares[0].values()):.2%} to {sum(shares[-1].values()):.2%})",
            flush=True,
        )


def _shares(data: Any, options: dict[str, Any]) -> dict[str, float]:
    """Return the seconds in these functions over the seconds of all blocks."""
    spent: dict[str, float] = dict.fromkeys((*COSTS, "all"), 0.0)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for name, functions in {**COSTS, "all": ("imagery_dask.run.block.run_block",)}.items():
            for function in functions:
                stack.enter_context(_timed(function, name, spent))
        to_zarr(data, f"{folder}/out.zarr", progress=False, workers=2, **options)
    return {name: spent[name] / spent["all"] for name in COSTS}


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


def resume(blocks: int) -> None:
    """Measure resuming an export of which no block is left, and `imagery-dask status` of it."""
    with tempfile.TemporaryDirectory() as name:
        export = export_of(Path(name), blocks)
        with open_run(export, overwrite=False) as new:
            assert isinstance(new, NewRun)
            run = new.start(export.plan(WorkerResources(2, 8 * 2**30), 64**3))
            export.create(run, _NoClient())
            run.begun()
            for number in range(run.plan.blocks):
                run_block(NoBlock("read+write image, x"), number, 1, run.records)
            blocks = run.plan.blocks
        execute(export_of(Path(name), blocks), RunOptions(progress=False))  # sets its state to complete
        started = time.perf_counter()
        report = execute(export_of(Path(name), blocks), RunOptions(progress=False))
        seconds = time.perf_counter() - started
        assert report.before == report.blocks == blocks
        script = "from imagery_dask.cli import main; main()"
        command = [sys.executable, "-c", script, "status", str(Path(name) / "out.zarr")]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(
            f"\nresume: {blocks:,} blocks, all written: {seconds:.2f} s; "
            f"status, with Python's start: {time.perf_counter() - started:.2f} s"
        )


class _NoClient:
    """A client without workers, for an export that computes nothing."""

    def run(self, *_: Any) -> dict[str, Any]:
        """Return the results of no workers."""
        return {}


if __name__ == "__main__":
    options = arguments(
        __doc__,
        blocks=(int, BLOCKS, "blocks of the plans and runs"),
        only=(str, "plan,run,receipts,resume", "benchmarks to run"),
        quick=(bool, False, "a plan, a run and a resumption of a few blocks, to see that they work"),
    )
    if options.quick:
        options.only, options.blocks = "plan,run,resume", QUICK_BLOCKS
    chosen = options.only.split(",")
    if "plan" in chosen:
        plan(options.blocks)
    if "receipts" in chosen:
        receipts(options.repeats, options.data)
    if "resume" in chosen:
        resume(options.blocks)
    if "run" in chosen:
        run(options.blocks)
