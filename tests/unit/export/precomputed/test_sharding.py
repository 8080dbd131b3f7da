"""A shard is a box of chunks, and its place in the ids is that of the format."""

from __future__ import annotations

from typing import Any

import pytest
from cloudvolume.datasource.precomputed.common import compressed_morton_code
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.export.precomputed.sharding import Sharding, id_bits
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.volume_info import check_info

BITS = {"preshift_bits": 2, "minishard_bits": 1, "shard_bits": 40}


@given(st.tuples(*[st.integers(1, 12)] * 3), st.integers(0, 5), st.integers(0, 5), st.integers(0, 3))
def test_a_shard_is_the_box_of_chunks_that_cloudvolume_finds_in_it(counts: Any, low: int, mid: int, more: int) -> None:
    high = max(0, id_bits(counts) - low - mid) + more
    sharding = Sharding(preshift_bits=low, minishard_bits=mid, shard_bits=high)
    box = sharding.box(counts)
    theirs = ShardingSpecification.from_dict(sharding.entry)
    boxes: dict[str, set[Any]] = {}
    for cell in ((x, y, z) for x in range(counts[0]) for y in range(counts[1]) for z in range(counts[2])):
        code = int(compressed_morton_code(cell, counts))
        shard = theirs.compute_shard_location(code).shard_number
        assert sharding.file_of(code >> sharding.chunk_bits) == f"{shard}.shard"
        boxes.setdefault(shard, set()).add(Vec3.of(cell) // box)
    assert all(len(places) == 1 for places in boxes.values())
    assert len({place for places in boxes.values() for place in places}) == len(boxes)


def test_bits_that_would_put_far_chunks_into_one_shard_are_refused() -> None:
    sharding = Sharding(preshift_bits=3, minishard_bits=2, shard_bits=4)
    assert sharding.box((8, 8, 8)) == (4, 4, 2)
    with pytest.raises(ValueError, match="9 x 8 x 8 chunks have ids of 10 bits.*Choose shard_bits of 5"):
        sharding.box((9, 8, 8))


@given(st.tuples(*[st.integers(1, 2**18)] * 3), st.integers(1, 2**32), st.sampled_from([2**27, 2**30]))
def test_chosen_shards_fit_and_cover_the_mip(counts: Any, chunk_bytes: int, most: int) -> None:
    sharding = Sharding.chosen(counts, chunk_bytes, most, "raw")
    assert sharding.chunk_bits + sharding.shard_bits == id_bits(counts)
    assert sharding.chunk_bits == 0 or chunk_bytes << sharding.chunk_bits <= most
    assert sharding.preshift_bits <= 11
    sharding.box(counts)
    assert Sharding.from_entry(sharding.entry) == sharding


@pytest.mark.parametrize(
    ("chunk_bytes", "most", "bits"),
    [(2**21, 2**30, 9), (2**18, 2**30, 10), (2**15, 2**30, 12), (2**21, 2**27, 6), (2**40, 2**30, 0)],
)
def test_a_shard_has_a_thousand_chunks_or_what_fits(chunk_bytes: int, most: int, bits: int) -> None:
    assert Sharding.chosen((2**10, 2**10, 2**10), chunk_bytes, most, "gzip").chunk_bits == bits


def test_entries_are_read_as_an_info_has_them() -> None:
    assert Sharding.from_entry(BITS) == Sharding(**BITS)
    scale = {"key": "a", "size": [9, 9, 9], "resolution": [1, 1, 1], "chunk_sizes": [[4, 4, 4]], "encoding": "raw",
             "sharding": Sharding(**BITS).entry}  # fmt: skip
    info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale]}
    assert check_info("here", info)["scales"][0]["sharding"] == Sharding(**BITS).entry


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hash": "murmurhash3_x86_128"}, "hash must be 'identity', so that a shard is a box.*murmurhash"),
        ({"@type": "something"}, "@type must be 'neuroglancer_uint64_sharded_v1'; got 'something'"),
        ({"preshift_bits": -1}, "preshift_bits must be a whole number from 0 to 64; got -1"),
        ({"minishard_bits": 25}, "minishard_bits must be a whole number from 0 to 24; got 25"),
        ({"shard_bits": 1.5}, "shard_bits must be a whole number"),
        ({"shard_bits": 62}, "add up to 65, and an id has 64"),
        ({"data_encoding": "br"}, "data_encoding must be 'raw' or 'gzip'; got 'br'"),
        ({"bits": 3}, "sharding has 'bits'; its members are"),
    ],
)
def test_invalid_entries_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sharding.from_entry(BITS | changed)


def test_an_entry_without_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="sharding lacks minishard_bits and shard_bits"):
        Sharding.from_entry({"preshift_bits": 3})
