"""The properties of a chunked graph, and a query for root ids, as values. No I/O.

In a dynamic segmentation voxels hold *supervoxel ids*, and a PyChunkedGraph server knows the *root id* of each
supervoxel at a given time. The 64 bits of an id encode its position
(https://github.com/CAVEconnectome/PyChunkedGraph)::

    | layer (8 bits) | chunk x | chunk y | chunk z | segment |
      1 supervoxels, 2 the pieces of a graph chunk (L2), ... , n_layers root ids

Supervoxels never cross the border of a graph chunk. Blocks of whole graph chunks therefore share no supervoxels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import SourceError
from imagery_dask.geometry.grid import XYZ, VoxelGrid, ratio
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.supervoxel_store import SupervoxelStore
from imagery_dask.serialization import NEWER
from imagery_dask.urls import server_of

__all__ = ["GRAPHENE", "ChunkedGraph", "RootQuery", "graphene_address"]

GRAPHENE = "graphene://"
SUPERVOXEL_LAYER = 1
ID_BITS = 64
LARGEST_LAYER_BITS = 16
# The pieces of a split supervoxel are written some time after the timestamp of the edit. They have the parents of the
# whole at all earlier times, so that roots are looked up for supervoxels of so many seconds later.
SETTLED_S = 180
# Paths written by users, by CAVE's info service and by CloudVolume: .../segmentation/table/T,
# /segmentation/api/v1/table/T, and the older forms without "table".
PATH = re.compile(r"^/(?P<modality>\w+)/(?:api/v\d+/|1\.0/)?(?:table/)?(?P<table>(?!table/?$)[\w.\-]+)/?$")


def graphene_address(path: str) -> tuple[str, str]:
    """Return the server and table of a graphene path.

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
        If `path` is not a graphene path.
    """
    parts = urlsplit(path.removeprefix(GRAPHENE).removeprefix("middleauth+"))
    match = PATH.match(parts.path)
    if not path.startswith(GRAPHENE) or parts.scheme not in ("http", "https") or not parts.netloc or match is None:
        raise SourceError(
            f"{path!r} is not the path of a dynamic segmentation. The expected form is "
            "graphene://https://HOST/segmentation/table/TABLE."
        )
    return server_of(path.removeprefix(GRAPHENE)), match["table"]


@dataclass(frozen=True, slots=True)
class ChunkedGraph:
    """Address of a chunked graph, its grid of chunks, and the layout of its ids.

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
        Resolution of the level that the graph was built on.
    layers : int
        Layer of root ids.
    layer_bits : int
        Bits of an id that hold its layer.
    splits_supervoxels : bool
        Whether supervoxels are split too, so that the voxels of a place change.
    chunk_bits : int or None
        Bits of a supervoxel's id that hold each coordinate of its graph chunk; None where the info does not say.
    """

    server: str
    table: str
    chunk_shape: XYZ
    origin: XYZ
    resolution_nm: tuple[float, float, float]
    layers: int
    layer_bits: int = 8
    splits_supervoxels: bool = field(default=False, repr=False, metadata=NEWER)
    # Graphs of older records, which do not have it, are the same.
    chunk_bits: int | None = field(default=None, compare=False, repr=False, metadata=NEWER)

    @classmethod
    def from_info(cls, path: str, info: JsonObject) -> ChunkedGraph:
        """Read the parsed ``info`` JSON of a graph.

        Raises
        ------
        SourceError
            If the info is incomplete, or the server does not support version 1 of the API.
        """
        server, table = graphene_address(path)
        splits = SupervoxelStore.from_info(path, info) is not None if isinstance(info, dict) else False
        try:
            graph = info["graph"]
            scale = info["scales"][int(graph.get("cv_mip", 0))]
            starts_at_offset = info.get("chunks_start_at_voxel_offset")
            origin = (scale.get("voxel_offset") if starts_at_offset else None) or (0, 0, 0)
            chunked_graph = cls(
                server, table, Vec3.of(graph["chunk_size"]).map(int), Vec3.of(origin).map(int),
                Vec3.of(scale["resolution"]).map(float), int(graph["n_layers"]),
                int(graph.get("n_bits_for_layer_id", 8)), splits, _chunk_bits(graph),
            )  # fmt: skip
            supported = list(info["app"]["supported_api_versions"])
            if min(chunked_graph.chunk_shape) < 1:
                raise ValueError(f"graph.chunk_size: {graph['chunk_size']!r}")
            if not 1 <= chunked_graph.layer_bits <= LARGEST_LAYER_BITS:
                raise ValueError(f"graph.n_bits_for_layer_id: {graph['n_bits_for_layer_id']!r}")
            if not 1 < chunked_graph.layers < 2**chunked_graph.layer_bits:
                raise ValueError(f"graph.n_layers: {graph['n_layers']!r}")
        except (AttributeError, KeyError, IndexError, OverflowError, TypeError, ValueError) as error:
            raise SourceError(
                f"The info of {path!r} does not describe a chunked graph: it has no usable {error}."
            ) from error
        if 1 not in supported:
            raise SourceError(f"{path!r} is served by API versions {supported}; only version 1 is supported.")
        return chunked_graph

    @property
    def host(self) -> str:
        """Host name of the server; tokens are looked up by it."""
        return urlsplit(self.server).netloc

    def layer_of(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Layer of each id, in the shape of `ids`; 0 for the id 0."""
        return np.asarray(ids >> np.uint64(ID_BITS - self.layer_bits), dtype=np.uint64)

    def is_root(self, root_id: int) -> bool:
        """Return True if an id is in the layer of root ids."""
        return root_id >> (ID_BITS - self.layer_bits) == self.layers

    def chunks_at(self, level: VoxelGrid) -> tuple[Vec3[int], Vec3[int]] | None:
        """Return the shape of graph chunks and the first voxel of one of them, in voxels of a level.

        Return None if edges of graph chunks cut voxels of the level.
        """
        factors = Vec3.of(self.resolution_nm).map(ratio, level.resolution_nm)
        shape, origin = (factors * Vec3.of(voxels).map(Fraction) for voxels in (self.chunk_shape, self.origin))
        if any(value.denominator != 1 for value in (*shape, *origin)):
            return None
        return shape.map(int), origin.map(int)


