"""CloudVolume and zarr, without dask."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from cloudvolume import Bbox, CloudVolume
from zarr.codecs import BloscCodec


def small(source: str, start: list[int], stop: list[int], out: str, **_: Any) -> None:
    """Read a box and write it in chunks of 128 x 128 x 32."""
    voxels = np.asarray(CloudVolume(f"precomputed://{source}", progress=False).download(Bbox(start, stop)))[..., 0].T
    array = zarr.create_array(
        f"{out}/0", shape=voxels.shape, chunks=(32, 128, 128), dtype=voxels.dtype, fill_value=0,
        compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
    )  # fmt: skip
    array[:] = voxels
