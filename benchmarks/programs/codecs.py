"""Codecs of zarr chunks on one thread. Chunks are encoded one by one, as shards are."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from imagery_dask.export.zarr.compressors import BLOSC_BLOCK

SHUFFLES = {"no shuffle": 0, "shuffle": 1, "bit shuffle": 2}
CODECS: dict[str, Any] = {
    **{f"blosc zstd 1, {name}": numcodecs.Blosc("zstd", 1, number, BLOSC_BLOCK) for name, number in SHUFFLES.items()},
    "zstd 1": numcodecs.Zstd(1),
    "zstd 3": numcodecs.Zstd(3),
    "gzip 1": numcodecs.GZip(1),
}


def measure(source: str, arrays: str, kind: str, codec: str) -> dict[str, Any]:
    """Encode and decode the chunks of the default shape: 128 voxels along each axis, 64 for ids."""
    numcodecs.blosc.set_nthreads(1)
    with np.load(arrays) as file:
        voxels = file[kind]
    size = 128 if voxels.itemsize <= 2 else 64
    grid = np.ndindex(*(-(-length // size) for length in voxels.shape))
    chunks = [np.ascontiguousarray(voxels[tuple(slice(i * size, (i + 1) * size) for i in at)]) for at in grid]
    encoder = CODECS[codec]
    encoding, encoded = _timed(lambda: [encoder.encode(chunk) for chunk in chunks])
    out = [np.empty_like(chunk) for chunk in chunks]
    decoding, _ = _timed(lambda: [encoder.decode(*pair) for pair in zip(encoded, out, strict=True)])
    figures = {
        "encoding, MB/s": voxels.nbytes / 1e6 / encoding,
        "decoding, MB/s": voxels.nbytes / 1e6 / decoding,
        "times smaller": voxels.nbytes / sum(len(content) for content in encoded),
    }
    both = encoding + decoding
    decoded = np.concatenate([chunk.ravel() for chunk in out])
    return {"value": decoded, "figures": figures, "wall_s": both, "cpu_s": both}


def pipeline(source: str, arrays: str, kind: str, path: str) -> dict[str, Any]:
    """Write an array by a codec pipeline of zarr on one thread."""
    with np.load(arrays) as file:
        voxels = file[kind]
    codec = ZstdCodec(level=1) if kind == "ids" else BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
    with (
        tempfile.TemporaryDirectory() as folder,
        zarr.config.set({"codec_pipeline.path": path, "threading.max_workers": 1}),
    ):
        array = zarr.create_array(
            folder, name="0", shape=voxels.shape, chunks=(64, 128, 128), dtype=voxels.dtype, compressors=codec
        )
        seconds, _ = _timed(lambda: array.__setitem__(slice(None), voxels))
        return {"value": array[:], "wall_s": seconds, "cpu_s": seconds}


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = run()
    return time.process_time() - started, result
