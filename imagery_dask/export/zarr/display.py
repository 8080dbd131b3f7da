"""How imagery is shown: the range of values from black to white."""

from __future__ import annotations

from typing import Any

import numpy as np

from imagery_dask.errors import AccessRefusedError
from imagery_dask.export.core.inputs import Volume
from imagery_dask.export.zarr import ome

__all__ = ["display"]

# Voxels along x, y, z that are looked at in the middle of a volume.
SAMPLE = (256, 256, 1)
SHARE = (0.1, 99.9)


def display(volume: Volume) -> dict[str, Any]:
    """Display range of a volume: all of 8 bit, what a sample in its middle has of other types."""
    channels = int(volume.array.shape[3]) if volume.channels else 1
    names = [volume.name] if channels == 1 else [str(index) for index in range(channels)]
    dtype = np.dtype(volume.array.dtype)
    if dtype == np.uint8:
        return ome.omero(names, (0, 255), (0, 255))
    sample = _sample(volume)
    low, high = (0.0, 0.0) if sample.size == 0 else (float(sample.min()), float(sample.max()))
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        limits = (float(info.min), float(info.max))
    elif low < high:
        limits = (low, high)
    else:  # viewers divide by the width of a window
        limits = (low, low + max(1.0, abs(low)))
    if low == high:
        return ome.omero(names, limits, limits)
    first, last = (float(value) for value in np.percentile(sample, SHARE))
    # Where few voxels differ from the others, percentiles do not differ.
    return ome.omero(names, limits, (first, last) if first < last else (low, high))


def _sample(volume: Volume) -> Any:
    """Finite values of part of the middle slice; none where it cannot be read, which is for its block to report."""
    x, y, z = (
        slice(start := max(0, (length - size) // 2), start + min(size, length))
        for length, size in zip(volume.shape, SAMPLE, strict=True)
    )
    try:
        voxels = volume.reader((x, y, z))()
    except AccessRefusedError:
        raise
    except Exception:
        return np.empty(0, volume.array.dtype)
    return voxels[np.isfinite(voxels)]
