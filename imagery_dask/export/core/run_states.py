"""The two states of a run that this process writes.

A `NewRun` holds the lease on the target, and nothing has been planned. `NewRun.start` writes the plan down and returns
a `StartedRun`, which has a plan and records.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array, EachProcess, JsonObject
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.records.lease import HeldLease
from imagery_dask.records.parts import refuse_parts
from imagery_dask.records.receipts import chosen, counts_of, receipts_in
from imagery_dask.records.runs import (
    PLAN,
    Records,
    Run,
    missing_first,
    now,
    refused_or_absent_in,
    remove_unplanned,
    runs_in,
)
from imagery_dask.run import RunReport
from imagery_dask.sources import ReadCounts

__all__ = ["DAMAGED", "NewRun", "StartedRun", "Target", "damaged_in", "plan_in", "url_of"]

DAMAGED = "damaged.json"
# Exists if a source vanished, so that missing chunks need not be missing.
DOUBTFUL = "doubtful.json"


class Target(Protocol):
    """What an export is written to: a store, a volume, or files with a common prefix."""

    @property
    def url(self) -> str:
        """Local path or URL."""
        ...

    @property
    def folder(self) -> str:
        """Folder or bucket that is written to."""
        ...

    @property
    def owns_folder(self) -> bool:
        """Return True if the folder is the store, False if it holds other files too."""
        ...

    def at(self, url: str) -> Any:
        """Return a target of the same kind at another URL."""
        ...

    def occupied(self) -> bool:
        """Return True if there is something that can be replaced; raise FileExistsError for anything else."""
        ...

    def refusal(self, why: str = "") -> FileExistsError:
        """Return the error for a target that is occupied, with the reason."""
        ...

    def holds(self, url: str, written: bool) -> bool:
        """Return True if the store of a run still exists; `written` tells whether it has blocks."""
        ...

    def beside(self, run: str) -> str:
        """Return the URL to which a run writes the store that replaces the target."""
        ...

    def check_writable(self) -> None:
        """Raise if this process cannot write to the target."""
        ...

    def check_workers(self, workers: EachProcess) -> None:
        """Raise if the workers cannot write to the target."""
        ...

    def recover(self) -> None:
        """Undo a replacement that was interrupted."""
        ...

    def swap(self, url: str) -> None:
        """Replace the target by the store that was written beside it."""
        ...

    def clear(self, url: str) -> None:
        """Remove the store of a run."""
        ...

    def check_replaceable(self) -> None:
        """Raise FileExistsError if what would be replaced holds files of somebody else."""
        ...

    def discard(self) -> None:
        """Remove the empty store of a run that had not begun; raise FileExistsError if it holds anything else."""
        ...


def plan_in(record: Run) -> ExportPlan:
    """Return the plan of a run; ValueError names the file if it is damaged."""
    try:
        return ExportPlan.from_json(record.plan)
    except ValueError as error:
        raise record.records.damaged(PLAN, str(error)) from error


def damaged_in(records: Records) -> JsonObject:
    """Return what `verify` found damaged: ``blocks``, ``source_changed`` (numbers), ``digests`` (of blocks before)."""
    nothing: JsonObject = {"blocks": [], "source_changed": [], "digests": {}}
    content = records.get(DAMAGED)
    written = nothing if content is None else content
    if isinstance(written, dict):
        written = nothing | written
        lists = [written["blocks"], written["source_changed"]]
        if isinstance(written["digests"], dict) and all(
            isinstance(some, list) and all(type(n) is int and n >= 0 for n in some) for some in lists
        ):
            return written
    raise records.damaged(DAMAGED, "it does not list blocks")


def url_of(record: Run, target: Target) -> str:
    """Return where a run writes: the target, or a store beside it."""
    return target.url if record.in_place else target.beside(record.records.run)


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that holds the lease and has no plan yet."""

    target: Target
    # Of the run; they are empty.
    records: Records
    lease: HeldLease
    # Where the run writes: the target, or a store beside it that replaces the target in the end.
    url: str
    # Whether an earlier export is replaced.
    overwrites: bool = False
    # Removes what the run replaces at its start: a store in a bucket, and records of earlier runs.
    make_room: Callable[[], None] = lambda: None

    @property
    def id(self) -> str:
        """Name of the run among the records."""
        return self.records.run

    @property
    def replaces(self) -> bool:
        """Return True if the store that is replaced exists until the end of the run."""
        return self.url != self.target.url

    def start(self, plan: ExportPlan) -> StartedRun:
        """Remove what is replaced, and write the plan down."""
        self.make_room()
        record = Run(self.records, plan.to_json(), now(), in_place=not self.replaces).saved()
        started = StartedRun(self.target, record, plan, self.lease, self.overwrites)
        started.receipts = receipts_in([])
        return started


