"""Places of chunks in shards are those of CloudVolume, for any grid and any sharding."""

from __future__ import annotations

from typing import Any

import numpy as np
from cloudvolume.datasource.precomputed.common import compressed_morton_code
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.precomputed.shards import ShardedChunks, morton_codes
from imagery_dask.sources.requests.transport import Transport

counts = st.tuples(*[st.integers(1, 2**n) for n in (21, 20, 18)])
specifications = st.fixed_dictionaries(
    {
        "@type": st.just("neuroglancer_uint64_sharded_v1"),
        "preshift_bits": st.integers(0, 63),
        "hash": st.sampled_from(["identity", "murmurhash3_x86_128"]),
        "minishard_bits": st.integers(0, 24),
        "shard_bits": st.integers(0, 40),
        "minishard_index_encoding": st.just("raw"),
        "data_encoding": st.just("raw"),
    }
)


@given(counts, st.data())
def test_codes_of_chunks_are_those_of_cloudvolume(counts: tuple[int, int, int], data: Any) -> None:
    cells = data.draw(st.lists(st.tuples(*[st.integers(0, n - 1) for n in counts]), min_size=1, max_size=5))
    expected = compressed_morton_code(np.array(cells), counts)
    assert morton_codes([Vec3.of(cell) for cell in cells], Vec3.of(counts)) == expected.tolist()


@given(specifications, st.integers(0, 2**64 - 1))
def test_chunks_are_in_the_minishards_of_cloudvolume(sharding: dict[str, Any], code: int) -> None:
    chunks = ShardedChunks(Transport("file:///none"), "mip", sharding, Vec3(2, 2, 2), 100)
    shard, minishard = chunks._minishard_of(code)
    expected = ShardingSpecification.from_dict(sharding).compute_shard_location(code)
    assert (chunks._file(shard), minishard) == (f"mip/{expected.shard_number}.shard", int(expected.minishard_number))
