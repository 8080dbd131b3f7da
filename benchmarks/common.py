"""Shared by the benchmarks: volumes to read, and the timing of runs that take turns with their peers."""

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


def arguments(description: str | None, **further: tuple[type, object, str]) -> argparse.Namespace:
    """Parse the options of all benchmarks, and further ones given as (type, default, help)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("benchmarks/results/data"), help="folder for test volumes")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each peer, which take turns")
    for name, (kind, default, text) in further.items():
        how = {"action": "store_true"} if kind is bool else {"type": kind, "default": default}
        parser.add_argument(f"--{name}", help=text, **how)  # type: ignore[arg-type]
    return parser.parse_args()


XYZ = tuple[int, int, int]


def em_volume(
    folder: Path, encoding: str, shape: XYZ = (1024, 1024, 256), offset: XYZ = OFFSET, compress: bool = True
) -> str:
    """Return the path of an EM-like image volume on disk with chunks of 64 x 64 x 64; write it if it does not exist.

    Without `compress` the chunks are not gzipped, so that other readers than CloudVolume can read them.
    """
    name = f"image-{encoding}-{'x'.join(map(str, shape))}" + ("" if offset == OFFSET else "-at-origin")
    return _write(folder / name, "image", encoding, shape, offset, compress)


def label_volume(folder: Path, shape: XYZ = (512, 512, 256), compress: bool = True) -> str:
    """Return the path of a segmentation on disk; write it if it does not exist."""
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
    """Return the seconds of each run. The runs take turns, so that slow moments of the machine affect all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # the first run includes imports, connections and new memory
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slower: Iterable[float], faster: Iterable[float]) -> float:
    """Return how many times faster the second is: the median over the turns."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def show(name: str, value: str, goal: str, met: bool) -> None:
    """Print a row of the table."""
    print(f"| {name} | {value} | {goal} | {'yes' if met else 'NO'} |", flush=True)


def header(title: str) -> None:
    """Print a title and the head of a table."""
    print(f"\n### {title}\n\n| what | measured | goal | met |\n|---|---|---|---|", flush=True)
