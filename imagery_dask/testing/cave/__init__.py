"""A local CAVE server over a small dynamic segmentation, for tests, notebooks and the demo.

It speaks the wire protocol of CAVE's services, so that clients need no changes. It is simpler than the services: an
object has one node of layer 2 in a chunk, even if its supervoxels there do not touch; a split takes the supervoxels
that it is given and computes no cut, and a supervoxel is split halfway between two points; a root is up to date from
its own millisecond on (in PyChunkedGraph's ``is_latest_roots``, from the next one); there are no meshes, tables or
skeletons.

Begin with `world` (the volumes and the graph on disk) and `server`; `graph` holds the objects and
their edits, `split_store` the supervoxels that were split.
"""

from imagery_dask.testing.cave.graph import ChunkedGraph, GraphError
from imagery_dask.testing.cave.graph_layout import GraphLayout
from imagery_dask.testing.cave.server import CaveServer, Fault, Request
from imagery_dask.testing.cave.world import Version, World, make_world, world_from_arrays

__all__ = [
    "CaveServer",
    "ChunkedGraph",
    "Fault",
    "GraphError",
    "GraphLayout",
    "Request",
    "Version",
    "World",
    "make_world",
    "world_from_arrays",
]
