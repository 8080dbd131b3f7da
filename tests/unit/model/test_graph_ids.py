"""The ids of supervoxels by place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.chunkedgraph import ChunkedGraph
from imagery_dask.model.graph_ids import SupervoxelIds, id_ranges

NM = (8.0, 8.0, 40.0)
IDS = SupervoxelIds(8, 10)
CORNERS = st.tuples(*[st.integers(0, 400)] * 3)


def graph(origin: tuple[int, int, int] = (0, 0, 0), bits: int | None = 10) -> ChunkedGraph:
    return ChunkedGraph("https://h", "t", (64, 32, 16), origin, NM, 6, chunk_bits=bits)


@given(CORNERS, CORNERS, CORNERS)
def test_a_box_has_the_ids_of_the_graph_chunks_that_it_crosses(
    origin: tuple[int, int, int], offset: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    start = np.add(origin, offset)
    found = id_ranges(graph(origin), VoxelGrid.between(start.tolist(), (start + shape + 1).tolist(), NM))
    assert found is not None
    starts, stops = found
    low, high = np.array(offset) // (64, 32, 16), (np.array(offset) + shape) // (64, 32, 16)
    for index in (low, high, [low[0], high[1], high[2]]):
        chunk = IDS.chunk_id(index)
        assert ((starts <= chunk) & (chunk + 2**IDS.segment_bits <= stops)).any()
    ranges = (stops - starts) >> np.uint64(IDS.segment_bits)
    assert ranges.sum() == (high - low + 1).prod()
    assert (np.sort(starts) == starts).all()


def test_coarser_voxels_have_those_of_a_voxel_more() -> None:
    """A level may begin within a voxel of the graph: a box at the edge of a chunk has the ids of its neighbour."""
    nm = (16.0, 16.0, 40.0)
    found = id_ranges(graph((64, 32, 16)), VoxelGrid.between((64, 32, 32), (96, 48, 48), nm))
    assert found is not None
    starts, stops = found
    assert len(starts) == 3 * 3
    assert (stops - starts >> np.uint64(IDS.segment_bits) == 3).all()


@pytest.mark.parametrize(
    ("bits", "start"), [(None, (0, 0, 0)), (10, (-1, 0, 0)), (10, (64 * 1024 - 1, 0, 0))]
)  # fmt: skip
def test_places_that_ids_cannot_have_are_not_known(bits: int | None, start: tuple[int, int, int]) -> None:
    stop = [at + 2 for at in start]
    assert id_ranges(graph(bits=bits), VoxelGrid.between(start, stop, NM)) is None


def test_a_graph_is_the_same_without_bits() -> None:
    assert graph() == graph(bits=None)
    assert hash(graph()) == hash(graph(bits=None))
