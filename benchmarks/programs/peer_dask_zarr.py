"""dask and zarr, with CloudVolume as the reader."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr as zarr_python
from distributed import Client, LocalCluster
from zarr.codecs import BloscCodec, ZstdCodec

from benchmarks.child import timed
from benchmarks.programs.dask_volume import volume

CORES = 2
XYZ = list[int]


def zarr(
    source: str, kind: str, start: XYZ, stop: XYZ, out: str, chunk: int, shard: XYZ | None, levels: int, **options: Any
) -> None:
    """Store levels of means on threads, in one graph."""
    with dask.config.set(scheduler="threads", num_workers=CORES):
        dask.compute(_stored(source, kind, out, chunk, shard, levels))


def cluster(
    source: str, kind: str, start: XYZ, stop: XYZ, out: str, chunk: int, shard: XYZ | None, levels: int, **options: Any
) -> dict[str, Any]:
    """Store levels on two worker processes, whose start is not timed."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.run(__import__, "benchmarks.programs.dask_volume")
        return timed(lambda: dask.compute(_stored(source, kind, out, chunk, shard, levels)))


def _array(path: str, voxels: Any, kind: str, chunk: int, shard: XYZ | None) -> Any:
    codec = ZstdCodec(level=1) if kind == "labels" else BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
    return zarr_python.create_array(
        path, shape=voxels.shape, chunks=(chunk,) * 3, shards=shard and tuple(shard[::-1]), dtype=voxels.dtype,
        compressors=codec, fill_value=0,
    )  # fmt: skip


def _stored(source: str, kind: str, out: str, chunk: int, shard: XYZ | None, levels: int) -> list[Any]:
    level, stored = volume(source, chunk), []
    for number in range(levels):
        if number:
            level = da.coarsen(np.mean, level, {1: 2, 2: 2}).astype(level.dtype)
        blocks = level.rechunk(shard[::-1]) if shard else level.rechunk(chunk)
        stored.append(da.store(blocks, _array(f"{out}/{number}", level, kind, chunk, shard), lock=False, compute=False))
    return stored
