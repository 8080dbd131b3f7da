"""Run an export, or a part of one.

The order in which things are written makes it safe to kill a process at any moment::

    lease -> plan -> empty store -> "begun" -> blocks, each with its receipt -> ledger, attributes -> "finished"

A run with a plan that was not begun is removed and started again; one that was begun is resumed with the blocks that
have no receipt.

A part of an export is run by a process that knows of the others by their records alone. Blocks of a later stage read
what an earlier one has written, so a part writes its blocks of the first stage in which any block is left. The process
that ends last, and finds that stage complete and no other part running, does all that follows and closes the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from imagery_dask.cluster import cores, free_memory, threads_of_cores
from imagery_dask.errors import SourceError, TargetBusyError, TargetFullError
from imagery_dask.export.core.base import Export, held_bytes
from imagery_dask.export.core.held_blocks import notes_of_objects
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import DAMAGED, NewRun, StartedRun
from imagery_dask.export.core.store_metadata import LOST, damaged_metadata, keep_metadata, restore_metadata
from imagery_dask.export.execution.resume import (
    as_begun,
    look_at,
    open_end,
    open_part,
    open_run,
    refuse_own_source,
)
from imagery_dask.export.execution.source_watch import SourceWatch
from imagery_dask.export.reports.html_report import checked_report, reported
from imagery_dask.records.parts import Part
from imagery_dask.records.runs import missing_first, write_ledger
from imagery_dask.run import BlockTask, Rules, RunReport, Workers, check_missing, is_full, run_blocks
from imagery_dask.run.report import shown
from imagery_dask.sources import ReadCounts

__all__ = ["execute"]


def execute(export: Export, options: RunOptions) -> RunReport:
    """Run an export, or resume it.

    Raises
    ------
    FileExistsError
        The target holds something else that is not to be replaced, or another process writes there.
    BlockFailedError, AccessRefusedError, TargetFullError, TooManyMissingError, ClusterLostError
        See `imagery_dask.run.run_blocks`.
    """
    page = None if options.report is None else checked_report(options.report, export.url)
    refuse_own_source(export)
    export = as_begun(export, options.overwrite)
    work = _Work(export, options, page)
    if options.part is not None:
        with _clear_when_full(export.url), work:
            return _PartRun(work, options.part).run()
    with _clear_when_full(export.url), open_run(export, options.overwrite) as opened, work:  # lease
        run = start(work, opened) if isinstance(opened, NewRun) else opened
        todo = run.left_to_do(options.repair, options.redo_missing)
        execution = Execution(work, run, todo, run.report(todo))
        if run is opened:  # a new run has just made its store, and was planned for these workers
            execution.mend()
            execution.check_workers()
        with execution.reported():
            execution.run_blocks()
            execution.close()
    execution.report.raise_for_failures()
    return execution.report


def start(work: _Work, new: NewRun) -> StartedRun:
    """Plan a new run and make its empty store."""
    export, options, workers = work.export, work.options, work.workers
    if options.plan is not None:
        plan = options.plan
        _check_memory(export, plan, workers)
    else:
        plan = export.plan(workers.resources(), options.block_bytes)
        workers.fit(held_bytes(export, plan))
    options.most_missing(plan)  # raises before anything is written
    run = new.start(plan)  # plan
    try:
        export.prepare(run, workers, options)
        export.create(run, workers)  # empty store
        keep_metadata(export, run)
    except BaseException:
        run.abandon()
        raise
    run.begun()  # begun
    return run


@dataclass
class Execution:
    """The work of this process on a run that was started."""

    work: _Work
    run: StartedRun
    # Blocks to write, by number.
    todo: NDArray[np.bool_]
    report: RunReport

    def mend(self) -> None:
        """Write metadata of the store again that is lost, or that differs where this is a repair."""
        export, run = self.work.export, self.run
        damaged = damaged_metadata(export, run)
        if not self.work.options.repair:
            damaged = {name: reason for name, reason in damaged.items() if reason in LOST}
        if damaged:
            restore_metadata(export, run, self.work.workers, damaged)
            self.report.notes += [f"{name} was written again: {reason}." for name, reason in damaged.items()]

    def check_workers(self) -> None:
        """Connect, where blocks are left, and raise if they do not fit into the workers."""
        if self.todo.any():
            _check_memory(self.work.export, self.run.plan, self.work.workers)

    def reported(self) -> AbstractContextManager[None]:
        """Return a context that writes the HTML report at its end, also after a failure."""
        page = self.work.page
        return nullcontext() if page is None else reported(self.work.export, self.run, self.report, page)

    def run_blocks(self) -> None:
        """Write the blocks that are to be done, stage by stage."""
        if not self.todo.any():
            return
        options = self.work.options
        if self._reads_sources():
            self.watch.begin()
        rules = Rules(
            records=self.run.records, todo=self.todo, most_missing=options.most_missing(self.run.plan),
            check=self.run.lease.check, max_requests=options.max_requests, on_failure=self._set_aside,
        )  # fmt: skip
        with shown(options.progress, self.report.blocks, self.report.before) as on_progress:
            run_blocks(self.work.workers, self._stages(), self.report, on_progress, rules)

    def _reads_sources(self) -> bool:
        """Return True if a block to write is not made of others."""
        parts = self.run.plan.parts
        return any(
            self.todo[first : first + len(part.blocks)].any() for first, part in parts if part.doing != "downsample"
        )

    @cached_property
    def watch(self) -> SourceWatch:
        """What notices changes of the sources."""
        return SourceWatch(self.work.export, self.run)

    def close(self) -> None:
        """Write into the store what was missing, and let it replace the target."""
        export, run, report = self.work.export, self.run, self.report
        report.notes += [*run.plan.notes(), *export.format.notes(export)]
        if run.finished and report.before == report.blocks:
            return
        with suppress(SourceError):  # all voxels are written
            report.notes += notes_of_objects(export, run.plan)
        run.lease.check()
        self.watch.end(report)
        run.tidy()
        if run.records.kept:
            # In the order of the blocks, however often the run was interrupted.
            first = missing_first(run.records)
            for volume, keys in first.items():
                report.counts_of.setdefault(volume, ReadCounts()).missing_keys = keys
            report.counts.missing_keys = [key for keys in first.values() for key in keys]
        write_ledger(run.records)  # ledger
        export.close(run, report)  # attributes
        keep_metadata(export, run)
        if run.replaces:  # a complete store is not replaced by one with failed blocks
            report.raise_for_failures()
        if report.ok:
            run.finish()  # finished
            if self.work.options.repair:
                run.records.remove(DAMAGED)

    def _stages(self) -> Iterator[Sequence[BlockTask]]:
        """Tasks of the stages; where a repair wrote other voxels than before, what is made of them is made again."""
        for index, tasks in enumerate(self.work.export.tasks(self.run)):
            if index and self._before:
                self._make_again()
            yield tasks

    @cached_property
    def _before(self) -> dict[str, str]:
        """Hash of what had been written of each block that is written again, by its number as text."""
        rows = self.run.receipts[self.todo[self.run.receipts["block"].astype(np.int64)]]
        written = {str(row["block"]): row["digest"].item().hex() for row in rows}
        return written | (self.run.digests_before() if self.work.options.repair else {})

    def _make_again(self) -> None:
        run, report, before = self.run, self.report, self._before
        now = run.records.receipts(run.plan.blocks)
        again = now[np.isin(now["block"], np.array(list(before), np.uint64))]
        changed = {int(row["block"]) for row in again if before[str(row["block"])] != row["digest"].item().hex()}
        more = run.plan.made_of(changed) & ~self.todo
        self.todo |= more
        rows = run.receipts[more[run.receipts["block"].astype(np.int64)]]
        report.done, report.before = report.done - len(rows), report.before - len(rows)
        size = int(rows["written_bytes"].sum(dtype=np.uint64))
        report.written_bytes, report.before_bytes = report.written_bytes - size, report.before_bytes - size

    def _set_aside(self, number: int, task: BlockTask, reason: str, attempts: int) -> None:
        """Write down a block that failed."""
        line = {"block": number, "name": task.name, "volume": task.volume, "reason": reason}
        line |= {"attempts": attempts, "when": time.time()}
        self.run.records.append("failed", json.dumps(line).encode() + b"\n")


class _Work(ExitStack):
    """What is run and how; workers are started, or connected to, when they are first used, and left at the end."""

    def __init__(self, export: Export, options: RunOptions, page: str | None) -> None:
        super().__init__()
        # The page is the file of the HTML report.
        self.export, self.options, self.page = export, options, page

    @cached_property
    def workers(self) -> Workers:
        """Workers that can write to the target."""
        workers = self.enter_context(self.options.connect(self.export.nbytes, self._useful_threads()))
        self.export.target.check_workers(workers)
        return workers

    def _useful_threads(self) -> int | None:
        """Return how many threads keep this machine busy, if the plan has measured that, and fit into its memory."""
        plan = self.options.plan
        if plan is None or plan.waiting is None:
            return None
        return min(threads_of_cores(cores(), plan.waiting), max(1, free_memory() // held_bytes(self.export, plan)))


def _check_memory(export: Export, plan: ExportPlan, workers: Workers) -> None:
    """Raise if blocks were planned for larger workers."""
    needed = held_bytes(export, plan)
    available = workers.fit(needed)
    if needed > available:
        raise ValueError(
            f"{export.url}: the blocks were planned for workers with more memory: a task would hold {needed / 1e9:.3g} "
            f"GB, and a worker here has {available / 1e9:.3g} GB for each thread. Take larger workers, or start over "
            "with smaller blocks (overwrite=True, --overwrite --block-mib N)."
        )


@contextmanager
def _clear_when_full(url: str) -> Iterator[None]:
    """Raise TargetFullError where there is no space for the records or the empty store."""
    try:
        yield
    except TargetFullError:
        raise
    except OSError as error:
        if not is_full(error):
            raise
        raise TargetFullError(
            f"No space is left for {url}: {error}. Make room, and run the same command again to resume."
        ) from None


# ---------------------------------------------------------------------------------------------- a part of an export


@dataclass
class _PartRun:
    """Run of a part of an export; where it is the last to end, of all blocks that are left.

    The cluster is connected to before a lease is taken: that of the export is held for a moment only.
    """

    work: _Work
    part: Part

    def run(self) -> RunReport:
        """Return the report of the part's blocks, or of all where this closes the store; its notes say which."""
        before = look_at(self.work.export)
        report = None if before is None else self._execution(before).report
        if report is None or not report.ok:
            try:
                report = self._write_own()
            except TargetBusyError as error:
                if report is None or error.purpose != "close":
                    raise
            report.raise_for_failures()
        return self._write_rest(report)

    def _write_own(self) -> RunReport:
        """Write the blocks of this part."""
        _ = self.work.workers
        with open_part(self.work.export, self.part, lambda new: start(self.work, new)) as run:
            execution = self._execution(run)
            execution.mend()
            execution.check_workers()
            with execution.reported():
                execution.run_blocks()
        return execution.report

    def _write_rest(self, own: RunReport) -> RunReport:
        """Write what all parts have left and close the store, unless another process will."""
        try:
            with open_end(self.work.export) as run:
                if not run.finished:
                    if left := int(run.left_to_do()[: run.plan.ends[0]].sum()):
                        return self._left(own, f"{left:,} blocks of other parts are left")
                    run.keep()
                execution = Execution(self.work, run, todo := run.left_to_do(), run.report(todo))
                with execution.reported():
                    check_missing(execution.report, self.work.options.most_missing(run.plan))
                    execution.mend()
                    execution.check_workers()
                    execution.run_blocks()
                    execution.close()
        except TargetBusyError:
            return self._left(own, "other parts are running, and the last of them to end closes the store")
        whole = execution.report
        # What this call has written of its part is not work of an earlier call.
        whole.before -= own.done - own.before
        whole.before_bytes -= own.written_bytes - own.before_bytes
        whole.seconds += own.seconds
        whole.repeats += own.repeats
        whole.raise_for_failures()
        whole.notes.append(f"{self.part} is done, and so are all others.")
        return whole

    def _execution(self, run: StartedRun) -> Execution:
        """Return the work on this part: its blocks up to the end of the first stage in which any block is left."""
        left = run.left_to_do()
        counted = self.part.of_blocks(run.plan.blocks)
        counted[next((end for end in run.plan.ends if left[:end].any()), len(counted)) :] = False
        return Execution(self.work, run, left & counted, run.report(left & counted, counted))

    def _left(self, report: RunReport, what: str) -> RunReport:
        report.notes.append(f"{self.part} is done; {what}.")
        return report
