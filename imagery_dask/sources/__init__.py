"""Readers: picklable handles to volumes, opened once per process, with credentials found where they are used."""

from imagery_dask.sources.counts import ReadCounts, collect_counts
from imagery_dask.sources.credentials import remember_token
from imagery_dask.sources.handle import SourceHandle, cloud_volume, normalize_path, open_volume
from imagery_dask.sources.precomputed import Layout, Missing, PrecomputedVolume

__all__ = [
    "Layout",
    "Missing",
    "PrecomputedVolume",
    "ReadCounts",
    "SourceHandle",
    "cloud_volume",
    "collect_counts",
    "normalize_path",
    "open_volume",
    "remember_token",
]
