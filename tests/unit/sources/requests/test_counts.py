"""Counts of reads: complete for a block, bounded for the sum of many blocks."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from imagery_dask.sources.requests.counts import (
    KEYS_KEPT,
    ReadCounts,
    active_counts,
    collect_counts,
    count_request,
    counting_into,
)


def missing(*names: str) -> ReadCounts:
    return ReadCounts(chunks=len(names), missing=len(names), missing_keys=list(names))


def test_the_reads_of_a_block_keep_every_missing_key() -> None:
    names = [f"chunk {number}" for number in range(10 * KEYS_KEPT)]
    with collect_counts() as block:
        with collect_counts() as inner:
            inner.include(missing(*names[:-1]))
        block.include(missing(names[-1]))
    assert block.missing_keys == names
    assert block.first(3) == names[:3]
    assert block.first(1000) == names
    assert pickle.loads(pickle.dumps(block)) == block


def test_the_sum_of_many_blocks_keeps_the_first_few() -> None:
    total = ReadCounts()
    for block in range(50):
        part = missing(*(f"{block} {number}" for number in range(7)))
        part.requests, part.retries = 9, 2
        total.add(part)
        assert len(part.missing_keys) == 7
    assert (total.missing, total.chunks, total.requests, total.retries) == (350, 350, 450, 100)
    assert len(total.missing_keys) == KEYS_KEPT
    assert total.first(8) == [*(f"0 {number}" for number in range(7)), "1 0"]


def test_chunks_that_may_be_refused_are_missing_and_counted_apart() -> None:
    block, total = ReadCounts(), ReadCounts()
    block.miss("a")
    for number in range(2 * KEYS_KEPT):
        block.miss(f"b {number}", refused_or_absent=True)
    assert (block.missing, block.refused_or_absent) == (2 * KEYS_KEPT + 1, 2 * KEYS_KEPT)
    assert block.missing_keys == ["a", *block.refused_or_absent_keys]
    total.add(block)
    total.add(block)
    assert (total.missing, total.refused_or_absent) == (4 * KEYS_KEPT + 2, 4 * KEYS_KEPT)
    assert len(total.refused_or_absent_keys) == KEYS_KEPT


def test_requests_are_counted_in_the_context_that_caused_them() -> None:
    count_request(repeated=False)  # without a collector, nothing is counted
    with ThreadPoolExecutor(4) as pool, collect_counts() as block:
        count_request(repeated=False)
        read = ReadCounts()
        with counting_into(read):
            for future in [pool.submit(copy_context().run, count_request, number % 5 == 0) for number in range(100)]:
                future.result()
        assert active_counts() is block
        assert pool.submit(active_counts).result() is None
    assert active_counts() is None
    assert (read.requests, read.retries) == (100, 20)
    assert (block.requests, block.retries) == (1, 0)
