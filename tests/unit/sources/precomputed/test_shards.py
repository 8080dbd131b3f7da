from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.precomputed.shards import morton_codes, neighbours

counts = st.tuples(*[st.integers(1, 9)] * 3).map(Vec3.of)


@given(counts=counts, preshift_bits=st.integers(0, 4), minishard_bits=st.integers(0, 4))
def test_a_shard_is_the_box_of_its_neighbours(counts: Vec3[int], preshift_bits: int, minishard_bits: int) -> None:
    sharding = {"preshift_bits": preshift_bits, "minishard_bits": minishard_bits, "hash": "identity"}
    box = neighbours(sharding, counts)
    cells = [Vec3.of(cell) for cell in itertools.product(*map(range, counts))]
    shards: dict[int, set[Vec3[int]]] = {}
    for cell, code in zip(cells, morton_codes(cells, counts), strict=True):
        shards.setdefault(code >> preshift_bits + minishard_bits, set()).add(cell // box)
    boxes = [of_shard for of_shard in shards.values() if len(of_shard) == 1]
    assert len(boxes) == len(shards) == len(set().union(*boxes))


@given(counts=counts, preshift_bits=st.integers(0, 4))
def test_chunks_of_a_hashed_shard_lie_together_by_their_preshift_bits(counts: Vec3[int], preshift_bits: int) -> None:
    hashed = {"preshift_bits": preshift_bits, "minishard_bits": 3, "hash": "murmurhash3_x86_128"}
    alone = {"preshift_bits": preshift_bits, "minishard_bits": 0, "hash": "identity"}
    assert neighbours(hashed, counts) == neighbours(alone, counts)
