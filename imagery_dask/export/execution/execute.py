"""RunOptions an export, or a part of one."""

from __future__ import annotations

from imagery_dask.export.core.base import Export, RunOptions
from imagery_dask.export.core.resume import open_session
from imagery_dask.export.execution.part_run import execute_part
from imagery_dask.export.execution.steps import (
    begin,
    check_workers,
    clear_when_full,
    close,
    left_to_do,
    report_of,
    run_left,
)
from imagery_dask.export.reports.html_report import checked_report, reported
from imagery_dask.run import RunReport

__all__ = ["execute"]


def execute(export: Export, run_options: RunOptions) -> RunReport:
    """Run an export, or go on with one.

    Raises
    ------
    FileExistsError
        When there is something that is neither this export nor to be replaced, or another process writes it.
    BlockFailedError, AccessRefusedError, TargetFullError, TooManyMissingError, ClusterLostError
        As the run has it.
    """
    page = checked_report(run_options.report, export.url)
    if run_options.part is not None:
        return execute_part(export, run_options, run_options.part, page)
    with clear_when_full(export.url), open_session(export, run_options.overwrite) as session:
        todo = left_to_do(session, run_options.repair) if session.plan is not None else None
        if todo is not None and not todo.any():
            report = report_of(session, todo)
            with reported(export, session, report, page):
                close(export, session, report)
        else:
            with run_options.connect() as client:
                check_workers(export, run_options, session, client)
                if session.plan is None:
                    begin(export, run_options, session, client)
                report = report_of(session, todo)
                with reported(export, session, report, page):
                    run_left(export, run_options, session, client, report, todo)
                    close(export, session, report)
    report.raise_for_failures()
    return report
