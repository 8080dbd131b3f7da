"""What the benchmarks share: volumes to read, and a way to time that pairs each run with its peer."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from cloudvolume import CloudVolume

from imagery_dask.testing.volume import synthesize

OFFSET = (4096, 2048, 512)


def arguments(description: str | None, **more: tuple[type, object, str]) -> argparse.Namespace:
    """Options that every benchmark has, and more of a type, with a default and a help text."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("benchmarks/results/data"), help="folder for test volumes")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turn with its peers")
    for name, (kind, default, text) in more.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    return parser.parse_args()


XYZ = tuple[int, int, int]


def em_volume(
    folder: Path, encoding: str, shape: XYZ = (1024, 1024, 256), offset: XYZ = OFFSET, compress: bool = True
) -> str:
    """Path of an EM-like image volume on disk, written once: 64 x 64 x 64 chunks, non-zero offset.

    Without `compress` chunks are files as they are, which others than CloudVolume read too.
    """
    name = f"image-{encoding}-{'x'.join(map(str, shape))}" + ("" if offset == OFFSET else "-at-origin")
    return _write(folder / name, "image", encoding, shape, offset, compress)


def label_volume(folder: Path, shape: XYZ = (512, 512, 256), compress: bool = True) -> str:
    """Path of a segmentation on disk, written once."""
    path = folder / f"labels-{'x'.join(map(str, shape))}"
    return _write(path, "segmentation", "compressed_segmentation", shape, OFFSET, compress)


def _write(path: Path, kind: str, encoding: str, shape: XYZ, offset: XYZ, compress: bool) -> str:
    path = path if compress else path.with_name(f"{path.name}-plain")
    if not (path / "info").exists():
        image, labels = synthesize((shape[0], shape[1], 64))
        tile = image if kind == "image" else np.kron(labels, np.ones((2, 2, 1), dtype=labels.dtype))
        data = np.tile(tile, (1, 1, -(-shape[2] // 64)))[: shape[0], : shape[1], : shape[2]]
        info = CloudVolume.create_new_info(
            1, kind, str(data.dtype), encoding, (8, 8, 40), offset, shape, chunk_size=(64, 64, 64)
        )
        volume = CloudVolume(
            f"file://{path.resolve()}", info=info, progress=False, compress=None if compress else False
        )
        volume[:] = np.asfortranarray(data)
        volume.commit_info()
    return f"precomputed://file://{path.resolve()}"


def in_turn(repeats: int, **runs: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each run; the runs take turns, so that a slow moment of the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # the first run pays for imports, connections and fresh memory
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slower: Iterable[float], faster: Iterable[float]) -> float:
    """Median, over the turns, of how many times faster the second is."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def show(name: str, value: str, goal: str, met: bool) -> None:
    """One line of a benchmark's table."""
    print(f"| {name} | {value} | {goal} | {'yes' if met else 'NO'} |", flush=True)


def header(title: str) -> None:
    """Table head."""
    print(f"\n### {title}\n\n| what | measured | goal | met |\n|---|---|---|---|", flush=True)
