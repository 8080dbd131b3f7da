"""CPU time of encoding zarr chunks with several codecs, by the zarrs pipeline and by zarr's own.

python benchmarks/bench_codecs.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import zarr
from common import arguments
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from imagery_dask.export.zarr.block_array import PIPELINE
from imagery_dask.testing.volume import synthesize

CODECS = {
    "blosc-zstd 1": BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
    "blosc-zstd 5": BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
    "zstd 1": ZstdCodec(level=1),
}
PIPELINES = {"zarrs": PIPELINE, "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline"}


def encode(data: NDArray, codec: object, pipeline: str) -> tuple[float, float]:
    """Return the CPU seconds to write an array, and the stored size over the raw size; check the array with zarr."""
    with tempfile.TemporaryDirectory() as folder:
        with zarr.config.set({"codec_pipeline.path": pipeline, "threading.max_workers": 1}):
            array = zarr.create_array(
                folder, name="0", shape=data.shape, chunks=(64, 128, 128), dtype=data.dtype, compressors=codec
            )
            started = time.process_time()
            array[:] = data
            seconds = time.process_time() - started
        stored = sum(file.stat().st_size for file in Path(folder).rglob("c/**/*") if file.is_file())
        assert (zarr.open_array(folder, path="0", mode="r")[:] == data).all()
    return seconds, stored / data.nbytes


if __name__ == "__main__":
    options = arguments(__doc__)
    image, labels = synthesize((1024, 1024, 64))
    print("\n### Encoding on one thread\n\n| data | codec | pipeline | CPU MB/s | stored |\n|---|---|---|---|---|")
    for kind, data in {"image": image, "labels": labels}.items():
        block = np.ascontiguousarray(data.T)
        for name, codec in CODECS.items():
            for label, pipeline in PIPELINES.items():
                seconds, share = min(encode(block, codec, pipeline) for _ in range(options.repeats))
                print(f"| {kind} | {name} | {label} | {block.nbytes / 1e6 / seconds:.0f} | {share:.3f} |", flush=True)
