"""tensorstore."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import tensorstore as ts

KEPT = 256 * 2**20
CORES = 2


def _open(source: str, kept: int = 0) -> Any:
    scheme, _, path = source.partition("://")
    place = {"driver": "file", "path": f"{path}/"} if scheme == "file" else {"driver": "http", "base_url": f"{source}/"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": place, "scale_index": 0}
    context = ts.Context({"cache_pool": {"total_bytes_limit": kept}, "data_copy_concurrency": {"limit": CORES}})
    volume = ts.open(spec, context=context, recheck_cached_data="open").result()
    return volume[ts.d["channel"][0]]


def cutout(source: str, kind: str, start: list[int], stop: list[int]) -> Any:
    """Read a box."""
    return _open(source)[tuple(map(slice, start, stop))].read(order="F").result()


def store(source: str, kind: str, start: list[int], stop: list[int]) -> Any:
    """Read a box of the first array of an image of OME-Zarr, whose first voxel is at the box's corner."""
    place = {"driver": "file", "path": source.removeprefix("file://") + "/0/"}
    if not source.startswith("file:"):
        place = {"driver": "http", "base_url": f"{source}/0/"}
    return (
        _open_zarr(place)[tuple(slice(0, b - a) for a, b in zip(start[::-1], stop[::-1], strict=True))]
        .read()
        .result()
        .T
    )


def _open_zarr(place: dict[str, str]) -> Any:
    context = ts.Context({"data_copy_concurrency": {"limit": CORES}})
    return ts.open({"driver": "zarr3", "kvstore": place}, context=context).result()


def zarr_again(source: str, kind: str, start: list[int], stop: list[int], out: str, **options: Any) -> None:
    """Copy the first array of an image of OME-Zarr to an array of the same chunks and shards."""
    place = {"driver": "file", "path": source.removeprefix("file://") + "/0/"}
    _write(_open_zarr(place), kind, out, **options)


def browse(source: str, start: list[int], side: int, positions: list[list[int]]) -> Any:
    """Look at planes; a cache pool keeps chunks."""
    volume = _open(source, KEPT)
    a, b, c = start
    return np.stack([volume[a + x : a + x + side, b : b + side, c + z].read().result() for x, z in positions])


def petabyte(source: str, kind: str, start: list[int], stop: list[int]) -> dict[str, Any]:
    """Open a volume and read one plane."""
    started = time.perf_counter()
    volume = _open(source)
    opened = 1e3 * (time.perf_counter() - started)
    return {"value": volume[tuple(map(slice, start, stop))].read().result(), "figures": {"ms to open": opened}}


def zarr(source: str, kind: str, start: list[int], stop: list[int], out: str, **options: Any) -> None:
    """Copy a volume to zarr arrays (z, y, x), some shards or blocks at a time, each written once."""
    _write(_open(source).T[ts.d[:].translate_to[0]], kind, out, **options)


def _write(volume: Any, kind: str, out: str, chunk: int, shard: list[int] | None, levels: int) -> None:
    for level in range(levels):
        if level:
            method = "mode" if kind == "labels" else "mean"
            volume = ts.downsample(array, [1, 2, 2], method)  # noqa: F821 (the array of the level before)
        array = _create(f"{out}/{level}", volume, chunk, kind, shard[::-1] if shard else None)
        block = shard[::-1] if shard else [chunk, 2 * chunk, 2 * chunk]
        starts = itertools.product(*(range(0, n, s) for n, s in zip(volume.shape, block, strict=True)))
        boxes = [
            tuple(slice(a, min(a + s, n)) for a, s, n in zip(at, block, volume.shape, strict=True)) for at in starts
        ]
        with ThreadPoolExecutor(CORES) as threads:
            list(threads.map(partial(_copy, array, volume), boxes))


def _copy(array: Any, volume: Any, box: tuple[slice, ...]) -> None:
    with ts.Transaction() as transaction:  # without it, a shard is written again for each of its chunks
        array.with_transaction(transaction)[box].write(volume[box]).result()


def _create(path: str, volume: Any, chunk: int, kind: str, shard: list[int] | None) -> Any:
    blosc = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": 1, "blocksize": 2**18}
    codec = (
        {"name": "zstd", "configuration": {"level": 1}}
        if kind == "labels"
        else {"name": "blosc", "configuration": blosc}
    )
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, codec]
    if shard:
        codecs = [{"name": "sharding_indexed", "configuration": {"chunk_shape": [chunk] * 3, "codecs": codecs}}]
    metadata = {
        "shape": list(volume.shape),
        "data_type": volume.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard or [chunk] * 3}},
        "codecs": codecs,
        "fill_value": 0,
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    return ts.open(spec, create=True).result()
