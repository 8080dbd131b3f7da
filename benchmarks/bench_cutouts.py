"""Lazy cutouts, compared with `CloudVolume.download`.

python benchmarks/bench_cutouts.py
"""

from __future__ import annotations

import json
import pickle
import statistics
import time
from pathlib import Path

import dask
import numpy as np
from cloudvolume import Bbox, CloudVolume
from common import OFFSET, arguments, em_volume, header, in_turn, label_volume, ratio, show
from distributed import Client, LocalCluster

from imagery_dask import ImageryClient
from imagery_dask.sources import collect_counts, open_volume


def huge(folder: Path) -> str:
    """Write a volume of 10**9 storage chunks, of which only those of a small region exist; return its path."""
    path = folder / "huge"
    info = CloudVolume.create_new_info(
        1, "image", "uint8", "raw", (4, 4, 40), (0, 0, 0), (64000, 64000, 64000), chunk_size=(64, 64, 64)
    )
    volume = CloudVolume(f"file://{path.resolve()}", info=info, progress=False)
    if not (path / "info").exists():
        volume[0:1024, 0:1024, 0:64] = np.random.default_rng(0).integers(1, 255, (1024, 1024, 64), dtype=np.uint8)
        volume.commit_info()
    assert json.loads((path / "info").read_text())["scales"][0]["size"] == [64000] * 3
    return f"precomputed://file://{path.resolve()}"


def bench_opening(folder: Path, repeats: int) -> None:
    """Measure opening a layer of 10**9 storage chunks, and reading one plane of it."""
    header("Opening a layer of 10^9 storage chunks")
    path = huge(folder)
    open_volume(path)
    client = ImageryClient(image_source=path)
    opened = []
    for _ in range(max(5, repeats)):
        started = time.perf_counter()
        layer = client.image_volume()
        opened.append(1e3 * (time.perf_counter() - started))
    show("open as an array", f"{statistics.median(opened):.1f} ms", "< 50 ms", statistics.median(opened) < 50)
    size = len(pickle.dumps(layer.data.__dask_graph__()))
    show("pickled graph", f"{size:,} bytes", "< 20,000", size < 20_000)
    cloudvolume = CloudVolume(path, bounded=False, fill_missing=True, progress=False)
    with dask.config.set(scheduler="synchronous"), collect_counts() as counts:
        plane = layer.data[200:712, 100:612, 5].compute()
    show("storage chunks read for a 512 x 512 plane", str(counts.chunks), "81 (it crosses 9 x 9)", counts.chunks == 81)
    assert (plane == cloudvolume[200:712, 100:612, 5][..., 0, 0]).all()
    seconds = in_turn(
        max(7, repeats),
        ours=lambda: layer.data[200:712, 100:612, 5].compute(),
        theirs=lambda: cloudvolume[200:712, 100:612, 5],
    )
    extra = 1e3 * statistics.median(a - b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
    show("512 x 512 plane, beyond CloudVolume.download", f"{extra:+.1f} ms", "< 50 ms", extra < 50)


def bench_cutouts(folder: Path, repeats: int) -> None:
    """Measure the throughput of a cutout on threads and on two processes."""
    header("Cutouts, times the speed of CloudVolume.download of the same box")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        for name, path, size in (
            ("jpeg image", em_volume(folder, "jpeg"), (1024, 1024, 256)),
            ("raw (gzip) image", em_volume(folder, "raw"), (1024, 1024, 256)),
            ("compressed_segmentation", label_volume(folder), (512, 512, 256)),
        ):
            bounds = [OFFSET, [a + b for a, b in zip(OFFSET, size, strict=True)]]
            _bench_cutout(name, path, bounds, cluster, repeats)


def _bench_cutout(name: str, path: str, bounds: list, cluster: LocalCluster, repeats: int) -> None:
    kind = "segmentation" if "labels" in path else "image"
    client = ImageryClient(**{f"{kind}_source": path})
    cut = client.image_cutout if kind == "image" else client.segmentation_cutout
    cloudvolume = CloudVolume(path, bounded=False, fill_missing=True, progress=False)
    box = Bbox(*bounds)
    array = cut(bounds)
    with Client(cluster, set_as_default=False) as workers:

        def on_workers() -> object:
            return workers.compute(array.max()).result()

        assert on_workers() == cloudvolume.download(box).max()
        assert (array.compute(scheduler="threads") == cloudvolume.download(box)[..., 0]).all()
        seconds = in_turn(
            repeats,
            cloudvolume=lambda: cloudvolume.download(box),
            threads=lambda: array.compute(scheduler="threads"),
            cloudvolume_max=lambda: cloudvolume.download(box).max(),
            workers=on_workers,
            gathered=lambda: workers.gather(workers.compute(array)),
        )
    threads, processes = (
        ratio(seconds["cloudvolume"], seconds["threads"]), ratio(seconds["cloudvolume_max"], seconds["workers"])
    )  # fmt: skip
    show(f"{name}, threads", f"{threads:.2f}", ">= 0.9", threads >= 0.9)
    show(f"{name}, two workers (maximum of the voxels)", f"{processes:.2f}", ">= 1.6", processes >= 1.6)
    gathered = ratio(seconds["cloudvolume"], seconds["gathered"])
    show(f"{name}, two workers, sent to the client and joined there", f"{gathered:.2f}", "", True)


if __name__ == "__main__":
    options = arguments(__doc__)
    options.data.mkdir(parents=True, exist_ok=True)
    bench_opening(options.data, options.repeats)
    bench_cutouts(options.data, options.repeats)
