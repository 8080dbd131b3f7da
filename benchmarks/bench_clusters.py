"""Scaling with the number of workers, for slow storage and for CPU-bound exports, and the overhead of the cluster.

    python benchmarks/bench_clusters.py [--only latency,threads,cpu,overhead] [--latency SECONDS]

Slow storage: raw imagery in chunks of 64 x 64 x 64, from a server that waits before each answer, is exported with 1, 2,
4 and 8 workers. The time includes opening the source, but not the start of the workers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
from common import OFFSET, arguments, em_volume, header, in_turn, label_volume, ratio, show
from distributed import Client, LocalCluster

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import connect
from imagery_dask.records.runs import runs_in
from imagery_dask.storage.atomic_files import Files

LATENCY_SIZE = (1024, 1024, 2048)
CPU_SIZE = (1024, 1024, 1024)
LABELS_SIZE = (512, 512, 1024)
WORKERS = (1, 2, 4, 8)
# Blocks of 64 storage chunks: two rounds of the 32 requests that a worker may have in flight.
BLOCK = {"chunks": (128, 128, 128), "shards": None, "block_mib": 16}


def main() -> None:
    """Run the chosen benchmarks."""
    options = arguments(
        __doc__,
        only=(str, "latency,threads,cpu,overhead", "benchmarks to run"),
        latency=(float, 1.0, "seconds of a request"),
    )
    for name in options.only.split(","):
        {"latency": latency, "threads": threads, "cpu": cpu, "overhead": overhead}[name](options)


@contextmanager
def workers(count: int, threads_each: int = 1) -> Iterator[Client]:
    """Start a cluster and yield a client when its workers are connected."""
    cluster = LocalCluster(
        n_workers=count, threads_per_worker=threads_each, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(count)
        yield client


@contextmanager
def slow(folder: Path, seconds: float) -> Iterator[str]:
    """Run a server that waits for some seconds before each answer."""
    command = [sys.executable, str(Path(__file__).with_name("slow_server.py")), str(folder), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def exported(path: str, size: Sequence[int], client: Any, **options: Any) -> tuple[float, Any, float]:
    """Run an export; return its seconds, its report, and the mean seconds of a block from the receipts."""
    bounds = [OFFSET, np.add(OFFSET, size)]
    kind = "segmentation" if "labels" in path else "image"
    source = ImageryClient(**{f"{kind}_source": path})
    data = source.image_cutout(bounds) if kind == "image" else source.segmentation_cutout(bounds)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.zarr"
        started = time.perf_counter()
        report = to_zarr(data, out, cluster=client, progress=False, **{**BLOCK, **options})
        seconds = time.perf_counter() - started
        assert report.ok
        assert report.counts.missing == 0
        (run,) = runs_in(Files.at(f"{out}.receipts"))
        return seconds, report, float(np.mean(run.records.receipts()["seconds"]))


def latency(options: Any) -> None:
    """Export from a slow server with 1, 2, 4 and 8 workers."""
    header(f"A server that waits {options.latency:g} s, raw imagery of {' x '.join(map(str, LATENCY_SIZE))}")
    path = em_volume(options.data, "raw", LATENCY_SIZE, compress=False)
    folder = Path(path.removeprefix("precomputed://file://"))
    alone = 0.0
    with slow(folder.parent, options.latency) as url:
        for count in WORKERS:
            with workers(count) as client:
                urlopen(f"{url}/in-flight").read()
                before = psutil.cpu_times()
                seconds, report, _ = exported(f"precomputed://{url}/{folder.name}", LATENCY_SIZE, client)
                after = psutil.cpu_times()
                in_flight = json.loads(urlopen(f"{url}/in-flight").read())
            alone = alone or seconds
            busy = (after.user + after.system - before.user - before.system) / seconds / psutil.cpu_count()
            linear = alone / seconds / count
            text = f"{seconds:.1f} s, {linear:.2f} of linear; {in_flight['mean']:.0f} requests in flight (at most "
            text += f"{in_flight['most']}), {busy:.0%} of the CPU; {report.blocks} blocks"
            show(f"{count} workers", text, ">= 0.9 of linear, at 8 under half of the CPU", linear >= 0.9)
            if count == 1:
                show("a worker's requests in flight", f"{in_flight['most']}", ">= 32", in_flight["most"] >= 32)


def threads(options: Any) -> None:
    """Compare threads with processes, for slow storage and for a local disk."""
    header("Threads or processes: MB/s of voxels")
    raw = em_volume(options.data, "raw", CPU_SIZE, compress=False)
    jpeg = em_volume(options.data, "jpeg", CPU_SIZE)
    folder = Path(raw.removeprefix("precomputed://file://"))
    with slow(folder.parent, options.latency / 4) as url:
        for name, path in (("waits", f"precomputed://{url}/{folder.name}"), ("jpeg", jpeg)):
            for count, threads_each in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)):
                with workers(count, threads_each) as client:
                    exported(path, (128, 128, 128), client)
                    seconds, report, _ = exported(path, CPU_SIZE, client)
                speed = report.written_bytes / 1e6 / seconds
                show(f"{name}: {count} processes of {threads_each} threads", f"{speed:.0f} MB/s", "", met=True)


class Apart:
    """Two processes, each with a cluster of one worker: the limit that the machine's cores set for two workers."""

    client: Client
    stack = ExitStack()

    def __init__(self) -> None:
        self._pools = [ProcessPoolExecutor(1, get_context("spawn"), Apart._start) for _ in range(2)]

    @classmethod
    def _start(cls) -> None:
        cls.client = cls.stack.enter_context(workers(1))

    @classmethod
    def _stop(cls) -> None:
        cls.stack.close()

    @classmethod
    def _export(cls, path: str, size: Sequence[int], options: dict[str, Any]) -> None:
        exported(path, size, cls.client, **options)

    def both(self, path: str, size: Sequence[int], options: dict[str, Any]) -> None:
        """Export twice at the same time."""
        for future in [pool.submit(Apart._export, path, size, options) for pool in self._pools]:
            future.result()

    def close(self) -> None:
        """End both processes."""
        for pool in self._pools:
            pool.submit(Apart._stop)
            pool.shutdown()