def _chunk_bits(graph: JsonObject) -> int | None:
    masks = graph.get("spatial_bit_masks")
    bits = masks.get(str(SUPERVOXEL_LAYER)) if isinstance(masks, dict) else None
    return bits if isinstance(bits, int) and 0 < 3 * bits < ID_BITS - LARGEST_LAYER_BITS else None


@dataclass(frozen=True, slots=True)
class RootQuery:
    """A query to a chunked graph for the ids that supervoxels belong to at a given time. Small, and without a token.

    Parameters
    ----------
    graph : ChunkedGraph
        The graph to query.
    timestamp : int
        Time of the query, in whole seconds since 1970 (UTC).
    stop_layer : int or None
        Layer of the ids to return: 2 for L2 ids; None for root ids.
    max_requests : int
        Largest number of requests that a cluster sends to the server at the same time.
    version : int or None
        Materialization version with this timestamp, for display only; it does not affect the result.
    stored : str or None
        Cloud path of a table with the answers, which is read instead of asking the server.
    """

    graph: ChunkedGraph
    timestamp: int
    stop_layer: int | None = None
    max_requests: int = 32
    version: int | None = field(default=None, compare=False, repr=False)
    # Not in the repr, from which names of arrays are made: those of other queries stay what they were.
    stored: str | None = field(default=None, repr=False, metadata=NEWER)

    @property
    def supervoxels_at(self) -> int | None:
        """Up to when splits of supervoxels are read, in seconds since 1970; None where no supervoxel is split."""
        return self.timestamp + SETTLED_S if self.graph.splits_supervoxels else None

    @property
    def layer(self) -> int:
        """Layer of the ids that the query returns."""
        return self.graph.layers if self.stop_layer is None else self.stop_layer
