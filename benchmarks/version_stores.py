"""Version stores: of the local CAVE server's segmentation, and one of 10^8 supervoxels and 100 versions."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from benchmarks import cave_server
from imagery_dask import ImageryClient, add_version, create_versions, open_versions
from imagery_dask.model.chunkedgraph import ChunkedGraph
from imagery_dask.storage.atomic_files import Files
from imagery_dask.testing.cave import CaveServer
from imagery_dask.versions.tables.table_files import TableFile, TableWriter, regrouped
from imagery_dask.versions.version_store import StoreFacts, write_facts

Ids = NDArray[np.uint64]

CHUNK, NM = (256, 256, 256), (8.0, 8.0, 40.0)
CREATED, MONTH_S = 1_704_067_200, 2_592_000
LAYERS, CHUNK_BITS, SEGMENT_BITS = 6, 8, 32
# Supervoxels are cubes of this side, and as many consecutive ones belong to an object.
SIDE, OF_OBJECT = 6, 50
OF_CHUNK = math.ceil(CHUNK[0] / SIDE) ** 3
FOOTER_END = 8  # its size, and the four bytes of the format


def _chunk_id(place: tuple[int, int, int]) -> int:
    x, y, z = place
    return 1 << 56 | (x << 2 * CHUNK_BITS | y << CHUNK_BITS | z) << SEGMENT_BITS


def _root_of(index: int, numbers: Ids, of_chunk: int) -> Ids:
    """Return the root ids of supervoxels of a graph chunk, by their numbers from 0."""
    objects = (np.uint64(index * of_chunk) + numbers) // np.uint64(OF_OBJECT)
    return np.uint64(LAYERS << 56) + objects + np.uint64(1)


def _rows(across: int, of_chunk: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of graph chunks, sorted."""
    numbers = np.arange(of_chunk, dtype=np.uint64)
    for index, place in enumerate(np.ndindex(across, across, across)):
        chunk = np.uint64(_chunk_id(place))
        yield {
            "supervoxel": chunk + numbers + np.uint64(1), "chunk": np.full(of_chunk, chunk),
            "root": _root_of(index, numbers, of_chunk),
        }  # fmt: skip


def _write_volume(path: Path, voxels: Ids, across: int, start: tuple[int, int, int]) -> None:
    """Write labels of OME-Zarr that are stored in one graph chunk."""
    group = zarr.open_group(path, mode="w")
    shape = tuple(across * size for size in reversed(CHUNK))
    array = group.create_array(
        "0", shape=shape, dtype=np.uint64, chunks=(64, 64, 64), shards=CHUNK[::-1], compressors=ZstdCodec(level=1)
    )
    array[tuple(slice(a, a + n) for a, n in zip(reversed(start), reversed(CHUNK), strict=True))] = voxels.T
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    centre = [nm / 2 for nm in reversed(NM)]
    steps = [{"type": "scale", "scale": NM[::-1]}, {"type": "translation", "translation": centre}]
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs["ome"] = {
        "version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}], "image-label": {},
    }  # fmt: skip


def _facts_of(version: int, rows: int) -> dict[str, Any]:
    return {
        "version": version, "timestamp": CREATED + version * MONTH_S, "server": "https://cave.example.org",
        "table": "many_v1", "rows": rows, "roots": rows // OF_OBJECT, "requests": 0, "ids_sent": 0, "made_from": None,
        "hash": "", "supervoxels_hash": "", "created": "",
    }  # fmt: skip


