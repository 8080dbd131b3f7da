"""Find out how far an export is, and hold its lease: a new run, one to resume, or one that must not start."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

from imagery_dask.errors import SourceError
from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import difference, fingerprint_of
from imagery_dask.export.core.run_states import NewRun, StartedRun, Target, plan_in, url_of
from imagery_dask.records.lease import HeldLease, Lease, NoLease, brief_lease
from imagery_dask.records.parts import Part, refuse_other_parts, refuse_parts, settle_part
from imagery_dask.records.runs import ENDING, NoRecords, Records, Run, runs_in, target_url
from imagery_dask.sources.handle import folders_of, open_volume
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.storage.overlaps import overlap

__all__ = [
    "as_begun", "look_at", "new_id", "open_end", "open_part", "open_run", "open_update", "refuse_occupied",
    "refuse_own_source",
]  # fmt: skip


def as_begun(export: Export, overwrite: bool) -> Export:
    """Return the export as the run that it resumes was begun, which an earlier version may have done."""
    if overwrite or export.records is None:
        return export
    with clear_errors(export.url):
        # Records of pictures lie in a folder for each fingerprint.
        folders = {files.url: files for one in (export, *export.earlier()) if (files := one.records) is not None}
        runs = [run for files in folders.values() for run in runs_in(files)]
        return export.as_begun([run.plan.get("decides", {}) for run in runs])


@contextmanager
def open_run(export: Export, overwrite: bool) -> Iterator[NewRun | StartedRun]:
    """Hold the lease on an export, and find out how far it is.

    Raises
    ------
    TargetBusyError
        Another process writes there.
    FileExistsError
        The target is something else, or an export with other arguments; the message names them.
    """
    target, files = export.target, export.records
    if files is None:
        if target.occupied():
            if not overwrite:
                raise target.refusal()
            target.check_replaceable()
            _refuse_own_store(export)
            make_room = partial(_remove_store, export)
        else:
            make_room = partial(_remove, [], target)
        yield NewRun(target, NoRecords.of(new_id()), NoLease(), target.url, overwrite, make_room)
        return
    with clear_errors(target.url), _held(files, target, overwrite) as (lease, runs):
        run = _start_over(export, files, lease, runs) if overwrite else _resume(export, files, lease, runs)
        if runs:
            lease.keep_of(run.id)
        yield run


@contextmanager
def open_update(export: Export, but_for: Collection[str]) -> Iterator[tuple[StartedRun, list[Run]] | None]:
    """Hold the lease on a store that another export has written, which differs in some fields alone.

    Parameters
    ----------
    export : Export
        What the store is to become.
    but_for : collection of str
        Names of the fields of the fingerprint that may differ.

    Yields
    ------
    StartedRun, list of Run
        The run that has written the store, and all runs of the target; None if there is no such run, or the store is
        of this export already.

    Raises
    ------
    TargetBusyError
        Another process writes there.
    FileExistsError
        The target is something else.
    """
    target, files = export.target, _records_of(export)
    with clear_errors(target.url), _held(files, target) as (lease, runs):
        living = [run for run in _living(runs, target) if run.in_place]
        wanted = {name: value for name, value in export.fingerprint_fields.items() if name not in but_for}
        alike = [
            run
            for run in living
            if {name: value for name, value in run.plan.get("decides", {}).items() if name not in but_for} == wanted
        ]
        if not alike or _record_of(export, living) is not None:
            yield None
            return
        lease.keep_of(alike[0].records.run)
        yield StartedRun.of(target, alike[0], lease), runs


@contextmanager
def _held(files: Files, target: Target, overwrite: bool = False) -> Iterator[tuple[HeldLease, list[Run]]]:
    """Hold the lease on a target; yield it and the runs of the target."""
    # Before anything is made: a target that is something else is left as it is.
    _refuse_foreign(files, target, overwrite)
    refuse_parts(files, target.url)  # before the lease, so that running parts do not meet it
    with _folder_of(files), Lease(files, target.url) as lease:
        refuse_parts(files, target.url)
        target.recover()
        yield lease, _settled(runs_in(files), target)


@contextmanager
def open_part(export: Export, part: Part, start: Callable[[NewRun], StartedRun]) -> Iterator[StartedRun]:
    """Hold the lease on a part of an export.

    Parameters
    ----------
    export : Export
        The export.
    part : Part
        Which part.
    start : callable
        Starts the run and makes the empty store, where this is the first part.

    Raises
    ------
    TargetBusyError
        Another process does this part, or a part of another number of parts, or all of the export.
    FileExistsError
        The target is something else, or an export with other arguments.
    """
    target, files = export.target, _records_of(export)
    with clear_errors(target.url):
        _refuse_foreign(files, target)
        with _folder_of(files), ExitStack() as stack:
            # To find out that the process of a part has crashed takes seconds; no other part waits meanwhile.
            settle_part(files, target.url, part)
            with brief_lease(files, target.url) as lease:
                refuse_other_parts(files, target.url, part)
                target.recover()
                run = _resume(export, files, lease, _settled(runs_in(files), target))
                started = start(run) if isinstance(run, NewRun) else run
                own = Lease(files, f"{part} of {target.url}", part.file, "part", started.id)
                started.lease = stack.enter_context(own)
            yield started


@contextmanager
def open_end(export: Export) -> Iterator[StartedRun]:
    """Hold the lease on an export to see what its parts have done; `StartedRun.keep` holds it for the rest.

    Raises
    ------
    TargetBusyError
        Another process does the rest, or all of the export.
    FileNotFoundError
        The export has been removed meanwhile.
    """
    target, files = export.target, _records_of(export)
    with clear_errors(target.url), brief_lease(files, target.url) as lease:
        run = _resume(export, files, lease, _settled(runs_in(files), target))
        if isinstance(run, NewRun):
            raise FileNotFoundError(f"{target.url} has been removed while its parts were written.")
        yield run


def look_at(export: Export) -> StartedRun | None:
    """Return the run of an export without its lease, so that nothing may be written; None if it was not started."""
    target, files = export.target, _records_of(export)
    with clear_errors(target.url):
        record = _record_of(export, _living(runs_in(files), target))
        return None if record is None else StartedRun.of(target, record, NoLease())


def refuse_own_source(export: Export) -> None:
    """Raise if an export would replace, or write into, a volume that it reads.

    Raises
    ------
    FileExistsError
        With both paths.
    """
    target = export.target
    cutouts = [source.cutout for volume in export.volumes for source in volume.sources]
    for path, adds_levels in dict.fromkeys((cutout.path, cutout.downsampled) for cutout in cutouts):
        for folder in _folders_of(path):
            how = overlap(target.folder, folder)
            if adds_levels and how == "lies in":  # a folder of its own, for the levels that are added to the volume
                continue
            # Pictures lie beside other files in their folder.
            if how is not None and (how != "contains" or target.owns_folder):
                raise FileExistsError(
                    f"{target.url} {how} {path}, which the export reads: it would be overwritten. Choose another name."
                )


def _refuse_own_store(export: Export) -> None:
    """Raise if an array is computed from the store that is removed before the blocks are read.

    Raises
    ------
    FileExistsError
        With both URLs.
    """
    from imagery_dask.storage.graph_stores import stores_read  # loads zarr

    target = export.target
    for volume in export.volumes:
        for url in stores_read(volume.array.dask):
            if how := overlap(target.url, url):
                raise FileExistsError(
                    f"{target.url} {how} {url}, which the array is computed from, and would be removed before it is "
                    "read. Choose another name, or compute the array first."
                )


def _remove_store(export: Export) -> None:
    """Remove the store at the target, if the sources of the one that replaces it can be opened."""
    for path in {source.cutout.path for volume in export.volumes for source in volume.sources}:
        open_volume(path, fresh=True)
    export.target.clear(export.target.url)


def _folders_of(path: str) -> set[str]:
    try:
        return folders_of(path)
    except SourceError:  # reading it says why
        return {path}


def refuse_occupied(export: Export, overwrite: bool) -> None:
    """Raise the FileExistsError that `open_run` would raise, without taking the lease."""
    refuse_own_source(export)
    export = as_begun(export, overwrite)
    target, files = export.target, export.records
    with clear_errors(target.url):
        if files is None:
            if not overwrite and target.occupied():
                raise target.refusal()
            return
        _refuse_foreign(files, target, overwrite)
        runs = runs_in(files)
        if overwrite or any(run.swapping for run in runs):  # interrupted: the holder of the lease finds out
            return
        living = _living(runs, target)
        if _record_of(export, living) is None:
            _refuse_different(export, living)


def _refuse_different(export: Export, living: list[Run]) -> None:
    target = export.target
    other = next((run for run in living if run.in_place), None)
    if other is not None:
        what = difference(plan_in(other).fingerprint_fields, export.fingerprint_fields)
        raise target.refusal(f"It was written with other arguments: {what}.")


def _refuse_foreign(files: Files, target: Target, overwrite: bool = False) -> None:
    """Raise if the target holds what no run has written; a run that starts meanwhile writes its plan first."""
    _refuse_linked(files, target)
    if runs_in(files):
        return
    try:
        refusal = target.refusal() if target.occupied() and not overwrite else None
    except FileExistsError as error:
        refusal = error
    if refusal is not None and not runs_in(files):
        raise refusal


def _refuse_linked(files: Files, target: Target) -> None:
    """Raise if the records folder is a link to the records of another target."""
    folder = Path(f"{target.url}{ENDING}")
    if not folder.is_symlink():
        return
    linked = folder.resolve()
    if linked.name.endswith(ENDING) and (linked.name != folder.name or os.path.exists(target_url(files))):
        raise FileExistsError(
            f"{folder} is a link to {linked}, the records of another export. They will not be changed; remove the link."
        )


def _records_of(export: Export) -> Files:
    files = export.records
    if files is None:
        raise ValueError(f"{export.target.url} has no place for records, which the parts of an export need.")
    return files


def _living(runs: list[Run], target: Target) -> list[Run]:
    """List the runs that were begun and whose store still exists."""
    return [run for run in runs if run.begun and target.holds(url_of(run, target), written=run.records.has("receipts"))]


def _record_of(export: Export, living: list[Run]) -> Run | None:
    """Return the run with the fingerprint of an export."""
    fingerprint = fingerprint_of(export.fingerprint_fields)
    # A run that is to replace the target comes first: it was asked for last.
    for run in sorted(living, key=lambda run: run.in_place):
        if run.plan.get("fingerprint") == fingerprint:
            return run
    return None


def _resume(export: Export, files: Files, lease: HeldLease, runs: list[Run]) -> NewRun | StartedRun:
    """Return the run to resume, or a new one where the target is free."""
    target = export.target
    living = _living(runs, target)
    record = _record_of(export, living)
    if record is not None:
        return StartedRun.of(target, record, lease)
    _refuse_different(export, living)
    over = [run for run in runs if run not in living]
    _discard_empty(over, target)
    if target.occupied():
        raise target.refusal()
    # Records stay until the run starts: it may still be refused.
    return NewRun(target, Records(files, new_id()), lease, target.url, make_room=partial(_remove, over, target))


def _start_over(export: Export, files: Files, lease: HeldLease, runs: list[Run]) -> NewRun:
    """Return a new run; where stores can be renamed, the old store stays until the new one is complete.

    In a bucket it stays until the new run starts: cluster, plan and sources are checked before.
    """
    target = export.target
    _discard_empty(runs, target)
    run_id, occupied = new_id(), target.occupied()
    if occupied:
        target.check_replaceable()
    url = target.beside(run_id) if occupied else target.url
    is_removed = occupied and url == target.url
    if is_removed:
        _refuse_own_store(export)

    def make_room() -> None:
        if is_removed:
            _remove_store(export)
        _remove([run for run in runs if url == target.url or not (run.in_place and run.begun)], target)

    return NewRun(target, Records(files, run_id), lease, url, overwrites=True, make_room=make_room)


def new_id() -> str:
    """Return the name of a new run."""
    return uuid4().hex[:8]


def _discard_empty(runs: list[Run], target: Target) -> None:
    """Remove the empty store at the target if a run ended while it made it."""
    in_place = [run for run in runs if run.in_place]
    if in_place and not any(run.begun for run in in_place):
        target.discard()


def _remove(runs: list[Run], target: Target) -> None:
    """Remove the records of runs that are not resumed, and stores beside the target."""
    for run in runs:
        if not run.in_place:
            target.clear(url_of(run, target))
        run.records.remove()


def _settled(runs: list[Run], target: Target) -> list[Run]:
    """Correct the place of a run that replaced the target and was killed before it could write that down."""
    for run in runs:
        if not run.swapping or run.in_place:
            continue
        if not target.holds(url_of(run, target), written=True) and target.holds(target.url, written=True):
            # The store that it replaced is gone, so its records must not be taken for those of the new one.
            for other in runs:
                if other.in_place:
                    other.records.remove()
            others = [other for other in runs if other is not run and not other.in_place]
            return [*others, run.saved(in_place=True, swapping=False)]
    return runs


@contextmanager
def _folder_of(files: Files) -> Iterator[None]:
    """Remove folders that were made for a lease and are empty at the end."""
    folder = files.folder
    folders = [] if folder is None else [folder, *folder.parents]
    made = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()
