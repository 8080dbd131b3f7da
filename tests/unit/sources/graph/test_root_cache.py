"""The cache of roots in a process."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from imagery_dask.sources.graph.root_cache import RootCache

Ids = NDArray[np.uint64]


def ids(*values: int) -> Ids:
    return np.array(values, dtype=np.uint64)


def test_an_empty_cache_has_no_root() -> None:
    cache = RootCache()
    known, roots = cache.get(ids(1, 2**63, 2**64 - 1))
    assert (known.tolist(), roots.tolist(), len(cache)) == ([False] * 3, [0] * 3, 0)
    known, roots = cache.get(ids())
    assert (known.size, roots.size, roots.dtype) == (0, 0, np.uint64)


def test_roots_that_were_put_are_returned() -> None:
    cache = RootCache()
    cache.put(ids(3, 9), ids(30, 90))
    cache.put(ids(1, 5), ids(10, 50))
    known, roots = cache.get(ids(1, 2, 3, 9, 10))
    assert known.tolist() == [True, False, True, True, False]
    assert roots.tolist() == [10, 0, 30, 90, 0]
    cache.put(ids(), ids())
    assert len(cache) == 4


def test_ids_without_a_root_are_cached_too() -> None:
    cache = RootCache()
    cache.put(ids(7), ids(0))
    known, roots = cache.get(ids(7))
    assert (known.tolist(), roots.tolist()) == ([True], [0])


def test_ids_near_and_above_2_to_the_63_stay_apart() -> None:
    """As float64, also after arithmetic with int64, neighbours would be equal."""
    keys = ids(2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1)
    values = keys[::-1].copy()
    cache = RootCache()
    cache.put(keys[::2], values[::2])
    cache.put(keys[1::2], values[1::2])
    known, roots = cache.get(keys)
    assert known.all()
    assert roots.tolist() == values.tolist()
    known, _ = cache.get(ids(2**63 + 2, 2**64 - 3))
    assert not known.any()


def test_the_cache_stays_within_twice_its_capacity() -> None:
    cache = RootCache(capacity=100)
    for first in range(0, 10_000, 40):
        batch = np.arange(first, first + 40, dtype=np.uint64)
        cache.put(batch, batch + np.uint64(1))
        assert len(cache) <= 200 + 40
        known, roots = cache.get(batch)
        assert known.all()
        assert (roots == batch + np.uint64(1)).all()


def test_recently_used_roots_are_kept() -> None:
    cache = RootCache(capacity=10)
    cache.put(ids(1, 2), ids(10, 20))
    for number in range(100, 200):
        cache.put(ids(number), ids(1))
        assert cache.get(ids(1))[0].all()
    assert cache.get(ids(1))[1].tolist() == [10]
    assert not cache.get(ids(2))[0].any()


def test_a_batch_larger_than_the_cache_is_kept_until_the_next_batch() -> None:
    cache = RootCache(capacity=3)
    many = np.arange(1, 50, dtype=np.uint64)
    cache.put(many, many)
    assert cache.get(many)[0].all()


def test_changing_arguments_and_results_does_not_change_the_cache() -> None:
    cache = RootCache()
    keys, values = ids(1, 2), ids(10, 20)
    cache.put(keys, values)
    values[:] = 0
    cache.get(keys)[1][:] = 5
    assert cache.get(keys)[1].tolist() == [10, 20]


def test_concurrent_threads_get_correct_roots() -> None:
    cache, wrong = RootCache(capacity=500), []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        start.wait()
        for _ in range(150):
            keys = np.unique(random.integers(1, 3000, 60).astype(np.uint64))
            known, roots = cache.get(keys)
            wrong.extend(keys[known & (roots != keys * np.uint64(3))].tolist())
            cache.put(keys[~known], keys[~known] * np.uint64(3))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
