"""A progress bar for runs of blocks, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from imagery_dask.run import RunReport

__all__ = ["progress_bar", "shown"]


def shown(
    progress: bool | Callable[[RunReport], None], total: int
) -> AbstractContextManager[Callable[[RunReport], None] | None]:
    """Give what a run calls after each block: the caller's function, a progress bar or nothing."""
    if callable(progress):
        return nullcontext(progress)
    return progress_bar(total) if progress else nullcontext(None)


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[RunReport], None]]:
    """Show blocks done, rate, time left and trouble; where stderr is not a terminal, nothing moves."""
    console = Console(stderr=True)
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("blocks", total=total, note="")

        def show(report: RunReport) -> None:
            note = f"{report.mb_per_s:.0f} MB/s"
            if report.counts.missing:
                note += f", {report.counts.missing} chunks missing"
            if report.failures:
                note += f", {report.failures} failed"
            progress.update(bar, completed=report.done + report.failures, note=note)

        yield show
