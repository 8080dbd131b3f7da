"""``sparse`` asks the server where objects are, and reads the voxels of their graph chunks alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.stores import written
from support.dynamic import TOKEN, WHOLE, bounds, client_of, expected, resolution, served

from imagery_dask import ImageryClient, to_zarr, verify_export
from imagery_dask.sources import collect_counts
from imagery_dask.testing.cave import CaveServer, World, make_world


def smallest(world: World, moment: float) -> int:
    ids, counts = np.unique(expected(world, moment, WHOLE), return_counts=True)
    return int(ids[ids != 0][counts[ids != 0].argmin()])


def chunk_files(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file() and "/c/" in path.as_posix()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_an_export_of_an_object_reads_its_graph_chunks_alone(
    server: CaveServer, world: World, tmp_path: Path, small_blocks: int
) -> None:
    moment = int(np.ceil(world.times["split_1"]))
    root, chunk = smallest(world, moment), np.array(world.graph.layout.chunk_size)
    held = np.unique(np.argwhere(expected(world, moment, WHOLE) == root) // chunk, axis=0)
    client, reports = client_of(server), []
    for sparse in (True, False):
        data = client.dataset(
            bounds(world, WHOLE), resolution=resolution(world), timestamp=moment, root_ids=[root], segmentation_mip=0,
            sparse=sparse,
        )["segmentation"]  # fmt: skip
        server.reset()
        reports.append(to_zarr(data, tmp_path / f"{sparse}.zarr", chunks=tuple(chunk.tolist()), progress=False))
        assert (server.count("leaves"), server.count("roots_binary") > 0) == (int(sparse), not sparse)
    assert chunk_files(tmp_path / "True.zarr") == chunk_files(tmp_path / "False.zarr") != {}
    np.testing.assert_array_equal(written(tmp_path / "True.zarr"), expected(world, moment, WHOLE, keep=[root]))
    with collect_counts() as one:  # the storage chunks of a graph chunk
        low = np.array(world.voxel_offset) + held[0] * chunk
        client.segmentation_cutout([low, low + chunk], resolution=resolution(world), mip=0, root_ids=None).compute()
    assert reports[0].counts.chunks == len(held) * one.chunks < reports[1].counts.chunks
    assert verify_export(tmp_path / "True.zarr", sample=None).ok


@pytest.mark.parametrize(
    ("root_ids", "source", "reason"),
    [
        ("all", "graph", "root_ids is 'all'; list root ids"),
        (None, "graph", "root_ids is None; list root ids"),
        ([5], "flat", "this segmentation is flat"),
        ([5], "split", "supervoxels of this graph are split"),
    ],
)
def test_it_is_refused_where_it_is_not_known_where_objects_are(
    world: World, tmp_path: Path, root_ids: Any, source: str, reason: str
) -> None:
    if source == "split":
        world = make_world(tmp_path, splits="spec")
    with served(world) as server:
        path = world.watershed_source if source == "flat" else server.segmentation_source
        client = ImageryClient(segmentation_source=path, imagery=False, auth_token=TOKEN)
        with pytest.raises(ValueError, match=f"^sparse: .*{reason}"):
            client.dataset(bounds(world, WHOLE), resolution=resolution(world), root_ids=root_ids, sparse=True)
