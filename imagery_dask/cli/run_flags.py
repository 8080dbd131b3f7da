"""Options that control how an export runs; its run, its printed report and its exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from imagery_dask.cli.flags.param_types import DurationType, MissingType, WorkersType
from imagery_dask.cli.main import INTERRUPTED
from imagery_dask.errors import (
    BlockFailedError,
    ClusterLostError,
    ImageryDaskError,
    SourceError,
    TargetBusyError,
    TargetFullError,
    TooManyMissingError,
)
from imagery_dask.humanize import human_bytes

if TYPE_CHECKING:
    from imagery_dask.export.core.base import Export
    from imagery_dask.export.core.plans import ExportPlan
    from imagery_dask.export.core.run_options import RunOptions
    from imagery_dask.records.parts import Part
    from imagery_dask.run import RunReport, Workers
    from imagery_dask.sources import ReadCounts

__all__ = [
    "RUN_OPTIONS",
    "cluster_options",
    "SOME_BLOCKS_FAILED",
    "ended_as_interrupted",
    "named_cluster",
    "print_report",
    "run",
    "failing",
    "limit_options",
    "run_options_of",
    "run_options",
]

SOME_BLOCKS_FAILED = 1
FAILURES_SHOWN = 10
# Signals that end a run like Ctrl-C does; a terminal sends SIGHUP when its connection is lost.
ENDINGS = (signal.SIGTERM, signal.SIGHUP)

Command = TypeVar("Command", bound=Callable[..., Any])

CLUSTER = (
    click.option("--workers", type=WorkersType(),
                 help="Number of worker processes to start; without --cluster, on this machine. auto starts a few, and "
                      "more as long as they make the run faster."),
    click.option("--max-workers", type=click.IntRange(min=1), metavar="N",
                 help="Largest number of workers for --workers auto.  "
                      "[default: from the cluster file; one per core of this machine]"),
    click.option("--cluster", metavar="local|FILE|ADDRESS",
                 help="Where to run: local (one process per core of this machine), the cluster of a cluster file, or "
                      "a dask scheduler.  [default: threads of this process; local for exports of 2 GiB or more]"),
    click.option("--wait", type=DurationType(), default=600.0, show_default="10m",
                 help="How long to wait for the first worker: 30s, 10m, 2h."),
    click.option("--retire-before", type=DurationType(),
                 help="On a batch system: how long before the end of their walltime workers retire.  "
                      "[default: from the cluster file, else a tenth of the walltime, at most 10m]"),
)  # fmt: skip
THREADS = (
    click.option("--threads", type=click.IntRange(min=1), metavar="N",
                 help="Number of threads of this process, or of each worker process of this machine.  "
                      "[default: as measured by a plan (--plan FILE); one per core, and one per worker process]"),
)  # fmt: skip
REPLACING = (
    click.option("--overwrite", is_flag=True, help="Start over and replace an existing export."),
    click.option("--repair", is_flag=True, help="Write the blocks again that verify found damaged."),
    click.option("--redo-missing", is_flag=True, help="Write the blocks again of which source chunks were missing."),
)  # fmt: skip
LIMITS = (
    click.option("--max-missing", type=MissingType(),
                 help="Stop if more storage chunks are missing: a percentage of those to read (0.1%), or a number."),
    click.option("--max-requests", type=click.IntRange(min=1), metavar="N",
                 help="Largest number of requests in flight to one server, from all workers together."),
    click.option("--report", type=click.Path(dir_okay=False, writable=True), metavar="FILE",
                 help="HTML report to write when the export ends."),
)  # fmt: skip
RUNNING = (*CLUSTER, *THREADS, *REPLACING, *LIMITS)
RUN_OPTIONS = (
    "cluster", "workers", "max_workers", "threads", "wait", "retire_before", "overwrite", "repair", "redo_missing",
    "max_missing", "max_requests", "report",
)  # fmt: skip


def cluster_options(command: Command) -> Command:
    """Add ``--workers``, ``--max-workers``, ``--cluster``, ``--wait`` and ``--retire-before`` to a command."""
    for option in reversed(CLUSTER):
        command = option(command)
    return command


def run_options(command: Command) -> Command:
    """Add the options of `run` to a command."""
    for option in reversed(RUNNING):
        command = option(command)
    return command


def limit_options(command: Command) -> Command:
    """Add the options of a run that cannot replace or repair anything."""
    for option in reversed((*CLUSTER, *THREADS, *LIMITS)):
        command = option(command)
    return command


@contextmanager
def failing(out: str, also: str = "") -> Iterator[None]:
    """Exit with the exit code of a failed run, and say how it goes on; other errors pass."""
    try:
        with ended_as_interrupted():
            yield
    except BlockFailedError as error:
        print_report(error.report, out)
        click.echo("  Run the same command again to retry only these blocks.", err=True)
        sys.exit(SOME_BLOCKS_FAILED)
    except TargetBusyError:
        raise
    except (SourceError, TargetFullError, TooManyMissingError, ClusterLostError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(SOME_BLOCKS_FAILED)
    except KeyboardInterrupt:
        click.echo(f"Interrupted. Run the same command again to resume {out}{also}.", err=True)
        sys.exit(INTERRUPTED)


def run(
    export: Callable[[], Export],
    out: str,
    keep: Callable[[Export], None] = lambda made: None,
    then: Callable[[], None] = lambda: None,
    **options: Any,
) -> None:
    """Run an export and print its report; if it fails, exit with the exit code of the failure.

    Parameters
    ----------
    export : callable
        Function that makes the export.
    out : str
        Target of the export, as given on the command line.
    keep : callable
        Writes down how the export was called; see `_kept_in`.
    then : callable
        Called when all blocks are written.
    **options
        Keywords of `run_options_of`.
    """
    from imagery_dask.export.execution.execute import execute

    built = export()
    with failing(out, "; --overwrite starts over"), _kept_in(built, keep):
        made = execute(built, run_options_of(**options))
        then()
    print_report(made, out)


def run_options_of(
    *,
    cluster: str | None,
    workers: int | Literal["auto"] | None,
    max_workers: int | None,
    threads: int | None,
    wait: float,
    retire_before: float | None,
    overwrite: bool = False,
    repair: bool = False,
    redo_missing: bool = False,
    max_missing: float | None,
    max_requests: int | None,
    report: str | None,
    block_mib: float | None = None,
    plan: ExportPlan | None = None,
    part: Part | None = None,
) -> RunOptions:
    """Return the `RunOptions` of the options on the command line; raise ValueError for invalid values."""
    from imagery_dask.export.core.run_options import RunOptions

    return RunOptions(
        cluster=named_cluster(cluster, workers), large="local", workers=workers, max_workers=max_workers,
        threads=threads, wait_s=wait, retire_before_s=retire_before, connected=_say_dashboard, overwrite=overwrite,
        repair=repair, redo_missing=redo_missing, plan=plan, part=part, max_missing=max_missing,
        max_requests=max_requests, report=report, block_mib=block_mib,
    )  # fmt: skip


def named_cluster(cluster: str | None, workers: int | str | None) -> str | None:
    """Return where to run: processes of this machine where a number of workers and no cluster is given."""
    return "local" if cluster is None and workers is not None else cluster


@contextmanager
def _kept_in(export: Export, keep: Callable[[Export], None]) -> Iterator[None]:
    """Call ``keep(export)`` when its run ends, also after a failure; that it cannot be kept is no failure."""
    try:
        yield
    finally:
        with suppress(OSError, ValueError, ImageryDaskError):
            keep(export)


@contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP too, so that the cluster is closed and the lease is released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Signals that are ignored, by nohup or in the background, stay ignored.
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = {sig: signal.getsignal(sig) for sig in (*ENDINGS, signal.SIGINT) if signal.getsignal(sig) in defaults}

    def interrupt(number: int, frame: object) -> None:
        # Ignore further signals while the process ends: LSF sends several in a row.
        for sig in before:
            signal.signal(sig, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt

    for sig in before:
        signal.signal(sig, interrupt)
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _say_dashboard(workers: Workers) -> None:
    if address := workers.dashboard():
        click.echo(f"dashboard: {address}", err=True)


def print_report(report: RunReport, out: str) -> None:
    """Print what a run has done, and everything that failed."""
    counts = report.counts
    voxels = f", {report.voxels:,} voxels" if report.voxels else ""
    click.echo(f"{out}: {report.done} of {report.blocks} blocks{voxels}")
    if report.before:
        left = report.blocks - report.before
        click.echo(f"  {report.before:,} blocks were written before; {left:,} were left to do")
    if not report.before or report.before < report.blocks:
        written = human_bytes(report.written_bytes - report.before_bytes)
        click.echo(f"  {written} written in {report.seconds:.1f} s ({report.mb_per_s:.0f} MB/s)")
    in_all = ", including earlier runs" if report.before else ""
    click.echo(f"  {counts.chunks:,} storage chunks read ({human_bytes(counts.stored_bytes)} stored){in_all}")
    if counts.not_stored:
        click.echo(f"    {counts.not_stored:,} of them are not stored: they have the array's fill value")
    click.echo(f"  source chunks missing: {counts.missing}" + (" (filled with 0):" if counts.missing else ""))
    for key in counts.missing_keys[:FAILURES_SHOWN]:
        click.echo(f"    {key}")
    if counts.missing > FAILURES_SHOWN:
        click.echo(f"    and {counts.missing - FAILURES_SHOWN} more; all are listed in ledger.jsonl beside the store")
    if counts.refused_or_absent:
        click.echo(
            f"    {counts.refused_or_absent:,} of them are refused or absent: the server answers HTTP 403 in both cases"
        )
    if counts.root_requests or counts.zero_roots:
        _print_roots(counts)
    if report.repeats:
        click.echo(f"  blocks retried: {report.repeats}")
    for note in report.notes:
        click.echo(f"  note: {note}")
    if report.failures:
        click.echo(f"  {report.failures} blocks FAILED:", err=True)
        for failed in report.failed[:FAILURES_SHOWN]:
            click.echo(f"    {failed.name}: {failed.reason}", err=True)
        if report.failures > FAILURES_SHOWN:
            click.echo(f"    and {report.failures - FAILURES_SHOWN} more", err=True)


def _print_roots(counts: ReadCounts) -> None:
    click.echo(f"  supervoxels looked up: {counts.ids_sent:,} in {counts.root_requests:,} requests")
    ids = ", ".join(map(str, counts.zero_root_ids[:FAILURES_SHOWN]))
    if counts.zero_roots > FAILURES_SHOWN:
        ids += f" and {counts.zero_roots - FAILURES_SHOWN} more"
    click.echo(f"  supervoxels without a root: {counts.zero_roots}" + (f" (written as 0): {ids}" if ids else ""))
