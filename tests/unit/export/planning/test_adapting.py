"""Threads and block sizes follow from what sample blocks took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.export.planning import adapting
from imagery_dask.export.planning.adapting import LONGEST_S, adapted_to, smaller_block, waiting_of
from imagery_dask.export.planning.sampling import Sample
from imagery_dask.sources import ReadCounts

MIB = 2**20


def sample(
    seconds: float, cpu: float = 0.0, queued: float = 0.0, size: int = 32 * MIB, volume: str = "image"
) -> Sample:
    counts = ReadCounts(requests=10)
    return Sample(0, volume, seconds, size, size, 1, counts, 0, cpu, queued, size)


@pytest.mark.parametrize(
    ("seconds", "cpu", "queued", "waiting"),
    [(10, 2, 0, 0.8), (10, 10, 0, 0), (10, 2, 8, 0), (10, 2, 6, 0.5), (1, 3, 0, 0), (0, 0, 0, 0), (5, 0, 5, 0)],
)
def test_waiting_is_time_without_a_core_that_was_free(
    seconds: float, cpu: float, queued: float, waiting: float
) -> None:
    assert waiting_of([sample(seconds, cpu, queued)]) == waiting


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1)), min_size=1, max_size=5))
def test_waiting_is_a_fraction(times: list[tuple[float, float, float]]) -> None:
    assert 0 <= waiting_of([sample(seconds, cpu, queued * seconds) for seconds, cpu, queued in times]) <= 1


@pytest.mark.parametrize(("cpu", "threads"), [(10.0, 2), (6.0, 3), (2.0, 8), (0.1, 8)])
def test_threads_hide_the_waits_of_others(monkeypatch: pytest.MonkeyPatch, cpu: float, threads: int) -> None:
    monkeypatch.setattr(adapting, "cores", lambda: 2)
    adapted = adapted_to([sample(10, cpu)])
    assert (adapted.cores, adapted.threads, adapted.slow_block_seconds) == (2, threads, None)
    rows = dict(adapted.rows())
    assert rows["threads"].startswith(f"{threads} on 2 cores: blocks wait {adapted.waiting:.0%} of their time")
    assert rows["a block"] == "10 s in one thread, 33.6 MB, 10 requests to the source"


@given(st.floats(0.001, 1e5), st.integers(1, 2**31))
def test_only_blocks_that_take_minutes_become_smaller(seconds: float, size: int) -> None:
    smaller = smaller_block([sample(seconds, size=size)])
    assert (smaller is None) == (seconds <= LONGEST_S)
    if smaller is not None and smaller > MIB:
        assert smaller < size
        assert seconds * smaller / size <= LONGEST_S / 2 * 1.001


def test_the_slowest_volume_decides_the_size() -> None:
    fast, slow = sample(0.1), sample(120.0, volume="segmentation")
    assert smaller_block([fast, fast, slow]) == 8 * MIB
    assert smaller_block([slow, sample(0.0, volume="segmentation")]) is None
    assert "of the usual size it took 2 min" in dict(adapted_to([fast], [slow]).rows())["a block"]
