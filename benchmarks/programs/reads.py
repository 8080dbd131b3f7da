"""Reading with this package."""

from __future__ import annotations

import pickle
import statistics
import time
from typing import Any

import numpy as np

from imagery_dask import ImageryClient
from imagery_dask.sources import collect_counts

KEPT = 256 * 2**20


def lazy(source: str, kind: str, start: list[int], stop: list[int], convert_to_int64: bool = True) -> Any:
    """Return a lazy cutout."""
    if kind == "labels":
        client = ImageryClient(segmentation_source=source, imagery=False)
        return client.segmentation_cutout([start, stop], convert_to_int64=convert_to_int64)
    return ImageryClient(image_source=source, segmentation=False).image_cutout([start, stop])


def cutout(source: str, kind: str, start: list[int], stop: list[int]) -> Any:
    """Read a box."""
    return lazy(source, kind, start, stop).compute()


def store(source: str, kind: str, start: list[int], stop: list[int]) -> Any:
    """Read a box of an image of OME-Zarr."""
    return cutout(f"zarr3://{source}", kind, start, stop)


def browse(source: str, start: list[int], side: int, positions: list[list[int]]) -> dict[str, Any]:
    """Look at planes one after another, at x and z from the corner of the volume; a cache keeps decoded chunks."""
    volume = ImageryClient(image_source=source, segmentation=False, cache_bytes=KEPT).image_volume().data
    return timed_planes(positions, lambda x, z: volume[x : x + side, :side, z].compute())


def timed_planes(positions: list[list[int]], plane: Any) -> dict[str, Any]:
    """Return the planes, and the median milliseconds of those after the first."""
    planes, took = [], []
    for x, z in positions:
        started = time.perf_counter()
        planes.append(plane(x, z))
        took.append(1e3 * (time.perf_counter() - started))
    return {"value": np.stack(planes), "figures": {"ms per plane": statistics.median(took[1:])}}


def petabyte(source: str, kind: str, start: list[int], stop: list[int]) -> dict[str, Any]:
    """Open a layer as an array and read one plane."""
    started = time.perf_counter()
    data = ImageryClient(image_source=source, segmentation=False).image_volume().data
    opened = 1e3 * (time.perf_counter() - started)
    graph = len(pickle.dumps(data.__dask_graph__()))
    with collect_counts() as counts:
        plane = data[tuple(map(slice, start, stop))].compute()
    return {
        "value": plane,
        "counts": {"graph bytes": graph, "chunks read": counts.chunks},
        "figures": {"ms to open": opened},
    }
