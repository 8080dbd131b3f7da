"""Export of an image to zarr on two workers, compared with its peers and with a lower bound of the time.

    python benchmarks/bench_export.py

The lower bound ("floor") is half of the CPU time of decoding and encoding the same bytes in one plain loop.
"""

from __future__ import annotations

import importlib
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import zarr
from cloudvolume import Bbox, CloudVolume
from cloudvolume.dask import from_cloudvolume
from common import OFFSET, arguments, em_volume, header, ratio, show
from distributed import Client, LocalCluster
from imageryclient import ImageryClient as ReleasedClient
from zarr.codecs import BloscCodec

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.config import config
from imagery_dask.export.zarr.block_array import PIPELINE

SIZE = (1024, 1024, 256)
BOUNDS = [OFFSET, tuple(a + b for a, b in zip(OFFSET, SIZE, strict=True))]
CODEC = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")


def ours(path: str, out: Path, client: Client) -> None:
    """Export with this package."""
    report = to_zarr(ImageryClient(image_source=path).image_cutout(BOUNDS), out, cluster=client, progress=False)
    assert report.ok
    assert report.counts.missing == 0


def cloudvolume_dask(path: str, out: Path, client: Client) -> None:
    """Export with cloud-volume's dask array on the same cluster, with the same output chunks."""
    # It indexes from 0 and fails on a volume with an offset, so it reads a copy without offset.
    array = from_cloudvolume(path)
    with client.as_current():
        da.to_zarr(array.rechunk((128, 128, 128, 1)), str(out / "0"), zarr_format=3)


def imageryclient(path: str, out: Path) -> None:
    """Export with the released imageryclient and zarr, in one process."""
    client = ReleasedClient(image_source=path, segmentation=False)
    target = _array(out)
    for x in range(0, SIZE[0], 256):
        for y in range(0, SIZE[1], 256):
            lower = np.add(OFFSET, (x, y, 0))
            block = client.image_cutout([lower, lower + (256, 256, 256)])
            target[:, y : y + 256, x : x + 256] = block.T


def floor(path: str, out: Path) -> float:
    """Return half of the CPU seconds to decode and encode the same bytes."""
    source = CloudVolume(path, bounded=False, fill_missing=True, progress=False)
    with zarr.config.set({"codec_pipeline.path": PIPELINE, "threading.max_workers": 1}):
        target = _array(out)
    started = time.process_time()
    for x in range(0, SIZE[0], 256):
        for y in range(0, SIZE[1], 256):
            lower = np.add(OFFSET, (x, y, 0))
            block = source.download(Bbox(lower, lower + (256, 256, 256)))
            target[:, y : y + 256, x : x + 256] = block[..., 0].T
    return (time.process_time() - started) / 2


def _array(out: Path) -> Any:
    return zarr.create_array(
        str(out / "0"), shape=SIZE[::-1], chunks=(128, 128, 128), dtype="uint8", compressors=CODEC, fill_value=0
    )


class PeakMemory:
    """Largest resident memory of any worker, sampled during a run."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._workers = [psutil.Process(worker.pid) for worker in cluster.workers.values()]
        self.idle = max(process.memory_info().rss for process in self._workers)
        self.peak = self.idle
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, *(process.memory_info().rss for process in self._workers))


def timed(run: Any, *args: Any) -> float:
    """Return the seconds of a run that writes to a new folder."""
    folder = Path(tempfile.mkdtemp(dir=OPTIONS.data))
    try:
        started = time.perf_counter()
        own = run(args[0], folder / "out.zarr", *args[1:])
        return float(own) if own is not None else time.perf_counter() - started
    finally:
        shutil.rmtree(folder)


def bench(encoding: str, peers: bool) -> None:
    """Print the table for an encoding."""
    header(f"Export of {' x '.join(map(str, SIZE))} {encoding} on two workers")
    path = em_volume(OPTIONS.data, encoding)
    zero = em_volume(OPTIONS.data, encoding, offset=(0, 0, 0)) if peers else path
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster, Client(cluster) as client:  # fmt: skip
        client.run(importlib.import_module, "imagery_dask")  # measure idle memory after the imports
        runs: dict[str, list[float]] = {"ours": [], "floor": [], "dask": [], "released": []}
        with PeakMemory(cluster) as memory:
            timed(ours, path, client)
            for _ in range(OPTIONS.repeats):
                runs["ours"].append(timed(ours, path, client))
                runs["floor"].append(timed(floor, path))
                runs["released"].append(timed(imageryclient, path))
        if peers:
            runs["dask"].append(timed(cloudvolume_dask, zero, client))
    mb = np.prod(SIZE) / 1e6
    ours_s = statistics.median(runs["ours"])
    show("ours", f"{ours_s:.2f} s, {mb / ours_s:.0f} MB/s", "", True)
    of_floor = ratio(runs["floor"], runs["ours"])
    show("of the floor (decode + encode, two cores)", f"{of_floor:.2f}", ">= 0.8", of_floor >= 0.8)
    released = ratio(runs["released"], runs["ours"])
    show("times imageryclient + zarr, one process", f"{released:.1f}", ">= 1.5", released >= 1.5)
    if peers:
        dask_times = runs["dask"][0] / ours_s
        show("times cloudvolume.dask -> da.to_zarr, same cluster", f"{dask_times:.1f}", ">= 5", dask_times >= 5)
    blocks = (memory.peak - memory.idle) / config.get("export.block_bytes")
    show("peak memory of a worker over idle, in blocks", f"{blocks:.1f}", "<= 3", blocks <= 3)


if __name__ == "__main__":
    OPTIONS = arguments(__doc__)
    OPTIONS.data.mkdir(parents=True, exist_ok=True)
    for codec in ("jpeg", "raw"):  # both are in docs/benchmarks.md
        bench(codec, peers=True)