def _write_version(first: Path, target: Path, facts: dict[str, Any]) -> None:
    """Copy a table, with other facts in its footer."""
    footer = pq.read_metadata(first)
    empty = pa.BufferOutputStream()
    writer = pq.ParquetWriter(empty, footer.schema.to_arrow_schema(), store_schema=False)
    writer.add_key_value_metadata({b"imagery_dask": json.dumps(facts).encode()})
    writer.close()
    other = pq.read_metadata(pa.BufferReader(empty.getvalue()))
    other.append_row_groups(footer)
    written = pa.BufferOutputStream()
    other.write_metadata_file(written)
    shutil.copyfile(first, target)
    with target.open("r+b") as file:
        file.seek(-FOOTER_END, 2)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-FOOTER_END - size, 2)
        file.truncate()
        file.write(written.getvalue().to_pybytes()[4:])  # behind the four bytes at its beginning


def write_many(folder: Path, small: bool) -> dict[str, Any]:
    """Write a store of which one graph chunk has voxels, and beside it the root ids of these as another volume."""
    across, of_chunk, versions = (2, OF_CHUNK, 3) if small else (10, 100_000, 100)
    store = folder.resolve() / "store"
    place = (across // 2,) * 3
    start = tuple(at * size for at, size in zip(place, CHUNK, strict=True))
    cells = np.indices(CHUNK, np.int64) // SIDE
    side = math.ceil(CHUNK[0] / SIDE)
    numbers = (cells[0] * side**2 + cells[1] * side + cells[2]).astype(np.uint64)
    index = int(np.ravel_multi_index(place, (across,) * 3))
    _write_volume(store / "volume.zarr", np.uint64(_chunk_id(place)) + numbers + np.uint64(1), across, start)
    _write_volume(folder / "roots.zarr", _root_of(index, numbers, of_chunk), across, start)
    columns = dict.fromkeys(("supervoxel", "chunk", "root"), np.uint64)
    rows = across**3 * of_chunk
    with TableWriter(TableFile(Files.at(store), "roots/0.parquet"), columns, ("chunk", "root")) as writer:
        for group in regrouped(_rows(across, of_chunk)):
            writer.write(group)
        writer.publish(_facts_of(0, rows))
    for version in range(1, versions):
        _write_version(store / "roots" / "0.parquet", store / "roots" / f"{version}.parquet", _facts_of(version, rows))
    graph = ChunkedGraph("https://cave.example.org", "many_v1", CHUNK, (0, 0, 0), NM, LAYERS)
    shape = tuple(across * size for size in CHUNK)
    write_facts(
        store, StoreFacts(graph, ((0, 0, 0), shape), 0, NM, ("segmentation",), CREATED, "", "", chunk_bits=CHUNK_BITS)
    )
    stop = [a + n for a, n in zip(start, (128, 128, 64), strict=True)]
    return {"given": {"folder": str(folder.resolve()), "start": list(start), "stop": stop, "version": versions // 2}}


def write_edited(folder: Path, small: bool) -> dict[str, Any]:
    """Write a segmentation for the local CAVE server; a store of it at three moments, and a copy of the first."""
    facts = cave_server.write(folder, cave_server.cells(small))
    given, beside = facts["given"], folder.resolve().with_suffix(".stores")  # not in their source
    shutil.rmtree(beside, ignore_errors=True)  # of a call that failed
    store, copy = beside / "store", beside / "copy.zarr"
    with CaveServer(cave_server.world_of(folder), tokens=(cave_server.TOKEN,)) as server:
        client = ImageryClient(
            segmentation_source=server.segmentation_source, imagery=False, auth_token=cave_server.TOKEN
        )
        bounds = [given["start"], given["stop"]]
        create_versions(client, store, bounds, timestamp=cave_server.BEFORE, progress=False)
        for moment in (cave_server.BETWEEN, cave_server.AFTER):
            add_version(store, timestamp=moment, progress=False)
    open_versions(store).materialize(datetime.fromtimestamp(cave_server.BEFORE, UTC), copy, progress=False)
    tables = sorted((store / "roots").glob("*.parquet"))
    return facts | {
        "given": given | {"folder": str(beside)}, "table": tables[-1].stat().st_size,
        "copy": sum(file.stat().st_size for file in copy.rglob("*") if file.is_file()),
    }  # fmt: skip
