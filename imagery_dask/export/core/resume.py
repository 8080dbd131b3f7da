"""Where an export stands: a new one, one that goes on, one that replaces another, or one that must not be begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from imagery_dask.export.core.plans import difference, fingerprint_of
from imagery_dask.export.core.session import Planned, Session, Target
from imagery_dask.records.lease import Lease, brief_lease
from imagery_dask.records.parts import Part, refuse_other_parts, refuse_parts, settle_part
from imagery_dask.records.runs import Run, runs_in
from imagery_dask.storage.files import Files
from imagery_dask.storage.zarr_stores import clear_errors

__all__ = ["glance", "open_end", "open_session", "open_part", "refuse_occupied"]


@contextmanager
def open_session(export: Planned, overwrite: bool) -> Iterator[Session]:
    """Find out where an export stands, and hold the lease on it.

    Raises
    ------
    TargetBusyError
        Another process writes there.
    FileExistsError
        There is something else, or an export whose arguments were others; the message names them.
    """
    target, files = export.target, export.records
    if files is None:
        occupied = target.occupied()
        if occupied and not overwrite:
            raise target.refusal()
        if occupied:
            target.clear(target.url)
        yield Session(target, None, None, None, overwrite)
        return
    with clear_errors(target.url):
        # Before anything is made: a place that holds something else is left as it is.
        _refuse_foreign(files, target, overwrite)
        refuse_parts(files, target.url)  # which are not disturbed by one that is refused
        with _folder_of(files), Lease(files, target.url) as lease:
            refuse_parts(files, target.url)
            target.recover()
            runs = _settled(runs_in(files), target)
            session = _over(target, files, lease, runs) if overwrite else _on(export, target, files, lease, runs)
            if runs:
                lease.keep_of(session.id)
            yield session


@contextmanager
def open_part(export: Planned, part: Part, begin: Callable[[Session], None]) -> Iterator[Session]:
    """Hold the lease of a part of an export.

    Parameters
    ----------
    export : Planned
        The export.
    part : Part
        Which part.
    begin : callable
        Makes the empty store, where this is the first part.

    Raises
    ------
    TargetBusyError
        Another process does this part, or one of another number of parts, or all of the export.
    FileExistsError
        There is something else, or an export whose arguments were others.
    """
    target, files = export.target, _records_of(export)
    with clear_errors(target.url):
        _refuse_foreign(files, target)
        with _folder_of(files), ExitStack() as stack:
            # One that crashed takes some seconds to be found out; meanwhile nobody waits for this one.
            settle_part(files, target.url, part)
            with brief_lease(files, target.url) as lease:
                refuse_other_parts(files, target.url, part)
                target.recover()
                session = _on(export, target, files, lease, _settled(runs_in(files), target))
                if session.plan is None:
                    begin(session)
                own = Lease(files, f"{part} of {target.url}", part.file, "part", session.id)
                session.hold(stack.enter_context(own))
            yield session


@contextmanager
def open_end(export: Planned) -> Iterator[Session]:
    """Hold the lease of an export for a look at what its parts have done; `Session.keep` holds it for the rest.

    Raises
    ------
    TargetBusyError
        Another process does the rest, or all of it.
    """
    target, files = export.target, _records_of(export)
    with clear_errors(target.url), brief_lease(files, target.url) as lease:
        yield _on(export, target, files, lease, _settled(runs_in(files), target))


def glance(export: Planned) -> Session | None:
    """Where an export stands, without the lease: nothing may be written with it; None where it was not begun."""
    target, files = export.target, _records_of(export)
    with clear_errors(target.url):
        run = _going_on(export, target, _living(runs_in(files), target))
        return None if run is None else Session(target, files, None, run)


def refuse_occupied(export: Planned, overwrite: bool) -> None:
    """Raise the FileExistsError that `open_session` would, without the lease and without a trace."""
    target, files = export.target, export.records
    with clear_errors(target.url):
        if files is None:
            if not overwrite and target.occupied():
                raise target.refusal()
            return
        _refuse_foreign(files, target, overwrite)
        runs = runs_in(files)
        if overwrite or any(run.swapping for run in runs):  # cut off: who holds the lease finds out
            return
        living = _living(runs, target)
        if _going_on(export, target, living) is None:
            _refuse_different(export, target, living)


def _refuse_different(export: Planned, target: Target, living: list[Run]) -> None:
    there = next((run for run in living if run.url == target.url), None)
    if there is not None:
        what = difference(there.plan["decides"], export.fingerprint_fields)
        raise target.refusal(f"It was written with other arguments: {what}.")


def _refuse_foreign(files: Files, target: Target, overwrite: bool = False) -> None:
    """Refuse a place that holds what no run has written; one may begin meanwhile: its plan comes before its store."""
    if runs_in(files):
        return
    try:
        refusal = target.refusal() if target.occupied() and not overwrite else None
    except FileExistsError as error:
        refusal = error
    if refusal is not None and not runs_in(files):
        raise refusal


def _records_of(export: Planned) -> Files:
    files = export.records
    if files is None:
        raise ValueError(f"{export.target.url} has no place for records, by which parts of an export know each other.")
    return files


def _living(runs: list[Run], target: Target) -> list[Run]:
    """List the runs that were begun, and whose store is still there."""
    return [run for run in runs if run.begun and target.holds(run.url, written=run.records.has("receipts"))]


def _going_on(export: Planned, target: Target, living: list[Run]) -> Run | None:
    """Run that is of this export."""
    fingerprint = fingerprint_of(export.fingerprint_fields)
    # One that was to replace another comes first: it was asked for last.
    for run in sorted(living, key=lambda run: run.url == target.url):
        if run.plan.get("fingerprint") == fingerprint:
            return run
    return None


def _on(export: Planned, target: Target, files: Files, lease: Lease, runs: list[Run]) -> Session:
    """Go on with a run, or begin one where there is nothing."""
    living = _living(runs, target)
    going_on = _going_on(export, target, living)
    if going_on is not None:
        return Session(target, files, lease, going_on)
    _refuse_different(export, target, living)
    _remove([run for run in runs if run not in living], target)
    if target.occupied():
        raise target.refusal()
    return Session(target, files, lease, None)


def _over(target: Target, files: Files, lease: Lease, runs: list[Run]) -> Session:
    """Begin anew; what is there stays until all of the new one is, where that can be."""
    _remove([run for run in runs if run.url != target.url or not run.begun], target)
    session = Session(target, files, lease, None, overwrites=True)
    if not target.occupied():
        _remove([run for run in runs if run.url == target.url and run.begun], target)
        return session
    session.place = target.beside(session.id)
    if not session.replaces:
        target.clear(target.url)
        _remove([run for run in runs if run.url == target.url and run.begun], target)
    return session


def _remove(runs: list[Run], target: Target) -> None:
    """Remove runs that nobody goes on with; of a store in its place only what had not been begun."""
    for run in runs:
        if run.url != target.url or not run.begun:
            target.clear(run.url)
        run.records.remove()


def _settled(runs: list[Run], target: Target) -> list[Run]:
    """Say where the store of each run is: one that took its place may have been killed before it could say so."""
    for run in runs:
        if not run.swapping or run.url == target.url:
            continue
        if not target.holds(run.url, written=True) and target.holds(target.url, written=True):
            # What it replaced is gone: records of that must not be taken for those of what is there now.
            for other in runs:
                if other.url == target.url:
                    other.records.remove()
            others = [other for other in runs if other is not run and other.url != target.url]
            return [*others, run.saved(url=target.url, swapping=False)]
    return runs


@contextmanager
def _folder_of(files: Files) -> Iterator[None]:
    """Leave no folder behind that was made for a lease, and has nothing else in it."""
    folders = [] if files.folder is None else [files.folder, *files.folder.parents]
    made = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # only where nothing is in it
                folder.rmdir()
