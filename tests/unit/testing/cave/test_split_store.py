"""A world's store of split supervoxels is in the folders of the service, and tensorstore reads what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from imagery_dask.testing.cave import GraphError, World, make_world


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def read(world: World, mip: int = 0) -> Any:
    spec = world.split_info.get("ocdbt_kvstore_spec")
    if spec is None:
        folder = Path(world.watershed_source.removeprefix("precomputed://file://")) / world.split_info["ocdbt_path"]
        spec = {"driver": "ocdbt", "base": folder.as_uri() + "/"}
    array = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": spec, "scale_index": mip}).result()
    assert tuple(array.domain.origin[:3]) == tuple(np.array(world.voxel_offset) // (2**mip, 2**mip, 1))
    return array[..., 0].read().result()


def split_one(world: World) -> np.ndarray:
    at = np.argwhere(world.supervoxels == world.graph.supervoxels[-1]) + world.voxel_offset
    return world.split_supervoxel(int(world.graph.supervoxels[-1]), at[[0, -1]])


@pytest.mark.parametrize("form", ["spec", "path"])
def test_a_populated_store_is_the_volume_at_every_mip(tmp_path: Path, form: Any) -> None:
    world = make_world(tmp_path, (128, 128, 32), splits=form, populated=True)
    new = split_one(world)
    assert np.isin(new, world.supervoxels).all()
    for mip, voxels in enumerate(world.mips):
        np.testing.assert_array_equal(read(world, mip), voxels)


def test_another_store_has_only_whole_chunks_that_were_touched(tmp_path: Path) -> None:
    world = make_world(tmp_path, (128, 128, 32), splits="spec")
    split_one(world)
    there = read(world)
    touched = there != 0
    np.testing.assert_array_equal(there[touched], world.supervoxels[touched])
    where = np.argwhere(touched)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    chunk = np.array(world.graph.layout.chunk_size)
    box = tuple(map(slice, low // chunk * chunk, -(-high // chunk) * chunk))
    np.testing.assert_array_equal(there[box], world.supervoxels[box])


def test_edits_of_a_graph_leave_the_shared_store_as_it_was(tmp_path: Path) -> None:
    world = make_world(tmp_path, (128, 128, 32), splits="spec", populated=True)
    shared = tmp_path / "watershed" / "ocdbt" / "base"
    before, watershed = files_of(shared), world.supervoxels
    split_one(world)
    assert files_of(shared) == before
    assert world.splits is not None
    assert world.splits.folder == tmp_path.resolve() / "watershed" / "ocdbt" / world.table
    assert [name.partition("/")[0] for name in sorted(files_of(world.splits.folder))][0] == f"{world.table}_d"
    assert (world.supervoxels != watershed).any()
    np.testing.assert_array_equal(world.supervoxels_at(0), watershed)


REASONS = {
    "no store": "no OCDBT store",
    "one side": "no voxel next to one of the 2 seeds",
    "too early": "edits must be in order",
    "of others": "not of the object",
}


REASONS = {
    "no store": "no OCDBT store",
    "one side": "no voxel next to one of the 2 seeds",
    "too early": "edits must be in order",
    "of others": "not of the object",
}


@pytest.mark.parametrize("how", list(REASONS))
def test_a_split_that_is_impossible_changes_nothing(tmp_path: Path, how: str) -> None:
    world = make_world(tmp_path, (128, 128, 32), splits=None if how == "no store" else "spec")
    supervoxel = int(world.graph.supervoxels[-1])
    at = np.argwhere(world.supervoxels == supervoxel) + world.voxel_offset
    before, operations = world.mips, world.graph.history.operations
    seeds = at[[0, 0]] if how == "one side" else at[[0, -1]]
    options: dict[str, Any] = {"too early": {"timestamp": 1.0}, "of others": {"together": [5]}}.get(how, {})
    with pytest.raises(GraphError, match=REASONS[how]):
        world.split_supervoxel(supervoxel, seeds, **options)
    assert world.mips is before
    assert world.graph.history.operations == operations
    assert supervoxel in world.graph.supervoxels
