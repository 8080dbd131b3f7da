"""Rows of supervoxels: voxels and boxes, for every block, whichever way a volume is cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery_dask.geometry.grid import start_of, stop_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.versions.tables.supervoxel_table import BOX, graph_blocks, merged, rows_of

sizes = st.tuples(*[st.integers(1, 12)] * 3)


@settings(max_examples=50, deadline=None)
@given(sizes, sizes, st.integers(1, 500), st.integers(0, 2**32 - 1), st.data())
def test_rows_of_blocks_add_up_to_those_of_the_volume(shape, chunk, voxels, seed, data) -> None:
    random = np.random.default_rng(seed)
    volume = random.integers(0, 6, shape).astype(np.uint64)
    volume[volume > 0] += np.uint64(2**63 + 2**54)
    phase = tuple(data.draw(st.integers(0, size - 1)) for size in chunk)
    start = Vec3(-5, 7, 100)
    blocks = graph_blocks(Vec3.of(shape), Vec3.of(chunk), Vec3.of(phase), voxels)
    seen = np.zeros(shape, int)
    parts = []
    for _, region in blocks:
        seen[region] += 1
        parts.append(rows_of(np.asfortranarray(volume[region]), start + start_of(region)))
        for axis in range(3):  # edges of blocks are edges of graph chunks
            for edge in (start_of(region)[axis], stop_of(region)[axis]):
                assert edge in (0, shape[axis]) or (edge - phase[axis]) % chunk[axis] == 0
    assert (seen == 1).all()
    rows = merged(parts)
    ids = np.unique(volume[volume > 0])
    np.testing.assert_array_equal(rows["supervoxel"], ids)
    for row in rows:
        at = np.argwhere(volume == row["supervoxel"])
        assert row["voxels"] == len(at)
        low, high = at.min(axis=0) + start, at.max(axis=0) + 1 + start
        assert [int(row[name]) for name in BOX] == [*low.tolist(), *high.tolist()]


def test_an_empty_block_has_no_rows() -> None:
    assert len(rows_of(np.zeros((4, 4, 4), np.uint64), Vec3(0, 0, 0))) == 0
    assert len(merged([])) == 0
