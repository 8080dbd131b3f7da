"""A dask array (z, y, x) whose blocks CloudVolume reads."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from cloudvolume import Bbox, CloudVolume


def volume(source: str, chunk: int) -> Any:
    """Return the array, with blocks of output chunks; cloudvolume.dask does not read volumes with an offset."""
    info = CloudVolume(f"precomputed://{source}", progress=False)
    shape = tuple(map(int, info.volume_size[::-1]))
    offset = tuple(map(int, info.voxel_offset))

    def read(block_info: Any = None) -> Any:
        location = block_info[None]["array-location"][::-1]
        box = Bbox(*([a + o for a, o in zip(side, offset, strict=True)] for side in zip(*location, strict=True)))
        return np.asarray(CloudVolume(f"precomputed://{source}", progress=False).download(box))[..., 0].T

    chunks = da.core.normalize_chunks((chunk,) * 3, shape)
    return da.map_blocks(read, chunks=chunks, dtype=info.dtype, meta=np.empty((0, 0, 0), info.dtype))
