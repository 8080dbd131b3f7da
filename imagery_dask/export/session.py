"""Where an export stands: a new one, one that goes on, one that replaces another, or one that must not be begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol
from uuid import uuid4

from numpy.typing import NDArray

from imagery_dask.export.plans import ExportPlan, difference, fingerprint_of
from imagery_dask.export.stores import clear_errors
from imagery_dask.files import Files
from imagery_dask.records.journal import Records
from imagery_dask.records.lease import Lease, brief_lease
from imagery_dask.records.runs import Run, now, remove_unplanned, runs_in
from imagery_dask.records.shares import Share, refuse_other_shares, refuse_shares, settle_share

__all__ = [
    "DAMAGED",
    "Planned",
    "Session",
    "Target",
    "glance",
    "open_end",
    "open_session",
    "open_share",
    "refuse_occupied",
]

DAMAGED = "damaged.json"


class Target(Protocol):
    """Where an export is written, and what may be there already."""

    store: str

    def occupied(self) -> bool:
        """Whether there is something that can be replaced; FileExistsError for anything else."""
        ...

    def refusal(self, why: str = "") -> FileExistsError:
        """Error that says that there is something, and why it is in the way."""
        ...

    def holds(self, place: str, written: bool) -> bool:
        """Whether what a run has begun, and maybe written blocks to, is still there."""
        ...

    def beside(self, run: str) -> str:
        """Where a run writes what is to replace what is there."""
        ...

    def check_writable(self) -> None:
        """Refuse a place that cannot be written."""
        ...

    def recover(self) -> None:
        """Undo a replacement that was cut off."""
        ...

    def swap(self, place: str) -> None:
        """Let what was written beside take its place."""
        ...

    def clear(self, place: str) -> None:
        """Remove what is at a place of a run."""
        ...


class Planned(Protocol):
    """What a session needs to know of an export."""

    @property
    def target(self) -> Target:
        """Where it is written."""
        ...

    @property
    def decides(self) -> dict[str, Any]:
        """Everything that decides the voxels."""
        ...

    @property
    def records(self) -> Files | None:
        """Where records are kept."""
        ...


class Session:
    """An export that this process writes: its run, and where it goes.

    Parameters
    ----------
    target : Target
        Where the export is written.
    files : Files or None
        Where records are kept.
    lease : Lease or None
        Held while the session lasts.
    run : Run or None
        The run that goes on.
    overwrites : bool
        Whether what is there is to be replaced.
    """

    def __init__(
        self, target: Target, files: Files | None, lease: Lease | None, run: Run | None, overwrites: bool = False
    ) -> None:
        self._target, self._files, self._lease, self._run = target, files, lease, run
        self.id = uuid4().hex[:8] if run is None else run.records.run
        self.place = target.store if run is None else run.place
        self.overwrites = overwrites
        self.plan = None if run is None else ExportPlan.from_json(run.plan)
        self._receipts: NDArray[Any] | None = None

    @property
    def records(self) -> Records | None:
        """Records of the run."""
        return None if self._files is None else Records(self._files, self.id)

    @property
    def replaces(self) -> bool:
        """Whether what is replaced is still there."""
        return self.place != self._target.store

    @property
    def finished(self) -> bool:
        """Whether all of it is there."""
        return self._run is not None and self._run.finished is not None

    def check(self) -> None:
        """Raise when another process has taken over."""
        if self._lease is not None:
            self._lease.check()

    def hold(self, lease: Lease) -> None:
        """Hold this lease from now on, in place of the one before."""
        self._lease = lease

    def keep(self) -> None:
        """Hold the lease for what parts have left.

        Raises
        ------
        TargetBusyError
            A part is at work.
        """
        if self._lease is not None and self._files is not None:
            refuse_shares(self._files, self._target.store)
            self._lease.keep_for("close")
            self._receipts = None  # parts may have ended meanwhile

    def tidy(self) -> None:
        """Remove what killed processes left half-written among the records."""
        if self._files is None:
            return
        for folder in ("", self.id):
            self._files.remove_partial(folder)
        remove_unplanned(self._files)

    def begin(self, plan: ExportPlan) -> None:
        """Write down what is going to be written."""
        self.plan = plan
        if self.records is not None:
            self._run = Run(self.records, self.place, plan.to_json(), now()).saved()

    def abandon(self) -> None:
        """Remove what there is of a store that could not be made."""
        with suppress(Exception):  # the error that led here is the one to tell
            self._target.clear(self.place)
            if self.records is not None:
                self.records.remove()

    def begun(self) -> None:
        """Write down that there is an empty store."""
        if self._run is not None:
            self._run = self._run.saved(begun=True)

    def finish(self, when: str) -> None:
        """Let the store take its place, and write down that all of it is there."""
        others = [] if self._files is None else [run for run in runs_in(self._files) if run.records.run != self.id]
        if self.replaces:
            assert self._run is not None
            self._run = self._run.saved(swapping=True)
            self._target.swap(self.place)
        for run in others:
            if run.place != self._target.store:
                self._target.clear(run.place)
            run.records.remove()
        self.place = self._target.store
        if self._run is not None:
            self._run = self._run.saved(place=self.place, finished=when, swapping=False)
            self._run.records.remove(DAMAGED)

    def receipts(self) -> NDArray[Any]:
        """Read the receipts of earlier calls, by block."""
        if self._receipts is None:
            assert self.records is not None
            assert self.plan is not None
            found = self.records.receipts()
            self._receipts = found[found["block"] < self.plan.blocks]
        return self._receipts

    def damaged(self) -> tuple[list[int], list[int]]:
        """Blocks that `verify` found damaged, and those that the source gives other voxels for now."""
        found = (None if self.records is None else self.records.get(DAMAGED)) or {"blocks": [], "source_changed": []}
        return found["blocks"], found["source_changed"]

    def digests_before(self) -> dict[str, str]:
        """Hash of what had been written of each damaged block, by its number as text."""
        found = (None if self.records is None else self.records.get(DAMAGED)) or {}
        return dict(found.get("digests", {}))


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
            target.clear(target.store)
        yield Session(target, None, None, None, overwrite)
        return
    with clear_errors(target.store):
        # Before anything is made: a place that holds something else is left as it is.
        _refuse_foreign(files, target, overwrite)
        refuse_shares(files, target.store)  # which are not disturbed by one that is refused
        with _folder_of(files), Lease(files, target.store) as lease:
            refuse_shares(files, target.store)
            target.recover()
            runs = _settled(runs_in(files), target)
            session = _over(target, files, lease, runs) if overwrite else _on(export, target, files, lease, runs)
            if runs:
                lease.keep_of(session.id)
            yield session


@contextmanager
def open_share(export: Planned, share: Share, begin: Callable[[Session], None]) -> Iterator[Session]:
    """Hold the lease of a part of an export.

    Parameters
    ----------
    export : Planned
        The export.
    share : Share
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
    with clear_errors(target.store):
        _refuse_foreign(files, target)
        with _folder_of(files), ExitStack() as stack:
            # One that crashed takes some seconds to be found out; meanwhile nobody waits for this one.
            settle_share(files, target.store, share)
            with brief_lease(files, target.store) as lease:
                refuse_other_shares(files, target.store, share)
                target.recover()
                session = _on(export, target, files, lease, _settled(runs_in(files), target))
                if session.plan is None:
                    begin(session)
                own = Lease(files, f"{share} of {target.store}", share.file, "part", session.id)
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
    with clear_errors(target.store), brief_lease(files, target.store) as lease:
        yield _on(export, target, files, lease, _settled(runs_in(files), target))


