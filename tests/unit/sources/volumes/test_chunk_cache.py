"""The cache keeps the arrays that were used last, and no more bytes than it may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.settings import Configure

from imagery_dask.sources.volumes import chunk_cache
from imagery_dask.sources.volumes.chunk_cache import ChunkCache, set_cache_bytes


@given(
    most=st.integers(0, 40),
    calls=st.lists(st.tuples(st.sampled_from(["get", "put", "resize"]), st.integers(0, 5), st.integers(0, 20))),
)
def test_what_was_used_last_is_kept(most: int, calls: list[tuple[str, int, int]]) -> None:
    cache, model, limit = ChunkCache(most), {}, most
    for call, key, size in calls:
        if call == "get":
            kept = cache.get(key)
            assert (None if kept is None else kept.nbytes) == model.get(key)
            if kept is not None:
                model[key] = model.pop(key)
        elif call == "put" and size <= limit:
            cache.put(key, np.zeros(size, np.uint8))
            model.pop(key, None)
            model[key] = size
        elif call == "resize":
            cache.most = limit = size
        while sum(model.values()) > limit:
            del model[next(iter(model))]
        assert cache.bytes == sum(model.values()) <= limit


def test_an_array_larger_than_the_cache_is_not_kept() -> None:
    cache = ChunkCache(10)
    cache.put("small", np.zeros(10, np.uint8))
    cache.put("large", np.zeros(11, np.uint8))
    assert cache.get("large") is None
    assert cache.get("small") is not None


def test_kept_arrays_are_read_only() -> None:
    cache, array = ChunkCache(10), np.zeros(10, np.uint8)
    cache.put("a", array)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize(("given_size", "size"), [(1000, 1000), ("1kB", 1000), ("2 MiB", 2**21), (0, 0), ("0", 0)])
def test_sizes(configure: Configure, given_size: Any, size: int) -> None:
    set_cache_bytes(given_size)
    kept = chunk_cache.chunk_cache()
    assert (0 if kept is None else kept.most) == size
    chunk_cache._forget()
    configure("cache_bytes", given_size)
    kept = chunk_cache.chunk_cache()
    assert (0 if kept is None else kept.most) == size


@pytest.mark.parametrize("size", [-1, "much", True, None, "-1"])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(ValueError, match="cache_bytes must be a size such as 500MB"):
        set_cache_bytes(size)


def test_the_default_is_bounded() -> None:
    kept = chunk_cache.chunk_cache()
    assert kept is not None
    assert 0 < kept.most <= 2**28
