"""The result of an export (blocks, counts of reads, failures), and its progress on stderr.

Progress is a bar in a terminal, and a line at intervals elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from imagery_dask.cards import Card, CardTable
from imagery_dask.config import config
from imagery_dask.errors import BlockFailedError
from imagery_dask.humanize import human_bytes, human_count, human_time
from imagery_dask.sources import ReadCounts

__all__ = ["FailedBlock", "RunReport", "progress_bar", "progress_lines", "shown"]

# Silent workers that a line of progress names.
SILENT_NAMED = 3
# Failures that a summary lists.
FAILURES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class FailedBlock:
    """A block that failed, and the reason."""

    name: str
    reason: str


@dataclass(slots=True)
class RunReport:
    """Result of an export.

    Parameters
    ----------
    blocks : int
        Number of blocks of the export.
    done : int
        Number of blocks written, by this call and by earlier calls that it resumed.
    voxels : int
        Number of voxels of the export; 0 in the report of a part.
    written_bytes : int
        Uncompressed bytes of the written voxels.
    seconds : float
        Wall time of the blocks of this call.
    counts : ReadCounts
        Storage chunks read, storage chunks missing, and bytes received.
    counts_of : dict of str to ReadCounts
        The same counts by layer.
    failed : list of FailedBlock
        The first thousand blocks that failed.
    failures : int
        Number of blocks that failed.
    notes : list of str
        Remarks about the result, as sentences.
    before : int
        Number of blocks that earlier calls wrote.
    before_bytes : int
        Uncompressed bytes of these blocks.
    repeats : int
        Number of repeated attempts, after errors that may pass.
    silent : list of str
        Addresses of workers that have sent no heartbeats for a while.
    """

    blocks: int
    done: int = 0
    voxels: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    counts: ReadCounts = field(default_factory=ReadCounts)
    counts_of: dict[str, ReadCounts] = field(default_factory=dict)
    failed: list[FailedBlock] = field(default_factory=list)
    failures: int = 0
    notes: list[str] = field(default_factory=list)
    before: int = 0
    before_bytes: int = 0
    repeats: int = 0
    silent: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        """Return the summary of the report."""
        counts, here = self.counts, f"; {self.before:,} by earlier calls" if self.before else ""
        filled = f", of which {counts.not_stored:,} are not stored (fill value)" if counts.not_stored else ""
        rows = [
            ("blocks", f"{self.done:,} of {self.blocks:,} written{here}"),
            ("written", f"{human_bytes(self.written_bytes)} uncompressed, {human_count(self.voxels)} voxels"),
            ("time", f"{human_time(self.seconds)}, {self.mb_per_s:,.1f} MB/s"),
            ("read", f"{human_bytes(counts.stored_bytes)} as stored, {counts.chunks:,} storage chunks{filled}"),
        ]
        trouble = _trouble(self)
        rows += [("trouble", ", ".join(trouble))] if trouble else []
        rows += [("note", note) for note in self.notes]
        failed = [f"{block.name}: {block.reason}" for block in self.failed[:FAILURES_SHOWN]]
        if self.failures > len(failed) > 0:
            failed.append(f"{self.failures - len(failed):,} more blocks failed.")
        layers = [
            [name, f"{one.chunks:,}", human_bytes(one.stored_bytes), f"{one.missing:,}", f"{one.refused_or_absent:,}"]
            for name, one in self.counts_of.items()
        ]
        names = ["layer", "storage chunks", "as stored", "missing", "of these, refused or absent"]
        if not self.counts.refused_or_absent:
            names, layers = names[:-1], [row[:-1] for row in layers]
        table = CardTable("Reads by layer", names, layers)
        verdict = "complete" if self.ok else "incomplete"
        return Card(f"RunReport: {verdict}", rows, [table] if layers else [], failed)

    @property
    def ok(self) -> bool:
        """True if every block was written."""
        return self.done == self.blocks

    def raise_for_failures(self) -> None:
        """Raise `BlockFailedError` if a block failed."""
        if self.failures:
            first = self.failed[0]
            raise BlockFailedError(
                f"{self.failures} of {self.blocks} blocks failed; {self.done} were written. "
                f"{first.name}: {first.reason}",
                self,
            )

    @property
    def mb_per_s(self) -> float:
        """Rate of this call: uncompressed bytes written per second of wall time, in units of 10**6 bytes."""
        return (self.written_bytes - self.before_bytes) / 1e6 / self.seconds if self.seconds else 0.0


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
    counts = (
        (report.counts.missing, "chunks missing"), (report.counts.refused_or_absent, "of these refused or absent"),
        (report.repeats, "repeats"), (report.failures, "failed"),
    )  # fmt: skip
    silent = [f"silent: {' '.join(report.silent[:SILENT_NAMED])}"] if report.silent else []
    return [*(f"{count:,} {what}" for count, what in counts if count), *silent]