def glance(export: Planned) -> Session | None:
    """Where an export stands, without the lease: nothing may be written with it; None where it was not begun."""
    target, files = export.target, _records_of(export)
    with clear_errors(target.store):
        run = _going_on(export, target, _living(runs_in(files), target))
        return None if run is None else Session(target, files, None, run)


def refuse_occupied(export: Planned, overwrite: bool) -> None:
    """Raise the FileExistsError that `open_session` would, without the lease and without a trace."""
    target, files = export.target, export.records
    with clear_errors(target.store):
        if files is None:
            if not overwrite and target.occupied():
                raise target.refusal()
            return
        _refuse_foreign(files, target, overwrite)
        living = _living(runs_in(files), target)
        if not overwrite and _going_on(export, target, living) is None:
            _refuse_different(export, target, living)


def _refuse_different(export: Planned, target: Target, living: list[Run]) -> None:
    there = next((run for run in living if run.place == target.store), None)
    if there is not None:
        what = difference(there.plan["decides"], export.decides)
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
        raise ValueError(
            f"{export.target.store} has no place for records, by which parts of an export know each other."
        )
    return files


def _living(runs: list[Run], target: Target) -> list[Run]:
    """List the runs that were begun, and whose store is still there."""
    return [run for run in runs if run.begun and target.holds(run.place, written=run.records.has("receipts"))]


def _going_on(export: Planned, target: Target, living: list[Run]) -> Run | None:
    """Run that is of this export."""
    fingerprint = fingerprint_of(export.decides)
    # One that was to replace another comes first: it was asked for last.
    for run in sorted(living, key=lambda run: run.place == target.store):
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
    _remove([run for run in runs if run.place != target.store or not run.begun], target)
    session = Session(target, files, lease, None, overwrites=True)
    if not target.occupied():
        _remove([run for run in runs if run.place == target.store and run.begun], target)
        return session
    session.place = target.beside(session.id)
    if not session.replaces:
        target.clear(target.store)
        _remove([run for run in runs if run.place == target.store and run.begun], target)
    return session


def _remove(runs: list[Run], target: Target) -> None:
    """Remove runs that nobody goes on with; of a store in its place only what had not been begun."""
    for run in runs:
        if run.place != target.store or not run.begun:
            target.clear(run.place)
        run.records.remove()


def _settled(runs: list[Run], target: Target) -> list[Run]:
    """Say where the store of each run is: one that took its place may have been killed before it could say so."""
    for run in runs:
        if not run.swapping or run.place == target.store:
            continue
        if not target.holds(run.place, written=True) and target.holds(target.store, written=True):
            # What it replaced is gone: records of that must not be taken for those of what is there now.
            for other in runs:
                if other.place == target.store:
                    other.records.remove()
            others = [other for other in runs if other is not run and other.place != target.store]
            return [*others, run.saved(place=target.store, swapping=False)]
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
