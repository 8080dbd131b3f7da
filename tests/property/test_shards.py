"""Chunks are in shards where CloudVolume puts them, for any grid and any sharding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from cloudvolume.datasource.precomputed.common import compressed_morton_code
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification
from hypothesis import given, settings
from hypothesis import strategies as st
from support.http_server import FileServer

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


@st.composite
def stored(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a small grid, how it is sharded, and the chunks of it that are stored and wanted."""
    counts = draw(st.tuples(*[st.integers(1, 5)] * 3))
    cells = [Vec3.of(cell) for cell in np.ndindex(*counts)]
    some = st.lists(st.sampled_from(cells), unique=True)
    sharding = draw(specifications) | {
        "preshift_bits": draw(st.integers(0, 5)), "minishard_bits": draw(st.integers(0, 3)),
        "shard_bits": draw(st.integers(0, 4)), "minishard_index_encoding": draw(st.sampled_from(["raw", "gzip"])),
    }  # fmt: skip
    box = [slice(0, draw(st.integers(1, n))) for n in counts]
    boxed = [cell for cell in cells if all(at < part.stop for at, part in zip(cell, box, strict=True))]
    return {
        "counts": Vec3.of(counts), "sharding": sharding, "left_out": draw(some),
        "wanted": draw(st.one_of(st.just(cells), st.just(boxed), some)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Transport]]:
    """Return a folder, and what reads it from a server."""
    with FileServer(tmp_path_factory.mktemp("served")) as server:
        yield server.root, Transport(server.url)


@given(made=stored())
@settings(max_examples=40, deadline=None)
def test_chunks_of_a_server_are_those_of_its_shards(served: tuple[Path, Transport], made: dict[str, Any]) -> None:
    """Whether shards are read whole, because all of their chunks are wanted, or by ranges."""
    counts, sharding, wanted = made["counts"], made["sharding"], made["wanted"]
    cells = [Vec3.of(cell) for cell in np.ndindex(*counts)]
    specification = ShardingSpecification.from_dict(sharding)
    contents: dict[Vec3[int], bytes] = {}
    shards: dict[str, dict[int, bytes]] = {}
    for cell, code in zip(cells, morton_codes(cells, counts), strict=True):
        if cell not in made["left_out"]:
            contents[cell] = b"%d:" % code * (1 + code % 7)
            shards.setdefault(specification.compute_shard_location(code).shard_number, {})[code] = contents[cell]
    (root, transport), key = served, uuid4().hex
    (root / key).mkdir()
    for number, chunks in shards.items():
        (root / key / f"{number}.shard").write_bytes(specification.synthesize_shard(chunks))
    for expected_chunk in (1.0, math.inf):  # shards are small; or none is
        reader = ShardedChunks(transport, key, sharding, counts, 100, expected_chunk)
        for part in (wanted, cells[:1], wanted):  # with indices that are kept
            found = dict(reader.get_many(part))
            assert {cell: None if blob is None else bytes(blob.content) for cell, blob in found.items()} == {
                cell: contents.get(cell) for cell in part
            }
