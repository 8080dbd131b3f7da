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
from imagery_dask.export.html_report import reported
from imagery_dask.export.job import Export, Running
from imagery_dask.export.limits import most_missing
from imagery_dask.export.opening import glance, open_end, open_share
from imagery_dask.export.session import Session
from imagery_dask.export.steps import begin, check_workers, clear_when_full, close, left_to_do, report_of, run_left
from imagery_dask.records.lease import holder_of, is_held
from imagery_dask.records.shares import Share
from imagery_dask.run import RunReport, check_missing

__all__ = ["execute_share"]


def execute_share(export: Export, running: Running, share: Share, page: str | None) -> RunReport:
    """Run a part of an export; and all that is left, where this is the last part to end.

    Parameters
    ----------
    export : Export
        The export.
    running : Running
        How.
    share : Share
        Which part.
    page : str or None
        Where an HTML report goes.

    Returns
    -------
    RunReport
        Of the part's blocks, or of all of them where this call has closed the store; its notes say which.
    """
    with clear_when_full(export.out), ExitStack() as stack:
        work = _Work(export, running, share, page, stack)
        there = glance(export)
        report = _report_of(there, share) if there is not None else None
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
    running: Running
    share: Share
    page: str | None
    stack: ExitStack
    client: Client | None = None

    def connected(self) -> Client:
        """Client of a cluster that is started when there is something to do."""
        if self.client is None:
            self.client = self.stack.enter_context(self.running.connect())
        return self.client

    def own_blocks(self) -> RunReport:
        """Do the blocks of this part."""
        export, running, client = self.export, self.running, self.connected()

        def make(session: Session) -> None:
            check_workers(export, running, session, client)
            begin(export, running, session, client)

        with open_share(export, self.share, make) as session:
            check_workers(export, running, session, client)
            assert session.plan is not None
            left = left_to_do(session)
            counted = _counted(session, self.share, left)
            todo = left & counted
            report = report_of(session, todo, counted)
            with reported(export, session, report, self.page):
                run_left(export, running, session, client, report, todo)
        return report

    def rest(self, report: RunReport) -> RunReport:
        """Do what is left of all parts and close the store, where nobody else will."""
        export, running = self.export, self.running
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
                    check_missing(whole, most_missing(running.max_missing, session.plan))
                    if left.any():
                        client = self.connected()
                        check_workers(export, running, session, client)
                        run_left(export, running, session, client, whole, left)
                    close(export, session, whole)
        except TargetBusyError:
            return self._left(report, "others are at work, and the last of them does what is left")
        _add_own(whole, report)
        whole.raise_for_failures()
        whole.notes.append(f"{self.share} is done, and so are all others.")
        return whole

    def _left(self, report: RunReport, what: str) -> RunReport:
        report.notes.append(f"{self.share} is done; {what}.")
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


def _report_of(session: Session, share: Share) -> RunReport:
    """Report of what a part has done."""
    left = left_to_do(session)
    counted = _counted(session, share, left)
    return report_of(session, left & counted, counted)


def _counted(session: Session, share: Share, left: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Blocks of a part, up to the end of the first stage in which any block is left."""
    assert session.plan is not None
    counted = share.of_blocks(session.plan.blocks)
    counted[next((end for end in session.plan.ends if left[:end].any()), len(counted)) :] = False
    return counted


def _blocks_of_others(session: Session, left: NDArray[np.bool_]) -> int:
    """Blocks that are left of the first stage."""
    assert session.plan is not None
    return int(left[: session.plan.ends[0]].sum())
