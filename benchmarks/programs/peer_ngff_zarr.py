"""ngff-zarr on dask's threads, which reads by CloudVolume."""

from __future__ import annotations

from typing import Any

import dask
from ngff_zarr import Methods, to_multiscales, to_ngff_image, to_ngff_zarr
from numcodecs import Blosc

from benchmarks.programs.dask_volume import volume

CORES = 2


def zarr(
    source: str,
    kind: str,
    start: list[int],
    stop: list[int],
    out: str,
    chunk: int,
    shard: list[int] | None,
    levels: int,
) -> None:
    """Write levels."""
    data = volume(source, chunk)
    image = to_ngff_image(data, dims=["z", "y", "x"], scale={"z": 40.0, "y": 8.0, "x": 8.0})
    method = Methods.DASK_IMAGE_MODE if kind == "labels" else Methods.DASK_BIN_SHRINK
    factors: list[Any] = [{"z": 1, "y": 2**level, "x": 2**level} for level in range(1, levels)]
    options = {"chunks_per_shard": {axis: s // chunk for axis, s in zip("xyz", shard, strict=True)}} if shard else {}
    codec = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE)
    with dask.config.set(scheduler="threads", num_workers=CORES):
        made = to_multiscales(image, factors, method=method, chunks=chunk, cache=False)
        to_ngff_zarr(out, made, version="0.5", compressors=codec, **options)
