"""Version stores made from a world without the package's own writer, in the format that readers rely on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.model.chunkedgraph import ChunkedGraph
from imagery_dask.testing.cave import CaveServer, World
from imagery_dask.versions.version_store import StoreFacts, write_facts

SEGMENT_BITS = np.uint64(32)


def graph_of(world: World, server: CaveServer | None = None) -> ChunkedGraph:
    """Return the graph of a world as records have it."""
    layout = world.graph.layout
    return ChunkedGraph(
        "http://127.0.0.1:9" if server is None else server.url, world.table, tuple(layout.chunk_size),
        tuple(layout.voxel_offset), tuple(map(float, world.resolution)), layout.n_layers,
    )  # fmt: skip


def chunks_of(world: World, supervoxels: np.ndarray) -> np.ndarray:
    """Return the ids of the graph chunks of supervoxels."""
    return world.graph.layout.chunk_ids(supervoxels)


def write_table(path: Path, columns: Mapping[str, np.ndarray], facts: dict[str, Any], group_rows: int = 64) -> None:
    """Write a Parquet file of a store, in small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns)).replace_schema_metadata({b"imagery_dask": json.dumps(facts).encode()})
    pq.write_table(
        table, path, row_group_size=group_rows, compression="zstd",
        use_dictionary=[name for name in columns if name in ("chunk", "root")],
        column_encoding={"supervoxel": "DELTA_BINARY_PACKED"},
    )  # fmt: skip


def write_supervoxels(out: Path, world: World, group_rows: int = 64) -> np.ndarray:
    """Write the table of a world's supervoxels, and return their ids."""
    voxels, offset = world.supervoxels, np.array(world.voxel_offset)
    ids, inverse, counts = np.unique(voxels, return_inverse=True, return_counts=True)
    places = np.stack(np.unravel_index(np.arange(voxels.size), voxels.shape), axis=1) + offset
    order = np.argsort(inverse.ravel(), kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    low, high = np.minimum.reduceat(places[order], starts), np.maximum.reduceat(places[order], starts) + 1
    kept = ids != 0
    columns = {"supervoxel": ids[kept], "chunk": chunks_of(world, ids[kept]), "voxels": counts[kept].astype(np.uint64)}
    for axis, name in enumerate("xyz"):
        columns |= {f"{name}_start": low[kept, axis], f"{name}_stop": high[kept, axis]}
    write_table(out / "supervoxels.parquet", columns, {"rows": int(kept.sum())}, group_rows)
    return ids[kept]


def write_version(
    out: Path, world: World, name: str, moment: float, version: int | None, *, supervoxels: np.ndarray | None = None,
    stop_layers: Sequence[int] = (), group_rows: int = 64,
) -> None:  # fmt: skip
    """Write the root ids of a moment."""
    ids = np.unique(world.supervoxels[world.supervoxels != 0]) if supervoxels is None else supervoxels
    layers = world.graph.layout.n_layers

    def ids_at(layer: int) -> np.ndarray:
        found = world.graph.roots(ids, moment, layer)
        return np.where((found >> np.uint64(56)) >= layer, found, np.uint64(0))

    columns = {"supervoxel": ids, "chunk": chunks_of(world, ids), "root": ids_at(layers)}
    columns |= {f"layer_{layer}": ids_at(layer) for layer in stop_layers}
    roots = len(np.unique(columns["root"][columns["root"] != 0]))
    facts = {
        "version": version, "timestamp": int(moment), "server": "", "table": world.table, "rows": len(ids),
        "roots": roots, "requests": 1, "ids_sent": len(ids), "made_from": None, "hash": "", "created": "",
    }  # fmt: skip
    write_table(out / "roots" / f"{name}.parquet", columns, facts, group_rows)


def make_store(
    out: Path, world: World, versions: Mapping[str, tuple[float, int | None]], *, image: bool = False,
    server: CaveServer | None = None, stop_layers: Sequence[int] = (), group_rows: int = 64, **options: Any,
) -> Path:  # fmt: skip
    """Make a version store of a whole world.

    Parameters
    ----------
    out : path
        The store.
    world : World
        What is exported: its watershed, read as a flat volume.
    versions : mapping of str to (float, int or None)
        Moment in whole seconds and materialization version, by the name of the table.
    image : bool
        Export imagery too.
    server : CaveServer, optional
        Whose address the store records.
    stop_layers : sequence of int
        Layers that are recorded besides root ids.
    group_rows : int
        Rows of a row group.
    **options
        Of the export; blocks are graph chunks, and there are three levels.
    """
    client = ImageryClient(
        image_source=world.image_source if image else None, segmentation_source=world.watershed_source,
        resolution=world.resolution,
    )  # fmt: skip
    start = np.array(world.voxel_offset)
    stop = start + world.supervoxels.shape
    data = client.dataset([start, stop], root_ids=None, image_mip=1 if image else None, segmentation_mip=0)
    chunk = tuple(world.graph.layout.chunk_size)
    to_zarr(data, out / "volume.zarr", **{"chunks": chunk, "shards": chunk, "levels": 3, "progress": False, **options})
    ids = write_supervoxels(out, world, group_rows)
    for name, (moment, version) in versions.items():
        write_version(
            out, world, name, moment, version, supervoxels=ids, stop_layers=stop_layers, group_rows=group_rows
        )
    bounds = (tuple(start.tolist()), tuple(stop.tolist()))
    write_facts(out, StoreFacts(
        graph_of(world, server), bounds, 0, tuple(map(float, world.resolution)),
        ("image", "segmentation") if image else ("segmentation",), int(world.times["created"]), "2024-01-01T00:00:00Z",
        "0.1.0", chunk_bits=world.graph.layout.spatial_bits,
    ))  # fmt: skip
    return out


def contents_without_dates(copy: Path) -> dict[str, bytes]:
    """Return the files of a copy of a version, by name, without when it was written."""
    files = {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for name in [name for name in files if name.endswith("zarr.json")]:
        described = json.loads(files[name])
        for date in ("created", "finished"):
            described.get("attributes", {}).get("imagery_dask", {}).pop(date, None)
        files[name] = json.dumps(described).encode()
    return files
