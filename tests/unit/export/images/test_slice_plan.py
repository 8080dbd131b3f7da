"""Plans of slice exports: slabs and tiles cut no chunk and fit into memory."""

from __future__ import annotations

import pytest

from imagery_dask.export.images import slice_plan


def test_edges_of_slabs_and_tiles_are_edges_of_chunks() -> None:
    edges = ([0, 30, 94, 158, 200], [0, 64, 100], [0, 8, 24, 40, 45])
    assert slice_plan.plan_slices(edges, 2, None, 1).edges == ((0, 200), (0, 100), (0, 8, 24, 40, 45))
    assert slice_plan.plan_slices(edges, 2, None, 200 * 100 * 30).edges[2] == (0, 24, 45)
    assert slice_plan.plan_slices(edges, 2, 128, 1).edges[:2] == ((0, 94, 200), (0, 100))
    # Tiles that are smaller than a chunk cut it into equal parts.
    assert slice_plan.plan_slices(edges, 2, 40, 1).edges[1] == (0, 32, 64, 100)
    assert slice_plan.plan_slices(edges, 0, None, 1).edges == ((0, 30, 94, 158, 200), (0, 100), (0, 45))


def test_a_slab_that_does_not_fit_is_refused_with_a_tile_that_does() -> None:
    edges = (range(0, 32_769, 64), range(0, 32_769, 64), range(0, 129, 64))
    memory = 4 * 10**9
    with pytest.raises(ValueError, match=r"32,768x32,768x64 voxels .* 206 GB .* 4 GB .* tile=4096 \(--tile\)"):
        slice_plan.refuse_too_large(slice_plan.plan_slices(edges, 2, None, 2**25), 2, 1, memory)
    slice_plan.refuse_too_large(slice_plan.plan_slices(edges, 2, 4096, 2**25), 2, 1, memory)
    slice_plan.refuse_too_large(slice_plan.plan_slices(edges, 2, None, 2**25), 2, 1, None)
