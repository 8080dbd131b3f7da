"""Reading of volumes and segmentation graphs: picklable handles without credentials, opened once per process.

May import `model`, `geometry` and `kernels`; knows neither dask arrays nor exports. Begin with `handle`
(`SourceHandle`, which tasks hold), then `volumes` (reads a box, whatever the format), `precomputed` (its files and
encodings), `requests` (retries and refusals) and `graph` (root ids of supervoxels).
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.sources.graph.near_roots import near_roots
    from imagery_dask.sources.graph.roots import chunks_of_objects, has_objects, look_up_roots, roots_from_leaves
    from imagery_dask.sources.handle import (
        SourceHandle,
        changed_supervoxel_chunks,
        cloud_volume,
        layers_of,
        open_volume,
        volumes_at,
    )
    from imagery_dask.sources.requests.counts import Once, ReadCounts, active_counts, collect_counts
    from imagery_dask.sources.requests.credentials import (
        cave_token,
        forget_token,
        remember_token,
        token_places,
        tokens_for_own_workers,
    )
    from imagery_dask.sources.requests.throttle import limited_requests, request_slots
    from imagery_dask.sources.volumes.addresses import normalize_path
    from imagery_dask.sources.volumes.stored_volume import CheckedChunk, Layout, Missing, NotKept, StoredVolume
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.sources.volumes.addresses": ["normalize_path"],
            "imagery_dask.sources.requests.counts": ["Once", "ReadCounts", "active_counts", "collect_counts"],
            "imagery_dask.sources.requests.credentials": [
                "cave_token",
                "forget_token",
                "remember_token",
                "token_places",
                "tokens_for_own_workers",
            ],
            "imagery_dask.sources.handle": [
                "SourceHandle",
                "changed_supervoxel_chunks",
                "cloud_volume",
                "layers_of",
                "open_volume",
                "volumes_at",
            ],
            "imagery_dask.sources.volumes.stored_volume": [
                "CheckedChunk",
                "Layout",
                "Missing",
                "NotKept",
                "StoredVolume",
            ],
            "imagery_dask.sources.graph.near_roots": ["near_roots"],
            "imagery_dask.sources.graph.roots": [
                "chunks_of_objects",
                "has_objects",
                "look_up_roots",
                "roots_from_leaves",
            ],
            "imagery_dask.sources.requests.throttle": ["limited_requests", "request_slots"],
        },
    )

__all__ = [
    "CheckedChunk",
    "Layout",
    "Missing",
    "NotKept",
    "Once",
    "ReadCounts",
    "SourceHandle",
    "StoredVolume",
    "active_counts",
    "cave_token",
    "changed_supervoxel_chunks",
    "chunks_of_objects",
    "cloud_volume",
    "collect_counts",
    "forget_token",
    "has_objects",
    "layers_of",
    "limited_requests",
    "look_up_roots",
    "near_roots",
    "normalize_path",
    "open_volume",
    "remember_token",
    "request_slots",
    "roots_from_leaves",
    "token_places",
    "tokens_for_own_workers",
    "volumes_at",
]
