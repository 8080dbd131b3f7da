"""Show the progress of a run on stderr: a bar in a terminal, lines at intervals elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from imagery_dask.config import config
from imagery_dask.humanize import human_time
from imagery_dask.run.report import RunReport

__all__ = ["progress_bar", "progress_lines", "shown"]


@contextmanager
def progress_bar(total: int, before: int = 0) -> Iterator[Callable[[RunReport], None]]:
    """Show finished blocks, rate, time left, repeats and failures as a bar.

    Parameters
    ----------
    total : int
        Number of blocks.
    before : int
        Number of blocks that earlier calls wrote, at which the bar begins. They do not count for the rate.
    """
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("blocks", total=total, completed=before, note="")

        def show(report: RunReport) -> None:
            note = ", ".join([f"{report.mb_per_s:.0f} MB/s", *_trouble(report)])
            progress.update(bar, completed=report.done + report.failures, note=note)

        yield show


@contextmanager
def progress_lines() -> Iterator[Callable[[RunReport], None]]:
    """Write a line every `run.progress_line_s` seconds at most, and a last one if there was one before."""
    lines = _Lines()
    try:
        yield lines.show
    finally:
        lines.end()


def shown(
    progress: bool | Callable[[RunReport], None], total: int, before: int = 0
) -> AbstractContextManager[Callable[[RunReport], None] | None]:
    """Return a context manager that yields the callback for the `progress` argument of a writer."""
    if callable(progress):
        return nullcontext(progress)
    if not progress:
        return nullcontext(None)
    return progress_bar(total, before) if Console(stderr=True).is_terminal else progress_lines()


@dataclass(slots=True)
class _Lines:
    """Writes the lines of a run."""

    # Time of the last line.
    last: float = field(default_factory=time.monotonic)
    begun: bool = False
    # The last report, if no line shows it yet.
    unwritten: RunReport | None = None

    def show(self, report: RunReport) -> None:
        self.unwritten = report
        if time.monotonic() - self.last >= config.get("run.progress_line_s"):
            self._write(report)

    def end(self) -> None:
        if self.begun and self.unwritten is not None:
            self._write(self.unwritten)

    def _write(self, report: RunReport) -> None:
        self.last, self.begun, self.unwritten = time.monotonic(), True, None
        sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {_line(report)}\n")
        sys.stderr.flush()


def _line(report: RunReport) -> str:
    share = report.done / report.blocks if report.blocks else 1.0
    # Rounded down, so that 100% means all blocks.
    parts = [f"{report.done:,} of {report.blocks:,} blocks ({int(1000 * share) / 10}%)", f"{report.mb_per_s:.1f} MB/s"]
    here, left = report.done - report.before, report.blocks - report.done - report.failures
    if here and left:
        parts.append(f"about {human_time(left * report.seconds / here)} left")
    return ", ".join([*parts, *_trouble(report)])


def _trouble(report: RunReport) -> list[str]:
    counts = ((report.counts.missing, "chunks missing"), (report.repeats, "repeats"), (report.failures, "failed"))
    return [f"{count:,} {what}" for count, what in counts if count]
