"""What a chunked graph's ``info`` says, and a question to it, as values. No I/O.

In a dynamic segmentation voxels hold *supervoxel ids*, and a PyChunkedGraph server knows which *root id* each belongs
to at a moment. The 64 bits of an id say where it belongs (https://github.com/CAVEconnectome/PyChunkedGraph)::

    | layer (8 bits) | chunk x | chunk y | chunk z | segment |
      1 supervoxels, 2 the pieces of a graph chunk (L2), ... , n_layers root ids

Supervoxels never cross a graph chunk, so that a block of whole graph chunks has supervoxels that no other block has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from imagery_dask.errors import SourceError
from imagery_dask.geometry.grid import XYZ, VoxelGrid, ratio
from imagery_dask.geometry.vec import Vec3

__all__ = ["GRAPHENE", "ChunkedGraph", "RootQuery", "graphene_address"]

GRAPHENE = "graphene://"
SUPERVOXEL_LAYER = 1
ID_BITS = 64
# As people, CAVE's info service and CloudVolume write them: .../segmentation/table/T, /segmentation/api/v1/table/T,
# and the older forms without "table".
PATH = re.compile(r"^/(?P<modality>\w+)/(?:api/v\d+/|1\.0/)?(?:table/)?(?P<table>(?!table/?$)[\w.\-]+)/?$")


def graphene_address(path: str) -> tuple[str, str]:
    """Server and table of a graphene path.

    Parameters
    ----------
    path : str
        For instance ``"graphene://https://host/segmentation/table/minnie3_v1"``.

    Returns
    -------
    server, table : str
        ``"https://host"`` and ``"minnie3_v1"``.

    Raises
    ------
    SourceError
        When it is not such a path.
    """
    parts = urlsplit(path.removeprefix(GRAPHENE).removeprefix("middleauth+"))
    match = PATH.match(parts.path)
    if not path.startswith(GRAPHENE) or parts.scheme not in ("http", "https") or not parts.netloc or match is None:
        raise SourceError(
            f"{path!r} is not the path of a dynamic segmentation; it looks like "
            "graphene://https://HOST/segmentation/table/TABLE."
        )
    return f"{parts.scheme}://{parts.netloc}", match["table"]


@dataclass(frozen=True, slots=True)
class ChunkedGraph:
    """Where a chunked graph is, how it is cut into chunks, and how its ids are made.

    Parameters
    ----------
    server : str
        ``https://host`` of the PyChunkedGraph service.
    table : str
        Name of the graph.
    chunk_shape : tuple of 3 int
        Voxels of a graph chunk along x, y, z, at `resolution_nm`.
    origin : tuple of 3 int
        First voxel of the graph chunk (0, 0, 0).
    resolution_nm : tuple of 3 float
        Resolution of the level that the graph was made on.
    layers : int
        Layer of root ids.
    layer_bits : int
        Bits of an id that hold its layer.
    """

    server: str
    table: str
    chunk_shape: XYZ
    origin: XYZ
    resolution_nm: tuple[float, float, float]
    layers: int
    layer_bits: int = 8

    @classmethod
    def from_info(cls, path: str, info: Mapping[str, Any]) -> ChunkedGraph:
        """Read the parsed ``info`` JSON of a graph.

        Raises
        ------
        SourceError
            When it is not complete, or the server speaks no protocol that we know.
        """
        server, table = graphene_address(path)
        try:
            graph = info["graph"]
            scale = info["scales"][int(graph.get("cv_mip", 0))]
            starts_at_offset = info.get("chunks_start_at_voxel_offset")
            origin = (scale.get("voxel_offset") if starts_at_offset else None) or (0, 0, 0)
            chunked_graph = cls(
                server, table, Vec3.of(graph["chunk_size"]).map(int), Vec3.of(origin).map(int),
                Vec3.of(scale["resolution"]).map(float), int(graph["n_layers"]),
                int(graph.get("n_bits_for_layer_id", 8)),
            )  # fmt: skip
            supported = info["app"]["supported_api_versions"]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise SourceError(f"{path!r} has no info of a chunked graph: there is no usable {error} in it.") from error
        if 1 not in supported:
            raise SourceError(f"{path!r} is served by API versions {supported}; only version 1 is supported.")
        return chunked_graph

    @property
    def host(self) -> str:
        """Name of the server, by which tokens are found."""
        return urlsplit(self.server).netloc

    def layer_of(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Layer of each id, in the shape of `ids`; 0 for the id 0."""
        return np.asarray(ids >> np.uint64(ID_BITS - self.layer_bits), dtype=np.uint64)

    def is_root(self, root_id: int) -> bool:
        """Whether an id is of the layer of root ids."""
        return root_id >> (ID_BITS - self.layer_bits) == self.layers

    def chunks_at(self, level: VoxelGrid) -> tuple[Vec3[int], Vec3[int]] | None:
        """Shape of graph chunks, and first voxel of one of them, in voxels of a level; None where they cut voxels."""
        factors = Vec3.of(self.resolution_nm).map(ratio, level.resolution_nm)
        shape, origin = (factors * Vec3.of(voxels).map(Fraction) for voxels in (self.chunk_shape, self.origin))
        if any(value.denominator != 1 for value in (*shape, *origin)):
            return None
        return shape.map(int), origin.map(int)


@dataclass(frozen=True, slots=True)
class RootQuery:
    """A question to a chunked graph: which ids, as of when, do supervoxels belong to. Small, and without a token.

    Parameters
    ----------
    graph : ChunkedGraph
        Whom to ask.
    timestamp : int
        Moment, in whole seconds since 1970 (UTC).
    stop_layer : int or None
        Layer of the ids to give: 2 for L2 ids; None for root ids.
    max_requests : int
        Requests that a cluster has at the server at once.
    version : int or None
        Materialization version whose moment it is, for those who read of it; answers do not depend on it.
    """

    graph: ChunkedGraph
    timestamp: int
    stop_layer: int | None = None
    max_requests: int = 32
    version: int | None = field(default=None, compare=False, repr=False)

    @property
    def layer(self) -> int:
        """Layer of the answers."""
        return self.graph.layers if self.stop_layer is None else self.stop_layer
