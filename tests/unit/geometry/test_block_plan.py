"""`plan_blocks`: plans with known answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from imagery_dask.geometry.block_plan import BlockPlan, SourceChunks, plan_blocks


def edges_along_x(size: int, chunk: int, source: SourceChunks | None, voxels: int) -> tuple[tuple[int, ...], bool]:
    plan = plan_blocks((size, 1, 1), (chunk, 1, 1), (source, SourceChunks(1), SourceChunks(1)), voxels)
    return plan.edges[0], plan.reads_once[0]


@pytest.mark.parametrize(
    ("size", "chunk", "source", "voxels", "edges", "once"),
    [
        # Grids with common edges: blocks of one chunk, of two chunks, and of the whole axis.
        (300, 128, SourceChunks(64), 128, (0, 128, 256, 300), True),
        (300, 64, SourceChunks(64), 128, (0, 128, 256, 300), True),
        (300, 64, SourceChunks(64), 10**6, (0, 300), True),
        # A common edge every 192 voxels.
        (600, 64, SourceChunks(96), 64, (0, 192, 384, 576, 600), True),
        # The first common edge is at 64, further ones every 128 voxels.
        (400, 64, SourceChunks(128, 64), 100, (0, 64, 192, 320, 400), True),
        # Storage chunks with an offset of 3 have no common edge with output chunks.
        (256, 64, SourceChunks(64, 3), 64, (0, 64, 128, 192, 256), False),
        (60, 64, SourceChunks(64, 3), 64, (0, 60), True),
        (256, 64, None, 64, (0, 64, 128, 192, 256), False),
        # A common edge every 64 * 61 voxels, which exceeds 8 times the block of 64 voxels.
        (4000, 64, SourceChunks(61), 64, tuple(range(0, 4000, 64)) + (4000,), False),
        (4000, 64, SourceChunks(61), 500, (0, 3904, 4000), True),
    ],
)
def test_edges_of_blocks_are_common_edges_of_both_grids(
    size: int, chunk: int, source: Any, voxels: int, edges: tuple[int, ...], once: bool
) -> None:
    assert edges_along_x(size, chunk, source, voxels) == (edges, once)


def test_a_block_grows_along_its_shortest_axis_first() -> None:
    plan = plan_blocks((512, 512, 512), (64, 64, 64), [SourceChunks(64)] * 3, 128**3)
    assert plan.largest == (128, 128, 128)
    assert len(plan) == 64
    plan = plan_blocks((512, 512, 40), (64, 64, 8), [SourceChunks(64), SourceChunks(64), SourceChunks(8)], 64**3)
    assert plan.largest == (64, 64, 40)


def test_an_output_chunk_is_never_divided() -> None:
    plan = plan_blocks((256, 256, 256), (128, 128, 128), [SourceChunks(32)] * 3, 1)
    assert plan.largest == (128, 128, 128)
    assert len(plan) == 8


def test_a_region_smaller_than_a_chunk_is_one_block() -> None:
    plan = plan_blocks((3, 2, 1), (128, 128, 128), [None] * 3, 1)
    assert list(plan) == [((0, 0, 0), (slice(0, 3), slice(0, 2), slice(0, 1)))]
    assert plan.reads_once == (True, True, True)


def test_blocks_are_listed_x_fastest() -> None:
    plan = BlockPlan(((0, 2, 3), (0, 1), (0, 4, 8)), (True, True, True))
    assert [index for index, _ in plan] == [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1)]
    assert [region[0] for _, region in plan] == [slice(0, 2), slice(2, 3)] * 2
    assert len(plan) == 4


def test_listing_blocks_is_lazy() -> None:
    """The length and the first block of a plan of 10**12 blocks are known at once."""
    edges = tuple(range(10**4 + 1))
    plan = BlockPlan((edges, edges, edges), (True, True, True))
    assert len(plan) == 10**12
    assert next(iter(plan)) == ((0, 0, 0), (slice(0, 1), slice(0, 1), slice(0, 1)))


def test_plans_are_frozen_and_compare_by_value() -> None:
    plan = plan_blocks((8, 8, 8), (4, 4, 4), [SourceChunks(4)] * 3, 64)
    assert plan == plan_blocks((8, 8, 8), (4, 4, 4), [SourceChunks(4)] * 3, 64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.edges = ((0, 8),) * 3  # type: ignore[misc]
