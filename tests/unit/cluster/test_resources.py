"""Cores and free memory are those of this process; threads follow from how long blocks wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.cluster import cores, free_memory, resources, threads_of_cores
from imagery_dask.cluster.resources import THREADS_PER_CORE


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("3000\n", "1000\n", 2000), ("1000", "1500", 1), ("max\n", "1000\n", None), ("9223372036854771712", "0", None)],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, free: int | None
) -> None:
    (tmp_path / "limit").write_text(limit)
    (tmp_path / "used").write_text(used)
    absent = (str(tmp_path / "absent"), str(tmp_path / "absent"))
    monkeypatch.setattr(resources, "CONTROL_GROUPS", (absent, (str(tmp_path / "limit"), str(tmp_path / "used"))))
    found = free_memory()
    assert found == free if free is not None else found > 2**20


def test_cores_are_those_that_this_process_may_use() -> None:
    own = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(own)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, own)
    assert 1 <= cores() <= len(own)


@given(st.integers(1, 256), st.floats(0, 1), st.floats(0, 1))
def test_threads_follow_the_waits_of_blocks(count: int, one: float, other: float) -> None:
    threads = threads_of_cores(count, one)
    assert count <= threads <= THREADS_PER_CORE * count
    assert threads_of_cores(count, 0.0) == count
    if one < other:
        assert threads <= threads_of_cores(count, other)
