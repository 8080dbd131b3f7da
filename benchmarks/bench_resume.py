"""What it costs to export a million blocks that finish: planning, running, receipts, going on.

python benchmarks/bench_resume.py [--blocks N] [--only plan,run,receipts,resume]
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import arguments
from distributed import Client, LocalCluster

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import Room
from imagery_dask.demo.volume import synthesize
from imagery_dask.export.job import Running, execute
from imagery_dask.export.session import open_session
from imagery_dask.export.zarr import ZarrExport
from imagery_dask.run import Rules, RunReport, Written, run_blocks
from imagery_dask.run.block import run_block

BLOCKS = 1_000_000
MIB = 2**20


@dataclass(frozen=True, slots=True)
class NoBlock:
    """A block that is nothing to do."""

    name: str
    volume: str = "nothing"

    def __call__(self) -> Written:
        """Do nothing."""
        return Written(1, 1, b"0123456789abcdef")

    def stored(self) -> bytes:
        """Give a hash."""
        return b"0123456789abcdef"

    expected = stored


@dataclass(frozen=True, slots=True)
class NoBlocks(Sequence[NoBlock]):
    """Blocks that are nothing to do."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Any:
        return NoBlock(f"read+write nothing, z{number // 10_000} y{number // 100 % 100} x{number % 100}")


def volume_of_blocks(folder: Path, blocks: int) -> str:
    """Write the info of a volume, without data, that an export by chunks of 64 voxels cuts into so many blocks."""
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
    """Make an export of blocks of one chunk."""
    source = str(folder / "volume") if (folder / "volume").exists() else volume_of_blocks(folder / "volume", blocks)
    volume = ImageryClient(image_source=source.removeprefix("precomputed://file://")).image_volume()
    return ZarrExport(volume, folder / "out.zarr", chunks=(64, 64, 64), shards=None)


def plan(blocks: int) -> None:
    """Time and memory of a plan, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        export = export_of(Path(name), blocks)
        before = psutil.Process().memory_info().rss
        started = time.perf_counter()
        planned = export.plan(Room(2, 8 * 2**30), 64**3)
        text = json.dumps(planned.to_json())
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"\nplan: {planned.blocks:,} blocks in {seconds:.2f} s; process {peak / MIB:.0f} MiB at most, "
            f"{(peak - before) / MIB:.0f} MiB of it for the plan; {len(text) / 1e3:.0f} kB of JSON"
        )


def run(blocks: int) -> None:
    """Driver and scheduler time of blocks that are nothing to do, on two workers, and memory as it goes."""
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


def receipts(repeats: int) -> None:
    """Time an export with receipts, hashes and waiting for the disk, and without each of them."""
    image, labels = synthesize((512, 512, 256))
    for kind, data, options in (
        ("image, shards", image, {"shards": (256, 256, 128)}),
        ("image, chunks", image, {"shards": None}),
        ("labels, shards", labels, {"shards": (128, 128, 128)}),
        ("labels, chunks", labels, {"shards": None}),
    ):
        variants: dict[str, dict[str, Any]] = {
            "all": {},
            "no receipts": {"imagery_dask.run.block.receipt": lambda *_: b""},
            "no hashes": {"imagery_dask.export.zarr_level.digest_of": lambda _: b"0123456789abcdef"},
            "no waiting for the disk": {"imagery_dask.files._wait_for_disk": lambda _: None},
        }
        variants["none of them"] = {name: value for each in variants.values() for name, value in each.items()}
        times: dict[str, list[float]] = {name: [] for name in variants}
        with (
            LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            for _ in range(repeats + 1):
                for name, replaced in variants.items():
                    times[name].append(_timed(data, client, replaced, options))
        best = {name: min(values[1:]) for name, values in times.items()}
        shown = ", ".join(f"{name} {value:.3f} s" for name, value in best.items())
        print(f"\nreceipts, {kind}: {shown}; all costs {100 * (best['all'] / best['none of them'] - 1):.1f} %")


def _timed(data: Any, client: Client, replaced: dict[str, Any], options: dict[str, Any]) -> float:
    kept = {}
    for name, value in replaced.items():
        module, _, attribute = name.rpartition(".")
        kept[name] = getattr(importlib.import_module(module), attribute)
        setattr(importlib.import_module(module), attribute, value)
    folder = tempfile.mkdtemp()
    try:
        started = time.perf_counter()
        to_zarr(data, f"{folder}/out.zarr", cluster=client, progress=False, resolution_nm=(8, 8, 40), **options)
        return time.perf_counter() - started
    finally:
        shutil.rmtree(folder)
        for name, value in kept.items():
            module, _, attribute = name.rpartition(".")
            setattr(importlib.import_module(module), attribute, value)


def resume(blocks: int) -> None:
    """Time going on with an export of which nothing is left to do: the command, from its start to its end."""
    with tempfile.TemporaryDirectory() as name:
        export = export_of(Path(name), blocks)
        with open_session(export, overwrite=False) as session:
            session.begin(export.plan(Room(2, 8 * 2**30), 64**3))
            export.create(session.place, session, _NoClient())
            session.begun()
            assert session.plan is not None
            for number in range(session.plan.blocks):
                run_block(NoBlock("read+write image, x"), number, 1, session.records)
            blocks = session.plan.blocks
        execute(export_of(Path(name), blocks), Running(progress=False))  # says that it is complete
        started = time.perf_counter()
        report = execute(export_of(Path(name), blocks), Running(progress=False))
        seconds = time.perf_counter() - started
        assert report.before == report.blocks == blocks
        script = "from imagery_dask.cli import main; main()"
        command = [sys.executable, "-c", script, "status", str(Path(name) / "out.zarr")]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(
            f"\nresume: nothing left to do of {blocks:,} blocks: {seconds:.2f} s; "
            f"status, with Python's start: {time.perf_counter() - started:.2f} s"
        )


class _NoClient:
    """A cluster without workers, for an export that computes nothing."""

    def run(self, *_: Any) -> dict[str, Any]:
        """Ask nobody."""
        return {}


if __name__ == "__main__":
    options = arguments(
        __doc__, blocks=(int, BLOCKS, "blocks of the plans and runs"), only=(str, "plan,run,receipts,resume", "which")
    )
    chosen = options.only.split(",")
    if "plan" in chosen:
        plan(options.blocks)
    if "receipts" in chosen:
        receipts(options.repeats)
    if "resume" in chosen:
        resume(options.blocks)
    if "run" in chosen:
        run(options.blocks)
