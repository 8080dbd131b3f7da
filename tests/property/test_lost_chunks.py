"""What tables prove of a box is never more than it holds, so that no box that is empty is taken for a lost one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.arrays.lost_chunks import _least_voxels
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.versions.tables.supervoxel_table import ROW, rows_of

SHAPE, ORIGIN = (9, 8, 7), Vec3(100, -20, 3)
spans = [st.tuples(st.integers(0, size - 1), st.integers(1, size)) for size in SHAPE]


@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 1), st.tuples(*spans))
def test_no_more_voxels_are_proven_than_there_are(
    seed: int, ids: int, empty: float, box: tuple[tuple[int, int], ...]
) -> None:
    random = np.random.default_rng(seed)
    voxels = random.integers(1, ids + 1, SHAPE).astype(np.uint64) + np.uint64(2**53)
    voxels[random.random(SHAPE) < empty] = 0
    start = Vec3.of(low for low, _ in box)
    place = VoxelGrid(start + ORIGIN, Vec3.of(size for _, size in box), (8.0, 8.0, 40.0))
    rows = rows_of(np.asfortranarray(voxels), ORIGIN)
    there = voxels[tuple(slice(low, low + size) for low, size in box)]
    inside = np.array([np.count_nonzero(there == one) for one in rows["supervoxel"]])
    least, is_near = _least_voxels({name: rows[name] for name in ROW.names or ()}, place)
    assert (least <= inside).all()
    whole = inside == rows["voxels"]
    assert (least[whole & (inside > 0)] > 0).all()
    assert is_near or not inside.any()
