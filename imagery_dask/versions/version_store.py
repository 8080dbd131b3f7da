"""What a version store is, and where its parts are. Its facts are written once.

::

    OUT/versions.json          graph, bounds and layers (`StoreFacts`): the last file that making a store writes
    OUT/volume.zarr            an export of the supervoxels, and of imagery if asked
    OUT/supervoxels.parquet    each supervoxel once: its graph chunk, its number of voxels, its box
    OUT/roots/NAME.parquet     a version: the root id of each supervoxel at its moment
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from imagery_dask.annotations import JsonObject
from imagery_dask.geometry.grid import XYZ, Resolution, VoxelGrid
from imagery_dask.model.chunkedgraph import ChunkedGraph
from imagery_dask.model.graph_ids import SupervoxelIds
from imagery_dask.serialization import from_json, to_json
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.urls import redacted

__all__ = ["FACTS", "ROOTS", "SUPERVOXELS", "StoreFacts", "read_facts", "write_facts"]

FACTS, SUPERVOXELS, ROOTS = "versions.json", "supervoxels.parquet", "roots"
FORMAT, FORMAT_VERSION = "imagery_dask versions", 1


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What all versions of a store have in common.

    Parameters
    ----------
    graph : ChunkedGraph
        Graph of the supervoxels. It contains no token.
    bounds : pair of 3 int
        First voxel, and one past the last, x, y, z in voxels of `resolution_nm`.
    mip : int
        Level of the source that was exported.
    resolution_nm : tuple of 3 float
        Voxel size of level 0 of the volume.
    layers : tuple of str
        ``"segmentation"``, and ``"image"`` if imagery was exported too.
    supervoxels_at : int
        Moment of the supervoxels, in whole seconds since 1970.
    created : str
        When the store was made, ISO 8601.
    imagery_dask : str
        Version of the program that made it.
    volume : str
        Name of the exported volume in the store.
    chunk_bits : int or None
        Bits of a supervoxel's id that hold each coordinate of its graph chunk.
    datastack, cave_server : str or None
        Datastack that materialization versions are of, and its server; None for a store of a graph alone.
    """

    graph: ChunkedGraph
    bounds: tuple[XYZ, XYZ]
    mip: int
    resolution_nm: Resolution
    layers: tuple[str, ...]
    supervoxels_at: int
    created: str
    imagery_dask: str
    volume: str = "volume.zarr"
    chunk_bits: int | None = None
    datastack: str | None = None
    cave_server: str | None = None

    @property
    def ids(self) -> SupervoxelIds:
        """Layout of the ids of supervoxels."""
        return SupervoxelIds(self.graph.layer_bits, self.chunk_bits or 0)

    @property
    def grid(self) -> VoxelGrid:
        """Voxels of level 0."""
        return VoxelGrid.between(*self.bounds, self.resolution_nm)


def read_facts(url: str | os.PathLike[str]) -> StoreFacts:
    """Return the facts of a store.

    Parameters
    ----------
    url : str or path
        The store: a local folder, or a URL such as ``s3://bucket/versions``.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    ValueError
        If its facts are damaged, or of a later format.
    """
    files = Files.at(url)
    with clear_errors(files.url):
        content = files.get(FACTS)
    if content is None:
        raise FileNotFoundError(
            f"There is no version store at {redacted(os.fspath(url))!r}: it has no {FACTS}. "
            "'imagery-dask versions create' makes one."
        )
    try:
        facts: JsonObject = json.loads(content)
        kind, number = facts.pop("format"), facts.pop("format_version")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{files.url}/{FACTS} is damaged: {error}. Restore it from a copy.") from None
    if kind != FORMAT or number != FORMAT_VERSION:
        raise ValueError(
            f"{files.url}/{FACTS} has the format {kind!r} {number!r}, and this program reads {FORMAT!r} "
            f"{FORMAT_VERSION}. Update imagery_dask."
        )
    try:
        return from_json(StoreFacts, facts)
    except ValueError as error:
        raise ValueError(f"{files.url}/{FACTS} is damaged: {error}") from None


def write_facts(url: str | os.PathLike[str], facts: StoreFacts) -> None:
    """Write the facts of a store, atomically."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **to_json(facts)}
    files = Files.at(url)
    with clear_errors(files.url):
        files.put(FACTS, json.dumps(content, indent=1).encode(), "application/json")