@dataclass
class StartedRun:
    """A run with a plan and records."""

    target: Target
    record: Run
    plan: ExportPlan
    lease: HeldLease
    # Whether an earlier export is replaced.
    overwrites: bool = False

    @classmethod
    def of(cls, target: Target, record: Run, lease: HeldLease) -> StartedRun:
        """Return the run that a record describes."""
        return cls(target, record, plan_in(record), lease)

    @property
    def id(self) -> str:
        """Name of the run among the records."""
        return self.record.records.run

    @property
    def url(self) -> str:
        """Where the run writes: the target, or a store beside it."""
        return url_of(self.record, self.target)

    @property
    def records(self) -> Records:
        """Records of the run."""
        return self.record.records

    def file(self, name: str) -> str:
        """Return the name of a file of the run in the records folder."""
        return f"{self.id}/{name}"

    @property
    def replaces(self) -> bool:
        """Return True if the store that is replaced still exists."""
        return not self.record.in_place

    @property
    def finished(self) -> bool:
        """Return True if the store is complete."""
        return self.record.finished is not None

    @cached_property
    def receipts(self) -> Array:
        """Receipts of earlier calls, sorted by block."""
        return self.records.receipts(self.plan.blocks)

    def begun(self) -> None:
        """Write down that the empty store exists."""
        self.record = self.record.saved(begun=True)

    def abandon(self) -> None:
        """Remove a store that could not be made, and its records."""
        with suppress(Exception):  # the caller raises the error that led here
            if self.record.in_place:
                self.target.discard()
            else:
                self.target.clear(self.url)
            self.records.remove()

    def keep(self) -> None:
        """Hold the lease for the blocks that parts have left.

        Raises
        ------
        TargetBusyError
            A part is running.
        """
        refuse_parts(self.records.files, self.target.url)
        self.lease.keep_for("close")
        self.__dict__.pop("receipts", None)  # parts may have ended meanwhile

    def tidy(self) -> None:
        """Remove what killed processes left half-written among the records."""
        for folder in ("", self.id):
            self.records.files.remove_partial(folder)
        remove_unplanned(self.records.files)

    def finish(self) -> None:
        """Let the store replace the target, and write down that it is complete."""
        others = [run for run in runs_in(self.records.files) if run.records.run != self.id]
        if self.replaces:
            if self.target.occupied():
                self.target.check_replaceable()  # also what came while the new store was written
            self.record = self.record.saved(swapping=True)
        # Before the swap: a block of the replaced run that is still under way must not write into the new store.
        for run in others:
            if run.in_place:
                run.records.remove()
        if self.replaces:
            self.target.swap(self.url)
        for run in others:
            if not run.in_place:
                self.target.clear(url_of(run, self.target))
                run.records.remove()
        self.record = self.record.saved(in_place=True, finished=now(), swapping=False)
        self.records.remove(DOUBTFUL)

    def damaged(self) -> tuple[list[int], list[int]]:
        """Blocks that `verify` found damaged, and blocks of which the source has other voxels now."""
        written = damaged_in(self.records)
        of_plan = [[n for n in written[key] if n < self.plan.blocks] for key in ("blocks", "source_changed")]
        return of_plan[0], of_plan[1]

    def digests_before(self) -> dict[str, str]:
        """Hash of what had been written of each damaged block, by its number as text."""
        return dict(damaged_in(self.records)["digests"])

    def doubt_missing(self) -> None:
        """Let the next call do blocks with missing chunks again, since the source has vanished."""
        self.records.put(DOUBTFUL, {"missing": True})

    def left_to_do(self, repair: bool = False, redo_missing: bool = False) -> NDArray[np.bool_]:
        """Mark the blocks, by number, that have no receipt, are to be repaired, or had missing chunks."""
        todo = np.ones(self.plan.blocks, bool)
        todo[self.receipts["block"].astype(np.int64)] = False
        if redo_missing or self.records.get(DOUBTFUL):
            todo[self.receipts["block"][self.receipts["missing"] > 0].astype(np.int64)] = True
        if repair:
            damaged, changed = self.damaged()
            todo[damaged + changed] = True
            todo |= self.plan.made_of(changed)
        return todo

    def report(self, todo: NDArray[np.bool_], counted: NDArray[np.bool_] | None = None) -> RunReport:
        """Return a report that begins with the blocks of earlier calls.

        Parameters
        ----------
        todo : ndarray of bool
            Blocks that are left to do, by number.
        counted : ndarray of bool, optional
            Blocks that the report counts; all by default.
        """
        plan = self.plan
        report = RunReport(len(todo), voxels=plan.voxels) if counted is None else RunReport(int(counted.sum()))
        receipts = self.receipts
        numbers = receipts["block"].astype(np.int64)
        kept = ~todo[numbers] & (True if counted is None else counted[numbers])
        receipts, numbers = chosen(receipts, kept), numbers[kept]
        report.done = report.before = len(receipts)
        unsaid = refused_or_absent_in(self.records, receipts)
        report.written_bytes = report.before_bytes = int(receipts["written_bytes"].sum(dtype=np.uint64))
        for first, part in plan.parts:
            of_part = slice(*numbers.searchsorted([first, first + len(part.blocks)]))
            counts = counts_of(receipts[of_part])
            counts.refused_or_absent = int(unsaid[of_part].sum())
            report.counts.add(counts)
            report.counts_of.setdefault(part.volume, ReadCounts()).add(counts)
        if report.counts.missing:
            report.counts.missing_keys = [key for keys in missing_first(self.records).values() for key in keys]
        return report
