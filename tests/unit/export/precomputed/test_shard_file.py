"""A shard's file is the same in whichever order its chunks come, and read by CloudVolume."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, synthesize_shard_file

from imagery_dask.export.precomputed import shard_file
from imagery_dask.export.precomputed.shard_file import ShardFile
from imagery_dask.export.precomputed.sharding import Sharding

CODES = [2**60 + code for code in (0, 1, 2, 3, 4, 9, 10, 15)]


def chunks() -> dict[int, bytes]:
    rng = np.random.default_rng(2)
    return {code: rng.bytes(1 + code % 7 * 100) for code in CODES}


def joined(sharding: Sharding, codes: list[int], folder: Path | None = None) -> bytes:
    contents = chunks()
    with ShardFile(sharding, folder) as shard:
        for code in codes:
            shard.add(code, contents[code])
        return b"".join(shard.pieces())


@pytest.mark.parametrize("held", [0, 2**20])
@pytest.mark.parametrize("minishard_bits", [0, 1, 2])
def test_the_file_is_that_of_cloudvolume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, minishard_bits: int
) -> None:
    monkeypatch.setattr(shard_file, "HELD_BYTES", held)
    sharding = Sharding(preshift_bits=4 - minishard_bits, minishard_bits=minishard_bits, shard_bits=60)
    theirs: Any = synthesize_shard_file(ShardingSpecification.from_dict(sharding.entry), chunks())
    assert joined(sharding, CODES, tmp_path) == theirs
    assert joined(sharding, CODES[::-1], tmp_path) == theirs
    assert list(tmp_path.iterdir()) == []


def test_a_large_shard_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    sharding = Sharding(preshift_bits=4, minishard_bits=0, shard_bits=60)
    whole = joined(sharding, CODES)
    monkeypatch.setattr(shard_file, "COPIED_AT_ONCE", 300)
    with ShardFile(sharding, None) as shard:
        for code, content in chunks().items():
            shard.add(code, content)
        pieces = list(shard.pieces())
    assert b"".join(pieces) == whole
    assert len(pieces) > 4


def test_a_chunk_is_written_once() -> None:
    with ShardFile(Sharding(preshift_bits=1, minishard_bits=0, shard_bits=0), None) as shard:
        shard.add(1, b"once")
        with pytest.raises(ValueError, match="Chunk 1 of the shard was written twice"):
            shard.add(1, b"again")


def test_chunks_follow_their_ids() -> None:
    sharding = Sharding(preshift_bits=2, minishard_bits=2, shard_bits=60)
    content, stored = joined(sharding, CODES[::-1]), chunks()
    places = [content.index(stored[code]) for code in CODES if len(stored[code]) > 1]
    assert all(first < second for first, second in pairwise(places))
