"""Which levels are made together depends on the region and the options, and leaves blocks for several threads."""

from __future__ import annotations

import math
from typing import Any

import pytest

from imagery_dask.export.multiscale.level_layout import lay_out
from imagery_dask.geometry.pyramid import pyramid

CHUNK = (128, 128, 128)
SHARD = (512, 512, 128)


def laid_out(shape: Any, shards: Any, **options: Any) -> tuple[list[Any], list[tuple[int, int]]]:
    """Return the shards of three levels, and the first and last level of each stage."""
    layouts, stages = lay_out(pyramid(shape, (8, 8, 40), (0, 0, 0), 3), CHUNK, shards, 1, **options)
    return [layout.shard for layout in layouts], [(stage.first, stage.last) for stage in stages]


def test_shards_that_are_whole_chunks_of_coarser_levels_make_these_too() -> None:
    assert laid_out((1024, 1024, 256), SHARD) == ([SHARD, (256, 256, 128), None], [(0, 2)])
    assert laid_out((8192, 8192, 256), SHARD) == ([SHARD, (256, 256, 128), None], [(0, 2)])


def test_shards_larger_than_blocks_do_not() -> None:
    """Shards of 256 MiB are wanted for few files; those of coarser levels would be small ones."""
    large = (1024, 1024, 256)
    assert laid_out((8192, 8192, 256), large) == ([large, large, large], [(0, 0), (1, 1), (2, 2)])


def test_version_0_1_made_levels_of_small_exports_apart() -> None:
    expected = [SHARD, SHARD, (256, 256, 128)]
    assert laid_out((1024, 1024, 256), SHARD, as_before=True) == (expected, [(0, 0), (1, 1), (2, 2)])


@pytest.mark.parametrize("depth", [16, 64, 128, 256, 1024])
def test_levels_made_together_leave_eight_blocks_or_small_ones(depth: int) -> None:
    levels = pyramid((1024, 1024, depth), (8, 8, 40), (0, 0, 0), 3)
    _, stages = lay_out(levels, CHUNK, None, 1)
    first = stages[0]
    blocks = levels[0].shape.ceil_div(first.unit).prod()
    assert first.last == 0 or blocks >= 8 or math.prod(first.unit.minimum(levels[0].shape)) <= 4 * 2**20
