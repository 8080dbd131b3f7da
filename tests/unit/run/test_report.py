"""Progress when stderr is no terminal: a line at intervals, none for short exports."""

from __future__ import annotations

import time

import pytest
from support.settings import Configure

from imagery_dask.run import RunReport
from imagery_dask.run.report import shown


def report(done: int, **values: int) -> RunReport:
    return RunReport(400, done=done, seconds=10.0, written_bytes=done * 10**6, **values)


def test_short_exports_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with shown(True, 400) as show:
        assert show is not None
        show(report(400))
    assert capfd.readouterr() == ("", "")


def test_lines_have_progress_speed_and_problems(capfd: pytest.CaptureFixture[str], configure: Configure) -> None:
    configure("run.progress_line_s", 0.05)
    with shown(True, 400) as show:
        assert show is not None
        for done in range(100, 104):
            show(report(done, before=90, before_bytes=90 * 10**6))
        time.sleep(0.06)
        one = report(120, before=100, before_bytes=100 * 10**6, repeats=2, failures=1)
        one.counts.missing = 3
        show(one)
        show(report(399))
    out, error = capfd.readouterr()
    first, last = (line.partition("  ")[2] for line in error.splitlines())
    assert out == ""
    assert first == (
        "120 of 400 blocks (30.0%), 2.0 MB/s, about 2 min 20 s left, 3 chunks missing, 2 repeats, 1 failed"
    )
    assert last.startswith("399 of 400 blocks (99.7%), 39.9 MB/s")


def test_chunks_that_may_be_refused_are_named_apart() -> None:
    one = report(120, repeats=2)
    one.counts.missing = 3
    assert "refused" not in repr(one)
    one.counts.refused_or_absent = 2
    one.counts_of["image"] = one.counts
    assert "3 chunks missing, 2 of these refused or absent, 2 repeats" in repr(one)
    assert "of these, refused or absent" in one._repr_html_()


def test_the_last_line_is_printed_once_also_after_an_interrupt(
    capfd: pytest.CaptureFixture[str], configure: Configure
) -> None:
    configure("run.progress_line_s", 0.0)

    def interrupted() -> None:
        with shown(True, 400) as show:
            assert show is not None
            show(report(7))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(capfd.readouterr().err.splitlines()) == 1
