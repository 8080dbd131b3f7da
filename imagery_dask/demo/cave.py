"""The local CAVE server of the demo, under the name that users import; `imagery_dask.testing.cave` defines it."""

from imagery_dask.testing.cave import (
    CaveServer,
    ChunkedGraph,
    Fault,
    GraphError,
    GraphLayout,
    Request,
    Version,
    World,
    make_world,
    world_from_arrays,
)

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