def cpu(options: Any) -> None:
    """Compare two worker processes with one, if decoding and encoding limit the rate."""
    header("Two worker processes, times the speed of one")
    sources = {
        "jpeg": (em_volume(options.data, "jpeg", CPU_SIZE), CPU_SIZE, {}),
        "raw (gzip)": (em_volume(options.data, "raw", CPU_SIZE), CPU_SIZE, {}),
        "compressed_segmentation": (label_volume(options.data, LABELS_SIZE), LABELS_SIZE, {"chunks": (64, 64, 64)}),
    }
    with closing(Apart()) as apart, workers(1) as one, workers(2) as two:
        for name, (path, size, options) in sources.items():
            seconds = in_turn(
                options.repeats,
                one=lambda path=path, size=size, options=options: exported(path, size, one, **options),
                two=lambda path=path, size=size, options=options: exported(path, size, two, **options),
                apart=lambda path=path, size=size, options=options: apart.both(path, size, options),
            )
            times, most = ratio(seconds["one"], seconds["two"]), 2 * ratio(seconds["one"], seconds["apart"])
            shown = ", ".join(f"{min(times_of_run):.2f} s" for times_of_run in seconds.values())
            text = f"{times:.2f} times ({shown}); two exports that share nothing: {most:.2f}"
            show(name, text, ">= 1.7", times >= 1.7)


def overhead(options: Any) -> None:
    """Measure the time of a small export that is not spent in blocks."""
    header("An export of 128 blocks, cluster='local'")
    path = em_volume(options.data, "raw", CPU_SIZE)
    spent = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        with connect("local", workers=2) as client:
            client.wait_for_workers(2)
            up = time.perf_counter() - started
            seconds, report, block_s = exported(path, CPU_SIZE, client, block_mib=2)
        down = time.perf_counter() - started - up - seconds
        blocks = block_s * report.blocks / 2
        spent.append(seconds - blocks + down)
        text = f"start {up:.2f} s, export {seconds:.2f} s (blocks {blocks:.2f} s: {report.blocks}), end {down:.2f} s"
        show("export", text, "", met=True)
    show("beyond the workers' start and the blocks", f"{min(spent):.2f} s", "< 3 s", min(spent) < 3)


if __name__ == "__main__":
    main()
