from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.checking.stored_tasks import boxes_of
from imagery_dask.geometry.vec import Vec3

sizes = st.tuples(*[st.integers(1, 40)] * 3).map(Vec3.of)
counts = st.tuples(*[st.integers(1, 6)] * 3).map(Vec3.of)


@given(
    shape=st.tuples(*[st.integers(1, 300)] * 3).map(Vec3.of), chunk=sizes, per_file=counts, most=st.integers(1, 10**6)
)
def test_boxes_are_whole_files_and_pieces_are_whole_chunks(
    shape: Vec3[int], chunk: Vec3[int], per_file: Vec3[int], most: int
) -> None:
    file = chunk * per_file
    plan, piece = boxes_of(shape, chunk, file, 2, most)
    spans = [[part.stop - part.start for part in region] for _, region in plan]
    assert sum(math.prod(span) for span in spans) == shape.prod()
    whole = file.minimum(shape.ceil_div(chunk) * chunk)
    for axis in range(3):
        assert all(edge % whole[axis] == 0 for edge in plan.edges[axis][:-1])
    assert piece % chunk == (0, 0, 0)
    assert piece.prod() * 2 <= max(most, chunk.prod() * 2)
