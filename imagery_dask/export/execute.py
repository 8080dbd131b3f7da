"""Running an export, or a part of one."""

from __future__ import annotations

from imagery_dask.export.html_report import checked_report, reported
from imagery_dask.export.job import Export, Running
from imagery_dask.export.opening import open_session
from imagery_dask.export.shares import execute_share
from imagery_dask.export.steps import (
    begin,
    check_workers,
    clear_when_full,
    close,
    left_to_do,
    report_of,
    run_left,
)
from imagery_dask.run import RunReport

__all__ = ["execute"]


def execute(export: Export, running: Running) -> RunReport:
    """Run an export, or go on with one.

    Raises
    ------
    FileExistsError
        When there is something that is neither this export nor to be replaced, or another process writes it.
    BlockFailedError, AccessRefusedError, TargetFullError, TooManyMissingError, ClusterLostError
        As the run has it.
    """
    page = checked_report(running.report, export.out)
    if running.share is not None:
        return execute_share(export, running, running.share, page)
    with clear_when_full(export.out), open_session(export, running.overwrite) as session:
        todo = left_to_do(session, running.repair) if session.plan is not None else None
        if todo is not None and not todo.any():
            report = report_of(session, todo)
            with reported(export, session, report, page):
                close(export, session, report)
        else:
            with running.connect() as client:
                check_workers(export, running, session, client)
                if session.plan is None:
                    begin(export, running, session, client)
                report = report_of(session, todo)
                with reported(export, session, report, page):
                    run_left(export, running, session, client, report, todo)
                    close(export, session, report)
    report.raise_for_failures()
    return report
