"""OME-Zarr with shards and pyramids, and slices as PNG, on two workers, compared with other programs.

    python benchmarks/bench_ome.py --peers benchmarks/results/peers

Every peer has its own environment in that folder, which is created if it does not exist. Peers and workers stay alive
between runs, so that imports are not timed; each run writes to a new folder. CPU time is that of the working processes;
it is more reliable than wall time on a busy machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import zarr
from bench_export import PeakMemory
from cloudvolume import CloudVolume
from common import OFFSET, XYZ, em_volume, header, label_volume, ratio, show
from distributed import Client, LocalCluster
from imageryclient import ImageryClient as ReleasedClient
from PIL import Image

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.config import config

IMAGE: XYZ = (1024, 1024, 256)
LABELS: XYZ = (512, 512, 256)
PLANES: XYZ = (1024, 1024, 128)
LARGE = 32_768
# The shards of a large volume with shards="auto": 32 MiB, wide along the axes that the next level halves.
SHARDS = {"image": (512, 512, 128), "labels": (256, 256, 64)}
CHUNK = {"image": 128, "labels": 64}
PEERS = {
    "tensorstore": ["tensorstore>=0.1.80,<0.2", "numpy>=2.1,<3"],
    "ngff": ["ngff-zarr>=0.50,<0.51", "dask[array]>=2026.1", "dask-image>=2025.11", "numpy>=2.1,<3"],
    "igneous": ["igneous-pipeline>=4.37,<5", "numpy>=2.1,<3"],
}

# The environment before dask changes it: with its MALLOC_TRIM_THRESHOLD_, which our workers override, tensorstore takes
# twice the CPU time, and with its OMP_NUM_THREADS peers would have one thread.
ENVIRONMENT = dict(os.environ)

Times = tuple[float, float]


class Peer:
    """A process of another environment that runs jobs one after another."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        environment = folder / f"peer-{name}"
        python = environment / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[name]], check=True)
        self._log = (folder / f"{name}.log").open("w")
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("ome_peers.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=ENVIRONMENT,
        )  # fmt: skip

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()
        self._log.close()

    def __call__(self, out: Path, **options: Any) -> Times:
        """Run a job; return its seconds, and the CPU seconds of the process without its children."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"name": self.name, "options": options | {"out": str(out.resolve())}}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} failed; see {self._log.name}.")
        seconds, cpu = json.loads(answer)
        return seconds, cpu


class Workers:
    """Two worker processes of one thread each, which have imported the package."""

    def __init__(self) -> None:
        self.cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")
        self.client = Client(self.cluster)
        self.client.run(importlib.import_module, "imagery_dask")
        self._processes = [psutil.Process(worker.pid) for worker in self.cluster.workers.values()]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.cluster.close()

    def __call__(self, write: Callable[..., Any], data: Any, out: Path, **options: Any) -> Times:
        """Run an export; return its seconds, and the CPU seconds of the workers."""
        before = self._cpu()
        started = time.perf_counter()
        report = write(data, out, cluster=self.client, progress=False, **options)
        seconds = time.perf_counter() - started
        assert report.ok
        assert report.counts.missing == 0
        return seconds, self._cpu() - before

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


def in_turn(repeats: int, check: Callable[[dict[str, Path]], None], **runs: Callable[[Path], Times]) -> dict[str, Any]:
    """Return seconds and CPU seconds of runs that take turns; check the outputs of an untimed first turn."""
    times_of: dict[str, list[Times]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        folder = Path(tempfile.mkdtemp(dir=OPTIONS.data))
        try:
            for name, run in runs.items():
                times = run(folder / name)
                if turn:
                    times_of[name].append(times)
            if not turn:
                check({name: folder / name for name in runs})
        finally:
            shutil.rmtree(folder)
    return times_of


def compare(times_of: dict[str, list[Times]], peer: str, what: str, goal: float = 1.0, known: bool = True) -> None:
    """Print a row: how many times faster ours is than a peer."""
    ours, theirs = times_of["ours"], times_of[peer]
    times = ratio([t for t, _ in theirs], [t for t, _ in ours])
    seconds = [statistics.median(t for t, _ in runs) for runs in (ours, theirs)]
    cpu = [statistics.median(t for _, t in runs) for runs in (ours, theirs)]
    spread = f"{times:.2f} ({seconds[0]:.2f} s, {seconds[1]:.2f} s"
    if known:
        spread += f"; CPU {cpu[0]:.2f} s, {cpu[1]:.2f} s"
    show(f"times {what}", spread + ")", f">= {goal:g}", times >= goal)


def cutout(kind: str, path: str, size: XYZ) -> Any:
    """Return the lazy array to export."""
    bounds = [OFFSET, tuple(a + b for a, b in zip(OFFSET, size, strict=True))]
    if kind == "labels":
        return ImageryClient(segmentation_source=path).segmentation_cutout(bounds)
    return ImageryClient(image_source=path).image_cutout(bounds)


def files_of(path: str) -> Path:
    """Return the folder of a precomputed volume."""
    return Path(path.removeprefix("precomputed://file://"))


# --------------------------------------------------------------------------- comparisons


def copies(workers: Workers, kind: str, path: str, size: XYZ) -> None:
    """Compare sharded level 0 with tensorstore."""
    shard, chunk = SHARDS[kind], CHUNK[kind]
    data = cutout(kind, path, size)

    def check(outs: dict[str, Path]) -> None:
        same("level 0 equals tensorstore's", array(outs["ours"], "0"), array(outs["tensorstore"], "0"))

    with Peer("tensorstore", OPTIONS.peers) as peer:
        times_of = in_turn(
            OPTIONS.repeats,
            check,
            ours=lambda out: workers(to_zarr, data, out, shards=shard),
            tensorstore=lambda out: peer(out, source=str(files_of(path)), chunk=chunk, shard=shard[::-1]),
        )
    compare(times_of, "tensorstore", "tensorstore, two threads")


def pyramids(workers: Workers, kind: str, path: str, size: XYZ) -> None:
    """Compare three levels with ngff-zarr (sharded OME-Zarr) and igneous (precomputed: mips 1 and 2, and all)."""
    shard, chunk, folder = SHARDS[kind], CHUNK[kind], files_of(path)
    data = cutout(kind, path, size)
    plain = folder.with_suffix(".npy")
    if not plain.exists():
        np.save(plain, np.ascontiguousarray(CloudVolume(path, progress=False)[:][..., 0].T))
    options = {"source": str(folder), "chunk": chunk}

    def check_zarr(outs: dict[str, Path]) -> None:
        for level in range(3):
            same(
                f"level {level} equals ngff-zarr's", array(outs["ours"], str(level)),
                array(outs["ngff"], f"scale{level}/image"), needed=level == 0,
            )  # fmt: skip

    with Peer("ngff", OPTIONS.peers) as peer:
        times_of = in_turn(
            OPTIONS.repeats,
            check_zarr,
            ours=lambda out: workers(to_zarr, data, out, shards=shard, levels=3),
            ngff=lambda out: peer(out, shard=shard[::-1], labels=kind == "labels", **options),
        )
    compare(times_of, "ngff", "ngff-zarr, from a mapped .npy, two threads")

    def check_precomputed(outs: dict[str, Path]) -> None:
        volumes = {n: [CloudVolume(f"file://{o}", mip=m, progress=False) for m in range(3)] for n, o in outs.items()}
        for level in range(3):
            ours = volumes["ours"][level][:]
            same(f"mip {level} equals igneous's", ours, volumes["transfer"][level][:], needed=level == 0)
            if level:
                same(f"mip {level} equals igneous's", ours, volumes["mips"][level][:], needed=False)

    with Peer("igneous", OPTIONS.peers) as peer:
        times_of = in_turn(
            OPTIONS.repeats,
            check_precomputed,
            ours=lambda out: workers(to_precomputed, data, out, chunks=(64, 64, 64), levels=3),
            transfer=lambda out: peer(out, copy=True, **(options | {"chunk": 64})),
            mips=lambda out: peer(out, copy=False, **options),
        )
    compare(times_of, "transfer", "igneous, transfer with 2 mips, two processes", known=False)
    compare(times_of, "mips", "igneous, 2 mips alone: it writes a third of the bytes", known=False)


def slices(workers: Workers, path: str) -> None:
    """Compare PNG files of slices with imageryclient."""
    data = cutout("image", path, PLANES)
    bounds = [OFFSET, tuple(a + b for a, b in zip(OFFSET, PLANES, strict=True))]
    released = ReleasedClient(image_source=path, segmentation=False)

    def ours(out: Path) -> Times:
        def write(*args: Any, **kwargs: Any) -> Any:
            report = to_png(*args, **kwargs)
            reads.append(report.counts.chunks / math.prod(n // 64 for n in PLANES))
            return report

        return workers(write, data, out / "p")

    def theirs(out: Path) -> Times:
        out.mkdir()
        before, cpu = time.perf_counter(), time.process_time()
        released.save_imagery(str(out / "p"), bounds)
        return time.perf_counter() - before, time.process_time() - cpu

    def check(outs: dict[str, Path]) -> None:
        ours, theirs = (np.asarray(Image.open(out / f"p_slice_{PLANES[2] // 2}_imagery.png")) for out in outs.values())
        same("a slice equals the release's first channel", ours, theirs[..., 0])
        sizes = [sum(file.stat().st_size for file in out.rglob("*.png")) / 1e6 for out in outs.values()]
        show("MB of files, and of the release's (RGB)", f"{sizes[0]:.0f}, {sizes[1]:.0f}", "", True)

    reads: list[float] = []
    times_of = in_turn(OPTIONS.repeats, check, ours=ours, released=theirs)
    compare(times_of, "released", f"imageryclient.save_imagery of {PLANES[2]} slices", goal=3.0)
    show("reads of a storage chunk", f"{max(reads):.2f}", "1", max(reads) == 1)


def memory(workers: Workers, what: str, run: Callable[[Path], object]) -> None:
    """Print a row: the largest memory of a worker above that of an idle one, in blocks."""
    folder = Path(tempfile.mkdtemp(dir=OPTIONS.data))
    try:
        with PeakMemory(workers.cluster) as meter:
            run(folder / "out")
    finally:
        shutil.rmtree(folder)
    blocks = (meter.peak - meter.idle) / config.get("export.block_bytes")
    show(f"peak memory of a worker over idle, in blocks of 32 MiB: {what}", f"{blocks:.1f}", "<= 3", blocks <= 3)


def large_planes() -> da.Array:
    """Return a lazy plane of 32,768 x 32,768 that is cheap to read: one tile, repeated."""
    tile = np.random.default_rng(0).integers(0, 256, (2048, 2048, 1), dtype=np.uint8)
    blocks = (LARGE // 2048, LARGE // 2048, 1)
    return da.map_blocks(lambda: tile, chunks=tuple((s,) * n for s, n in zip(tile.shape, blocks, strict=True)),
                         dtype=np.uint8, meta=tile[:0, :0, :0])  # fmt: skip


# --------------------------------------------------------------------------- checks


def array(out: Path, path: str) -> Any:
    """Read an array that a run wrote."""
    return np.asarray(zarr.open_array(str(out), path=path, mode="r")[:])


def same(what: str, ours: Any, theirs: Any, needed: bool = True) -> None:
    """Print a row: whether two arrays are equal, and how much they differ."""
    fits = ours.shape == theirs.shape
    equal = fits and bool((ours == theirs).all())
    apart = "" if fits else f", {theirs.shape}"
    if fits and not equal:
        unlike = ours != theirs
        most = np.abs(ours[unlike].astype(np.float64) - theirs[unlike]).max()
        apart = f", {unlike.mean():.2%} of voxels differ" + (
            f" by up to {most:.0f}" if ours.dtype.itemsize == 1 else ""
        )
    show(what, ("yes" if equal else "no") + apart, "yes" if needed else "", equal or not needed)


def arguments(known: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("benchmarks/results/data"), help="folder for test volumes")
    parser.add_argument("--peers", type=Path, default=Path("benchmarks/results/peers"), help="folder for environments")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each peer, which take turns")
    parser.add_argument("--only", choices=("copies", "pyramids", "slices", "memory"), help="one part")
    return parser.parse_args(known)


def main() -> None:
    """Print all tables."""
    sources = {
        "raw": ("image", em_volume(OPTIONS.data, "raw", IMAGE, compress=False), IMAGE),
        "jpeg": ("image", em_volume(OPTIONS.data, "jpeg", IMAGE, compress=False), IMAGE),
        "compressed_segmentation": ("labels", label_volume(OPTIONS.data, LABELS, compress=False), LABELS),
    }
    with Workers() as workers:
        for encoding, (kind, path, size) in sources.items():
            shape = " x ".join(map(str, size))
            if OPTIONS.only in (None, "copies"):
                header(f"Shards: {shape} {encoding} on two workers")
                copies(workers, kind, path, size)
            if OPTIONS.only in (None, "pyramids") and encoding != "jpeg":
                header(f"Three levels: {shape} {encoding} on two workers")
                pyramids(workers, kind, path, size)
        if OPTIONS.only in (None, "slices"):
            header("PNG slices of raw imagery on two workers")
            slices(workers, sources["raw"][1])
    if OPTIONS.only not in (None, "memory"):
        return
    header("Memory")
    for encoding, (kind, path, size) in sources.items():
        data, shard = cutout(kind, path, size), SHARDS[kind]
        with Workers() as workers:
            run = partial(workers, to_zarr, data, shards=shard, levels=3)
            memory(workers, f"{encoding}, 3 levels", run)
    with Workers() as workers:
        planes, options = large_planes(), {"tile": 4096, "cluster": workers.client, "progress": False}
        memory(workers, "PNG tiles of a plane", lambda out: to_png(planes, out / "p", **options))


if __name__ == "__main__":
    OPTIONS = arguments()
    for folder in (OPTIONS.data, OPTIONS.peers):
        folder.mkdir(parents=True, exist_ok=True)
    main()
