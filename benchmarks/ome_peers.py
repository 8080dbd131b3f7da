"""Peers of `bench_ome.py`. Each runs in its own environment, since their dependencies conflict.

A peer stays alive, like our workers, so that imports are not timed: it reads one job per line and prints its seconds.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CORES = 2


def tensorstore(source: str, out: str, chunk: int, shard: list[int]) -> None:
    """Copy a precomputed volume to a sharded zarr array (z, y, x), two shards at a time, each written once."""
    import tensorstore as ts

    context = ts.Context({"data_copy_concurrency": {"limit": CORES}})
    volume = ts.open({"driver": "neuroglancer_precomputed", "kvstore": _folder(source)}, context=context).result()
    volume = volume[ts.d["channel"][0]].T[ts.d[:].translate_to[0]]
    size = volume.dtype.numpy_dtype.itemsize
    blosc = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": size, "blocksize": 2**18}
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "blosc", "configuration": blosc}]
    sharding = {"chunk_shape": [chunk] * 3, "codecs": inner}
    metadata = {
        "shape": list(volume.shape),
        "data_type": volume.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "fill_value": 0,
    }
    spec = {"driver": "zarr3", "kvstore": _folder(f"{out}/0"), "metadata": metadata}
    array = ts.open(spec, context=context, create=True).result()
    starts = itertools.product(*(range(0, n, s) for n, s in zip(volume.shape, shard, strict=True)))
    boxes = [tuple(slice(a, min(a + s, n)) for a, s, n in zip(at, shard, volume.shape, strict=True)) for at in starts]

    def copy(box: tuple[slice, ...]) -> None:
        with ts.Transaction() as transaction:  # without it, a shard is written again for each of its chunks
            array.with_transaction(transaction)[box].write(volume[box]).result()

    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(copy, boxes))


def ngff(source: str, out: str, chunk: int, shard: list[int], labels: bool) -> None:
    """Write three levels with ngff-zarr on dask's threads, from a memory-mapped file, which needs no decoding."""
    import dask
    import dask.array as da
    import numpy as np
    from ngff_zarr import Methods, to_multiscales, to_ngff_image, to_ngff_zarr
    from numcodecs import Blosc

    data = da.from_array(np.load(f"{source}.npy", mmap_mode="r"), chunks=tuple(shard))
    image = to_ngff_image(data, dims=["z", "y", "x"], scale={"z": 40.0, "y": 8.0, "x": 8.0})
    method = Methods.DASK_IMAGE_MODE if labels else Methods.DASK_BIN_SHRINK
    factors = [{"z": 1, "y": 2, "x": 2}, {"z": 1, "y": 4, "x": 4}]
    per_shard = {axis: s // chunk for axis, s in zip("zyx", shard, strict=True)}
    codec = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE)
    with dask.config.set(scheduler="threads", num_workers=CORES):
        levels = to_multiscales(image, factors, method=method, chunks=chunk, cache=False)
        to_ngff_zarr(out, levels, version="0.5", chunks_per_shard=per_shard, compressors=codec)


def igneous(source: str, out: str, chunk: int, copy: bool) -> None:
    """Write two mips of a precomputed volume, with level 0 (a transfer) or without it."""
    import igneous.task_creation as tc
    from taskqueue import LocalTaskQueue

    origin, target = f"file://{source}", f"file://{out}"
    if copy:
        options = {"chunk_size": (chunk,) * 3, "shape": (512, 512, 128), "max_mips": 2, "compress": False}
        tasks = tc.create_transfer_tasks(origin, target, no_src_update=True, **options)
    else:
        # igneous writes beside the level that it reads, so link that level into a new folder.
        info = json.loads(Path(source, "info").read_text())
        level = info["scales"][0]["key"]
        Path(out).mkdir()
        Path(out, level).symlink_to(Path(source, level))
        Path(out, "info").write_text(json.dumps(info))
        tasks = tc.create_downsampling_tasks(target, num_mips=2, compress=False)
    queue = LocalTaskQueue(parallel=CORES, progress=False)
    queue.insert(tasks)
    queue.execute()


def _folder(path: str) -> dict[str, str]:
    return {"driver": "file", "path": f"{path}/"}


JOBS: dict[str, Callable[..., Any]] = {"tensorstore": tensorstore, "ngff": ngff, "igneous": igneous}

if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # peers print their progress
    for line in sys.stdin:
        job = json.loads(line)
        Path(job["options"]["out"]).parent.mkdir(parents=True, exist_ok=True)
        started, cpu = time.perf_counter(), time.process_time()
        JOBS[job["name"]](**job["options"])
        print(json.dumps([time.perf_counter() - started, time.process_time() - cpu]), file=answers, flush=True)
