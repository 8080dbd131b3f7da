"""Codecs of zarr chunks: CPU time of encoding and decoding, and stored size; and the pipelines that call them.

python benchmarks/bench_codecs.py [--quick]

Chunks are encoded one by one, as shards are. Real electron microscopy (fib25.npz, see --microscopy) is measured where
it is there, the generator's volume otherwise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from common import arguments
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from imagery_dask.export.zarr.block_array import PIPELINE
from imagery_dask.export.zarr.to_zarr import BLOSC_BLOCK
from imagery_dask.testing.volume import synthesize

MICROSCOPY = Path("../shared/data/fib25.npz")
SHUFFLES = {"no shuffle": 0, "shuffle": 1, "bit shuffle": 2}
CODECS: dict[str, Any] = {
    **{f"blosc zstd 1, {name}": numcodecs.Blosc("zstd", 1, number, BLOSC_BLOCK) for name, number in SHUFFLES.items()},
    "blosc lz4 5, shuffle": numcodecs.Blosc("lz4", 5, 1, BLOSC_BLOCK),
    "zstd 1": numcodecs.Zstd(1),
    "zstd 3": numcodecs.Zstd(3),
    "gzip 1": numcodecs.GZip(1),
}
PIPELINES = {"zarrs": PIPELINE, "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
OF_ZARR = {
    "blosc zstd 1, shuffle": BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", blocksize=BLOSC_BLOCK),
    "zstd 1": ZstdCodec(level=1),
}


def volumes(microscopy: Path, side: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield names and voxels z, y, x of kinds of volumes."""
    if microscopy.is_file():
        with np.load(microscopy) as file:
            image, supervoxels = (np.ascontiguousarray(file[name].T) for name in ("image", "supervoxel"))
            table = file["supervoxel_to_body"]
        table = table[np.argsort(table[:, 0])]
        bodies = table[np.searchsorted(table[:, 0], supervoxels).clip(max=len(table) - 1), 1]
        bodies = np.where(supervoxels == 0, 0, bodies + np.uint64(2**60))
        ids = {"supervoxels, uint64": supervoxels.astype(np.uint64) + np.uint64(2**60), "bodies, uint64": bodies}
    else:
        image, labels = (np.ascontiguousarray(array.T) for array in synthesize((256, 256, 64)))
        ids = {"labels, uint64": labels}
    image = image[:side, :side, :side]
    yield "image, uint8", image
    random = np.random.default_rng(0)
    yield "image, uint16", image.astype(np.uint16) * 16 + random.integers(0, 16, image.shape, dtype=np.uint16)
    yield "image, float32", image.astype(np.float32) / 255 + random.normal(0, 1e-3, image.shape).astype(np.float32)
    for name, voxels in ids.items():
        yield name, voxels[:side, :side, :side]
        if voxels.itemsize == 8 and "bodies" in name:
            yield "mask, uint8", (voxels == np.unique(voxels)[-1]).astype(np.uint8)[:side, :side, :side]
            yield "bodies, uint32", np.unique(voxels, return_inverse=True)[1].astype(np.uint32)[:side, :side, :side]


def chunks_of(voxels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the chunks of the default shapes: 128 voxels along each axis for imagery, 64 for ids."""
    size = 128 if voxels.itemsize <= 2 else 64
    grid = np.ndindex(*(-(-length // size) for length in voxels.shape))
    return [np.ascontiguousarray(voxels[tuple(slice(i * size, (i + 1) * size) for i in position)]) for position in grid]


def cpu_s(run: Callable[[], object], repeats: int) -> float:
    """Return the least CPU time of some runs."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return min(seconds)


def measure(voxels: NDArray[Any], codec: Any, repeats: int) -> tuple[float, float, float]:
    """Return MB/s of encoding and decoding on one thread, and the raw size over the stored size."""
    numcodecs.blosc.set_nthreads(1)
    chunks = chunks_of(voxels)
    encoded = [codec.encode(chunk) for chunk in chunks]
    for chunk, content in zip(chunks, encoded, strict=True):
        assert bytes(codec.decode(content)) == chunk.tobytes()
    out = [np.empty_like(chunk) for chunk in chunks]
    encoding = cpu_s(lambda: [codec.encode(chunk) for chunk in chunks], repeats)
    decoding = cpu_s(lambda: [codec.decode(*pair) for pair in zip(encoded, out, strict=True)], repeats)
    size = voxels.nbytes / 1e6
    return size / encoding, size / decoding, voxels.nbytes / sum(len(content) for content in encoded)


def encode(data: NDArray[Any], codec: object, pipeline: str) -> float:
    """Return the CPU seconds to write an array by a pipeline of zarr; check the array."""
    with tempfile.TemporaryDirectory() as folder:
        with zarr.config.set({"codec_pipeline.path": pipeline, "threading.max_workers": 1}):
            array = zarr.create_array(
                folder, name="0", shape=data.shape, chunks=(64, 128, 128), dtype=data.dtype, compressors=codec
            )
            started = time.process_time()
            array[:] = data
            seconds = time.process_time() - started
        assert (zarr.open_array(folder, path="0", mode="r")[:] == data).all()
    return seconds


if __name__ == "__main__":
    options = arguments(
        __doc__,
        microscopy=(Path, MICROSCOPY, "file with real electron microscopy"),
        quick=(bool, False, "a small volume, once"),
    )
    repeats, side = (1, 64) if options.quick else (options.repeats, 250)
    print("\n### Codecs on one thread\n")
    print("| data | codec | encode, MB/s | decode, MB/s | times smaller |\n|---|---|---|---|---|")
    for kind, data in volumes(options.microscopy, side):
        for name, codec in CODECS.items():
            encoding, decoding, smaller = measure(data, codec, repeats)
            print(f"| {kind} | {name} | {encoding:.0f} | {decoding:.0f} | {smaller:.2f} |", flush=True)
    image, labels = synthesize((128, 128, 16) if options.quick else (1024, 1024, 64))
    print("\n### Pipelines on one thread\n\n| data | codec | pipeline | encode, MB/s |\n|---|---|---|---|")
    for kind, data in {"image": image, "labels": labels}.items():
        block = np.ascontiguousarray(data.T)
        for name, codec in OF_ZARR.items():
            for label, pipeline in PIPELINES.items():
                seconds = min(encode(block, codec, pipeline) for _ in range(repeats))
                print(f"| {kind} | {name} | {label} | {block.nbytes / 1e6 / seconds:.0f} |", flush=True)
