"""Exports by this package, in this process and on worker processes."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

from benchmarks.child import timed
from benchmarks.programs.reads import lazy
from imagery_dask import to_png, to_precomputed, to_zarr
from imagery_dask.config import config
from imagery_dask.export.planning.estimate import plan_export
from imagery_dask.export.registry import KINDS

XYZ = list[int]


def _written(write: Callable[..., Any], data: Any, out: Any, **options: Any) -> dict[str, Any]:
    report = write(data, out, progress=False, **options)
    if not report.ok or report.counts.missing:
        raise RuntimeError(f"the export is not complete: {report}")
    return {"counts": {"chunks read": report.counts.chunks}}


def zarr(
    source: str, kind: str, start: XYZ, stop: XYZ, out: str, chunk: int, shard: XYZ | None, levels: int, **options: Any
) -> dict[str, Any]:
    """Write OME-Zarr on two threads."""
    how = {"chunks": (chunk,) * 3, "shards": shard, "levels": levels, "workers": 2} | options
    return _written(to_zarr, lazy(source, kind, start, stop), out, **how)


def zarr_again(
    source: str, kind: str, start: XYZ, stop: XYZ, out: str, chunk: int, shard: XYZ | None, levels: int
) -> dict[str, Any]:
    """Write OME-Zarr from zarr on two threads, with ids as they are stored."""
    data = lazy(f"zarr3://{source}", kind, start, stop, convert_to_int64=False)
    return _written(to_zarr, data, out, chunks=(chunk,) * 3, shards=shard, levels=levels, workers=2)


def planned(
    source: str, kind: str, start: XYZ, stop: XYZ, out: str, chunk: int, shard: XYZ | None, levels: int,
    block_mib: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write OME-Zarr on as many threads as a plan asks for, which is not timed."""
    how = {"chunks": (chunk,) * 3, "shards": shard, "levels": levels}
    export = KINDS["zarr"](lazy(source, kind, start, stop), out, **how)
    plan = plan_export(export, block_mib=block_mib)
    result: dict[str, Any] = {}
    times = timed(lambda: result.update(_written(lambda data, url, **options: plan.run(**options), None, out)))
    return result | times | {"figures": {"threads": plan.adapted.threads}}


def precomputed(
    source: str,
    kind: str,
    start: XYZ,
    stop: XYZ,
    out: str,
    levels: int,
    copy: str = "never",
    encoding: str | None = None,
) -> dict[str, Any]:
    """Write a precomputed volume on two threads."""
    how = {"chunks": (64, 64, 64), "levels": levels, "workers": 2, "copy": copy, "encoding": encoding}
    return _written(to_precomputed, lazy(source, kind, start, stop), out, **how)


def copied_by_cp(source: str, kind: str, start: XYZ, stop: XYZ, out: str, **options: Any) -> None:
    """Copy the files of a volume."""
    subprocess.run(["cp", "-r", source.removeprefix("file://"), out], check=True)


def precomputed_small_chunks(
    source: str, kind: str, start: XYZ, stop: XYZ, out: str, levels: int, sharding: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write a precomputed volume of many chunks on two threads, and count its files."""
    data = lazy(source, kind, start, stop)
    how = {"chunks": (32, 32, 32), "levels": levels, "sharding": sharding, "workers": 2}
    counts = _written(to_precomputed, data, out, **how)["counts"]
    return {"counts": counts | {"files": sum(file.is_file() for file in Path(out).rglob("*"))}}


def precomputed_mips(source: str, kind: str, start: XYZ, stop: XYZ, out: str, levels: int) -> dict[str, Any]:
    """Write a precomputed volume; times are those of its mips above level 0, which is written again and subtracted."""
    result: dict[str, Any] = {}
    alone = timed(lambda: precomputed(source, kind, start, stop, f"{out}.level-0", 1))
    shutil.rmtree(f"{out}.level-0")
    times = timed(lambda: result.update(precomputed(source, kind, start, stop, out, levels)))
    return result | {name: times[name] - alone[name] for name in times}


def png(source: str, kind: str, start: XYZ, stop: XYZ, out: str) -> dict[str, Any]:
    """Write the slices of a region on two threads."""
    return _written(to_png, lazy(source, kind, start, stop), f"{out}/p", workers=2)


def png_plane(source: str, out: str, side: int, tile: int) -> dict[str, Any]:
    """Write one large plane, which is cheap to read, in tiles."""
    import dask.array as da

    size = min(2048, side)
    voxels = np.random.default_rng(0).integers(0, 256, (size, size, 1), dtype=np.uint8)
    chunks = ((size,) * (side // size), (size,) * (side // size), (1,))
    plane = da.map_blocks(lambda: voxels, chunks=chunks, dtype=np.uint8, meta=voxels[:0, :0, :0])
    with _workers(2) as client:
        return _on_workers(client, partial(_written, to_png, plane, f"{out}/p", tile=tile))


def cluster(
    source: str, kind: str, start: XYZ, stop: XYZ, out: str, chunk: int, shard: XYZ | None, levels: int,
    workers: int = 2, threads: int = 1, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write OME-Zarr on worker processes, whose start is not timed."""
    data = lazy(source, kind, start, stop)
    how = {"chunks": (chunk,) * 3, "shards": shard, "levels": levels} | options
    with _workers(workers, threads) as client:
        return _on_workers(client, partial(_written, to_zarr, data, out, **how))


def maximum(source: str, kind: str, start: XYZ, stop: XYZ) -> dict[str, Any]:
    """Compute the largest voxel of a cutout on two workers."""
    data = lazy(source, kind, start, stop)
    with _workers(2) as client:
        return _on_workers(client, lambda cluster: {"value": np.asarray(cluster.compute(data.max()).result())})


@contextmanager
def _workers(count: int, threads: int = 1) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=count, threads_per_worker=threads, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(count)
        yield client


def _on_workers(client: Client, run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Return what a run on a cluster returns, with its own times, without the start of the workers."""
    client.run(importlib.import_module, "imagery_dask.run")
    idle = max(client.run(_peak_mib).values())
    result: dict[str, Any] = {}
    times = timed(lambda: result.update(run(cluster=client)))
    blocks = (max(client.run(_peak_mib).values()) - idle) / (config.get("export.block_bytes") / 2**20)
    return result | times | {"figures": {"memory of a worker over idle, blocks": blocks}}


def _peak_mib() -> float:
    """Return the largest memory of this process so far; Linux counts here no memory of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
