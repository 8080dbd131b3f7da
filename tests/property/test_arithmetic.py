"""Grids, index maps and block plans agree with exact fractions and with brute force."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.geometry.block_plan import SourceChunks, plan_blocks
from imagery_dask.geometry.grid import VoxelGrid, edge_at_or_after, nearest_index, ratio
from imagery_dask.kernels import linear_taps

steps = st.fractions(min_value=Fraction(1, 100), max_value=100, max_denominator=10_000)
# Ratios of resolutions with many decimals, whose products overflow 64 bits.
long_steps = st.fractions(min_value=Fraction(1, 1000), max_value=1000, max_denominator=10**15)
starts = st.integers(-(10**7), 10**7)
nanometres = st.sampled_from([1.0, 4.0, 4.3, 8.0, 8.6, 9.7, 16.0, 33.3, 40.0, 45.0])


def exact_index(target: int, step: Fraction) -> int:
    return math.floor((Fraction(target) + Fraction(1, 2)) * step)


@given(start=starts, size=st.integers(0, 40), step=st.one_of(steps, long_steps))
def test_nearest_index_is_exact(start: int, size: int, step: Fraction) -> None:
    index = nearest_index(start, size, step)
    assert index.dtype == np.int64
    assert index.tolist() == [exact_index(t, step) for t in range(start, start + size)]


@given(start=st.integers(2**55, 2**60), step=long_steps.filter(lambda step: step <= 4))
def test_nearest_index_does_not_overflow(start: int, step: Fraction) -> None:
    assert nearest_index(start, 3, step).tolist() == [exact_index(t, step) for t in range(start, start + 3)]
    assert nearest_index(-start, 3, step).tolist() == [exact_index(t, step) for t in range(-start, -start + 3)]


@given(start=starts, step=steps)
def test_nearest_index_is_monotone_and_skips_evenly(start: int, step: Fraction) -> None:
    moves = np.diff(nearest_index(start, 60, step))
    assert moves.min() >= math.floor(step)
    assert moves.max() <= math.ceil(step)


@given(edge=starts, step=st.one_of(steps, long_steps))
def test_edge_at_or_after_is_the_inverse_of_nearest_index(edge: int, step: Fraction) -> None:
    first = edge_at_or_after(edge, step)
    assert exact_index(first, step) >= edge
    assert exact_index(first - 1, step) < edge


@given(start=starts, size=st.integers(1, 30), step=st.one_of(steps, long_steps))
def test_linear_taps_are_exact(start: int, size: int, step: Fraction) -> None:
    left, weight = linear_taps(start, size, step)
    positions = [(Fraction(t) + Fraction(1, 2)) * step - Fraction(1, 2) for t in range(start, start + size)]
    assert left.tolist() == [math.floor(position) for position in positions]
    rest = [float(position - math.floor(position)) for position in positions]
    np.testing.assert_allclose(weight, rest, rtol=0, atol=1e-15)
    assert (weight < 1).all()


@given(a=nanometres, b=nanometres, c=nanometres)
def test_ratios_treat_floats_as_decimal_numbers(a: float, b: float, c: float) -> None:
    assert ratio(a, b) == Fraction(str(a)) / Fraction(str(b))
    assert ratio(a, b) * ratio(b, c) == ratio(a, c)


@st.composite
def grids(draw: st.DrawFn) -> VoxelGrid:
    start = draw(st.tuples(*[st.integers(-200, 200)] * 3))
    shape = draw(st.tuples(*[st.integers(0, 30)] * 3))
    return VoxelGrid(start, shape, draw(st.tuples(nanometres, nanometres, nanometres)))


@given(grid=grids(), block=st.tuples(*[st.integers(1, 12)] * 3))
def test_tiles_partition_a_grid(grid: VoxelGrid, block: tuple[int, int, int]) -> None:
    seen = np.zeros(grid.shape, dtype=np.uint8)
    order = []
    for tile in grid.tiles(block):
        assert tile.resolution_nm == grid.resolution_nm
        assert all(1 <= n <= b for n, b in zip(tile.shape, block, strict=True))
        seen[tuple(slice(a - o, b - o) for a, b, o in zip(tile.start, tile.stop, grid.start, strict=True))] += 1
        order.append(tile.start[::-1])
    assert (seen == 1).all()
    assert order == sorted(order)  # x fastest


@given(grid=grids(), source_nm=st.tuples(nanometres, nanometres, nanometres))
def test_a_box_at_another_resolution_is_the_smallest_that_holds_the_voxels(
    grid: VoxelGrid, source_nm: tuple[float, float, float]
) -> None:
    box = grid.at(source_nm)
    assert box.resolution_nm == source_nm
    for axis in range(3):
        step = ratio(grid.resolution_nm[axis], source_nm[axis])
        needed = [exact_index(t, step) for t in range(grid.start[axis], grid.stop[axis])]
        if needed:
            assert (box.start[axis], box.stop[axis]) == (needed[0], needed[-1] + 1)
        else:
            assert box.shape[axis] == 0


@given(first=grids(), shift=st.tuples(*[st.integers(-35, 35)] * 3), shape=st.tuples(*[st.integers(0, 30)] * 3))
def test_an_intersection_holds_the_common_voxels(
    first: VoxelGrid, shift: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    second = VoxelGrid([a + b for a, b in zip(first.start, shift, strict=True)], shape, first.resolution_nm)  # type: ignore[arg-type]
    common = first.intersection(second)
    sizes = []
    for axis in range(3):
        ours = set(range(first.start[axis], first.stop[axis])) & set(range(second.start[axis], second.stop[axis]))
        assert common.shape[axis] == len(ours)
        assert not ours or common.start[axis] == min(ours)
        sizes.append(len(ours))
    assert common.size == math.prod(sizes)
    assert first.contains(common)
    assert first.contains(second) == (second.size == 0 or sizes == list(second.shape))


@given(grid=grids())
def test_grids_survive_pickling_and_conversion_to_corners(grid: VoxelGrid) -> None:
    copy = pickle.loads(pickle.dumps(grid))
    assert copy == grid
    assert hash(copy) == hash(grid)
    assert VoxelGrid.between(grid.start, grid.stop, grid.resolution_nm) == grid
    for axis in range(3):
        centres = grid.centres_nm(axis)
        assert centres.shape == (grid.shape[axis],)
        if len(centres):
            assert centres[0] == pytest.approx(grid.translation_nm[axis], rel=1e-12, abs=1e-9)
            assert centres[-1] == pytest.approx((grid.stop[axis] - 0.5) * grid.resolution_nm[axis], rel=1e-12, abs=1e-9)


source_chunks = st.one_of(
    st.none(),
    st.integers(1, 40).flatmap(lambda size: st.builds(SourceChunks, st.just(size), st.integers(0, size - 1))),
)


@given(
    shape=st.tuples(*[st.integers(1, 150)] * 3),
    chunks=st.tuples(*[st.integers(1, 48)] * 3),
    sources=st.tuples(source_chunks, source_chunks, source_chunks),
    voxels=st.integers(1, 10**6),
)
def test_planned_blocks_cut_no_chunk_and_are_bounded(
    shape: tuple[int, int, int],
    chunks: tuple[int, int, int],
    sources: tuple[SourceChunks | None, SourceChunks | None, SourceChunks | None],
    voxels: int,
) -> None:
    plan = plan_blocks(shape, chunks, sources, voxels)
    for axis in range(3):
        edges = plan.edges[axis]
        assert edges[0] == 0
        assert edges[-1] == shape[axis]
        assert all(a < b for a, b in pairwise(edges))
        # No output chunk is divided between two blocks.
        assert all(edge % chunks[axis] == 0 for edge in edges[1:-1])
        source = sources[axis]
        if plan.reads_once[axis] and source is not None:
            cut = {edge for edge in edges[1:-1] if (edge - source.phase) % source.size}
            assert not cut, "an edge between blocks cuts a storage chunk"
    one_chunk = math.prod(min(c, n) for c, n in zip(chunks, shape, strict=True))
    assert math.prod(plan.largest) <= max(one_chunk, 8 * voxels)
    assert plan.largest == tuple(max(b - a for a, b in pairwise(edges)) for edges in plan.edges)


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    chunks=st.tuples(*[st.integers(1, 5)] * 3),
    sources=st.tuples(source_chunks, source_chunks, source_chunks),
)
def test_planned_blocks_partition_the_region(
    shape: tuple[int, int, int],
    chunks: tuple[int, int, int],
    sources: tuple[SourceChunks | None, SourceChunks | None, SourceChunks | None],
) -> None:
    plan = plan_blocks(shape, chunks, sources, 30)
    seen = np.zeros(shape, dtype=np.uint8)
    indices = []
    for index, region in plan:
        seen[region] += 1
        indices.append(index)
    assert (seen == 1).all()
    assert len(plan) == len(indices) == len(set(indices))


@given(chunk=st.integers(1, 64), size=st.integers(1, 64), phase=st.integers(0, 63), count=st.integers(1, 300))
def test_chunks_are_read_once_wherever_the_grids_have_a_common_edge(
    chunk: int, size: int, phase: int, count: int
) -> None:
    """With blocks of unlimited size, chunks are read twice only if the grids have no common edge."""
    source = SourceChunks(size, phase % size)
    plan = plan_blocks((count, 1, 1), (chunk, 1, 1), (source, None, None), 10**6)
    common = any((edge - source.phase) % size == 0 for edge in range(0, math.lcm(chunk, size), chunk))
    assert plan.reads_once[0] >= common
