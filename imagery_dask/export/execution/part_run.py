"""A part of an export, by a process that knows of the others by their records alone; the last one to end closes it.

Blocks of a later stage read what an earlier one has written. So a part does its blocks of the first stage in which any
is left. Whoever finds, at its end, that the first stage is done and no other part at work, does all that follows by
itself. Called again, parts share the stage that is left then.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from imagery_dask.errors import TargetBusyError
from imagery_dask.export.core.base import Export, RunOptions
from imagery_dask.export.core.options import most_missing
from imagery_dask.export.core.resume import glance, open_end, open_part
from imagery_dask.export.core.session import Session
from imagery_dask.export.execution.steps import (
    begin,
    check_workers,
    clear_when_full,
    close,
    left_to_do,
    report_of,
    run_left,
)
from imagery_dask.export.reports.html_report import reported
from imagery_dask.records.lease import holder_of, is_held
from imagery_dask.records.parts import Part
from imagery_dask.run import RunReport, check_missing

__all__ = ["execute_part"]


def execute_part(export: Export, run_options: RunOptions, part: Part, page: str | None) -> RunReport:
    """Run a part of an export; and all that is left, where this is the last part to end.

    Parameters
    ----------
    export : Export
        The export.
    run_options : RunOptions
        How.
    part : Part
        Which part.
    page : str or None
        Where an HTML report goes.

    Returns
    -------
    RunReport
        Of the part's blocks, or of all of them where this call has closed the store; its notes say which.
    """
    with clear_when_full(export.url), ExitStack() as stack:
        work = _Work(export, run_options, part, page, stack)
        there = glance(export)
        report = _report_of(there, part) if there is not None else None
        if report is None or not report.ok:
            try:
                report = work.own_blocks()
            except TargetBusyError:
                if report is None or not _is_closed_by_another(export):
                    raise
            report.raise_for_failures()
        return work.rest(report)


@dataclass
class _Work:
    """A part that is being run."""

    export: Export
    run_options: RunOptions
    part: Part
    page: str | None
    stack: ExitStack
    client: Client | None = None

    def connected(self) -> Client:
        """Client of a cluster that is started when there is something to do."""
        if self.client is None:
            self.client = self.stack.enter_context(self.run_options.connect())
        return self.client

    def own_blocks(self) -> RunReport:
        """Do the blocks of this part."""
        export, run_options, client = self.export, self.run_options, self.connected()

        def make(session: Session) -> None:
            check_workers(export, run_options, session, client)
            begin(export, run_options, session, client)

        with open_part(export, self.part, make) as session:
            check_workers(export, run_options, session, client)
            assert session.plan is not None
            left = left_to_do(session)
            counted = _counted(session, self.part, left)
            todo = left & counted
            report = report_of(session, todo, counted)
            with reported(export, session, report, self.page):
                run_left(export, run_options, session, client, report, todo)
        return report

    def rest(self, report: RunReport) -> RunReport:
        """Do what is left of all parts and close the store, where nobody else will."""
        export, run_options = self.export, self.run_options
        try:
            with open_end(export) as session:
                left = left_to_do(session)
                if not session.finished:
                    if others := _blocks_of_others(session, left):
                        return self._left(report, f"{others:,} blocks of other parts are left")
                    session.keep()
                    left = left_to_do(session)
                whole = report_of(session, left)
                with reported(export, session, whole, self.page):
                    assert session.plan is not None
                    check_missing(whole, most_missing(run_options.max_missing, session.plan))
                    if left.any():
                        client = self.connected()
                        check_workers(export, run_options, session, client)
                        run_left(export, run_options, session, client, whole, left)
                    close(export, session, whole)
        except TargetBusyError:
            return self._left(report, "others are at work, and the last of them does what is left")
        _add_own(whole, report)
        whole.raise_for_failures()
        whole.notes.append(f"{self.part} is done, and so are all others.")
        return whole

    def _left(self, report: RunReport, what: str) -> RunReport:
        report.notes.append(f"{self.part} is done; {what}.")
        return report


def _add_own(whole: RunReport, own: RunReport) -> None:
    """Let a report of all blocks say what this call has done of its part before."""
    whole.before -= own.done - own.before
    whole.before_bytes -= own.written_bytes - own.before_bytes
    whole.seconds += own.seconds
    whole.repeats += own.repeats


def _is_closed_by_another(export: Export) -> bool:
    held = None if export.records is None else holder_of(export.records)
    return is_held(held) and held is not None and held.get("purpose") == "close"


def _report_of(session: Session, part: Part) -> RunReport:
    """Report of what a part has done."""
    left = left_to_do(session)
    counted = _counted(session, part, left)
    return report_of(session, left & counted, counted)


def _counted(session: Session, part: Part, left: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Blocks of a part, up to the end of the first stage in which any block is left."""
    assert session.plan is not None
    counted = part.of_blocks(session.plan.blocks)
    counted[next((end for end in session.plan.ends if left[:end].any()), len(counted)) :] = False
    return counted


def _blocks_of_others(session: Session, left: NDArray[np.bool_]) -> int:
    """Blocks that are left of the first stage."""
    assert session.plan is not None
    return int(left[: session.plan.ends[0]].sum())
