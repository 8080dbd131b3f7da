"""Helpers for tests of version stores: stores of a small world, and what their tables should hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from imagery_dask import create_versions
from imagery_dask.testing.cave import CaveServer, World
from imagery_dask.versions.create_store import VersionsReport
from support.dynamic import SOME, Box, bounds, client_of, crop


def create(server: CaveServer, out: Path | str, moment: float, box: Box = SOME, **options: Any) -> VersionsReport:
    """Make a store of a box of a server's world at a moment."""
    client = client_of(server, resolution=server.world.resolution)
    options = {"timestamp": moment, "progress": False, **options}
    return create_versions(client, out, bounds(server.world, box), **options)


def supervoxels_in(world: World, box: Box = SOME) -> NDArray[np.uint64]:
    """Return the supervoxels of a box, ascending."""
    ids = np.unique(crop(world.supervoxels, box))
    return ids[ids != 0]


def columns(path: Path | str) -> dict[str, NDArray[Any]]:
    """Return the columns of a table."""
    table = pq.read_table(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def roots_at(world: World, moment: float, box: Box = SOME) -> NDArray[np.uint64]:
    """Return the roots of the supervoxels of a box at a moment, 0 before the graph was made."""
    roots = world.graph.roots(supervoxels_in(world, box), moment)
    return np.where(roots >> np.uint64(56) == world.graph.layout.n_layers, roots, np.uint64(0))


def assert_roots(out: Path, name: str, world: World, moment: float, box: Box = SOME) -> None:
    """Assert that the table of a version is that of a full lookup."""
    table = columns(out / "roots" / f"{name}.parquet")
    np.testing.assert_array_equal(table["supervoxel"], supervoxels_in(world, box))
    np.testing.assert_array_equal(table["root"], roots_at(world, moment, box))
    np.testing.assert_array_equal(table["chunk"], world.graph.layout.chunk_ids(table["supervoxel"]))


def table_of(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the rows of a table as they are stored, and what it says of itself, without dates."""
    content, footer = path.read_bytes(), pq.read_metadata(path)
    said = json.loads(footer.metadata[b"imagery_dask"])
    said.pop("created", None)
    return content[: len(content) - 8 - int.from_bytes(content[-8:-4], "little")], said


def chunks_of(out: Path) -> dict[str, bytes]:
    """Return the voxels as they are stored."""
    folder = out / "volume.zarr"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/c/**/*") if path.is_file()}
