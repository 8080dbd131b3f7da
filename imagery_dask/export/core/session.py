"""An export that is being written: its run, its lease, its records, and how it takes its place."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol
from uuid import uuid4

from numpy.typing import NDArray

from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.records.journal import Records
from imagery_dask.records.lease import Lease
from imagery_dask.records.parts import refuse_parts
from imagery_dask.records.runs import Run, now, remove_unplanned, runs_in
from imagery_dask.storage.files import Files

__all__ = ["DAMAGED", "Planned", "Session", "Target"]

DAMAGED = "damaged.json"


class Target(Protocol):
    """Where an export is written, and what may be there already."""

    url: str

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
    def fingerprint_fields(self) -> dict[str, Any]:
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
        self.place = target.url if run is None else run.url
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
        return self.place != self._target.url

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
            refuse_parts(self._files, self._target.url)
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
            if run.url != self._target.url:
                self._target.clear(run.url)
            run.records.remove()
        self.place = self._target.url
        if self._run is not None:
            self._run = self._run.saved(url=self.place, finished=when, swapping=False)
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
