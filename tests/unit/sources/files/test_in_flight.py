"""Requests in flight follow the latency of a server, and become fewer when it is overloaded."""

from __future__ import annotations

import time

import pytest

from imagery_dask.sources.files.in_flight import FEWEST, MOST, Link


@pytest.mark.parametrize(
    ("latency_s", "in_flight"), [(0.0001, FEWEST), (0.002, FEWEST), (0.01, 40), (0.02, 80), (0.064, 256), (0.25, MOST)]
)
def test_requests_in_flight_follow_the_latency(latency_s: float, in_flight: int) -> None:
    link = Link()
    link.answered(latency_s)
    assert link.in_flight == in_flight


def test_one_slow_answer_among_fast_ones_changes_little() -> None:
    link = Link()
    for latency_s in (0.0005, 0.02, 0.0005):
        link.answered(latency_s)
    assert link.in_flight == FEWEST
    for _ in range(50):
        link.answered(0.02)
    assert 70 < link.in_flight <= 80
    link.answered(5.0, is_exact=False)  # this process was busy
    assert 70 < link.in_flight <= 80


def test_an_overloaded_server_gets_half_and_slowly_more() -> None:
    link = Link()
    link.answered(1.0)
    sent = time.monotonic()
    for _ in range(100):  # all of one burst
        link.overloaded(sent)
    assert link.in_flight == MOST // 2
    for _ in range(20):
        link.overloaded(time.monotonic() + 1)
    assert link.in_flight == 1
    for _ in range(10):
        link.answered(1.0)
    assert 3 < link.in_flight < 6
    for _ in range(100_000):
        link.answered(1.0)
    assert link.in_flight == MOST


def test_reads_share_the_requests_and_large_files_are_fewer() -> None:
    link = Link()
    link.answered(1.0)
    with link.used():
        assert link.share(1) == MOST
        with link.used():
            assert link.share(1) == MOST // 2
        assert (link.share(2**26), link.share(2**31)) == (16, 1)
    assert link.share(1) == MOST
