"""An export, whatever its format: planned, begun or gone on with, run block by block, closed.

The order in which things are written is what makes it safe to kill at any moment::

    lease -> plan -> empty store -> "begun" -> blocks, each with its receipt -> attributes, ledger -> "finished"

What has a plan and was not begun is removed and begun anew; what was begun goes on with the blocks without a receipt.
"""

from __future__ import annotations

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from imagery_dask.cluster import WAIT_S, Room, connect, room_of
from imagery_dask.errors import TargetFullError
from imagery_dask.export.html_report import checked_report, reported
from imagery_dask.export.inputs import Volume
from imagery_dask.export.limits import (
    block_bytes_of,
    checked_missing,
    checked_requests,
    most_missing,
)
from imagery_dask.export.plans import ExportPlan, Part, described_volume
from imagery_dask.export.previews import Preview
from imagery_dask.export.progress import shown
from imagery_dask.export.session import Session, Target, open_session
from imagery_dask.export.source_reads import source_chunks
from imagery_dask.files import Files
from imagery_dask.grid import XYZ
from imagery_dask.lazy import CutoutArray
from imagery_dask.plan import Region
from imagery_dask.records.journal import Records
from imagery_dask.records.ledger import missing_first, write_ledger
from imagery_dask.records.receipts import counts_of
from imagery_dask.records.runs import now
from imagery_dask.run import BlockTask, Rules, RunReport, is_full, run_blocks
from imagery_dask.sources import ReadCounts

__all__ = ["Export", "Running", "execute", "tasks_of"]


@dataclass(frozen=True, slots=True)
class Running:
    """How an export runs: nothing here decides a voxel.

    Parameters
    ----------
    cluster, workers, wait_s, retire_before_s
        See `imagery_dask.cluster.connect`.
    connected : callable or None
        Called with the client when there are workers.
    progress : bool or callable
        Show progress, or call with the `RunReport` after each block.
    overwrite : bool
        Start over where there is something.
    repair : bool
        Do the blocks again that `verify` found damaged.
    block_mib : float or None
        Size of blocks.
    max_missing : float, int or None
        Share, or number, of storage chunks that may be missing.
    max_requests : int or None
        Requests in flight to one server, from all workers together.
    report : str, path or None
        File that an HTML report is written to.
    plan : ExportPlan or None
        Blocks that were planned before.

    Raises
    ------
    ValueError
        For a size or a limit that is none.
    """

    cluster: Any = None
    workers: int | None = None
    wait_s: float = WAIT_S
    retire_before_s: float | None = None
    connected: Callable[[Client], None] | None = field(default=None, repr=False)
    progress: bool | Callable[[RunReport], None] = True
    overwrite: bool = False
    repair: bool = False
    block_mib: float | None = None
    max_missing: float | None = None
    max_requests: int | None = None
    report: str | os.PathLike[str] | None = None
    plan: ExportPlan | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        block_bytes_of(self.block_mib)
        checked_missing(self.max_missing)
        checked_requests(self.max_requests)


class Export(ABC):
    """What is written: a format, its options, and the volumes."""

    kind: ClassVar[str]
    out: str
    volumes: Sequence[Volume]
    target: Target
    # Arguments of the constructor besides data and place, as JSON has them.
    options: dict[str, Any]

    @property
    @abstractmethod
    def decides(self) -> dict[str, Any]:
        """Everything that decides the voxels, by name."""

    @property
    @abstractmethod
    def records(self) -> Files | None:
        """Where records are kept; None where there is no such place."""

    @abstractmethod
    def check(self, client: Client) -> None:
        """Refuse a cluster that cannot write there."""

    @abstractmethod
    def stages(self, room: Room, block_bytes: int | None) -> tuple[tuple[Part, ...], ...]:
        """Blocks, for a cluster of some size; ValueError for those that do not fit into a worker."""

    @abstractmethod
    def sources(self, part: Part) -> Sequence[CutoutArray | None]:
        """Give what the blocks of a part read of volumes; None stands for an array that is computed."""

    @property
    def margin(self) -> XYZ:
        """Voxels around a block that are read with it."""
        return (0, 0, 0)

    @abstractmethod
    def create(self, place: str, session: Session, client: Client) -> None:
        """Make the empty store."""

    def create_sample(self, session: Session, client: Client, regions: Sequence[Region]) -> None:
        """Make what blocks of some regions need to be done for a test."""
        del regions
        self.create(session.place, session, client)

    @abstractmethod
    def tasks(self, place: str, session: Session, stages: Sequence[Sequence[Part]]) -> Sequence[Sequence[BlockTask]]:
        """Tasks of the blocks, made as they are asked for."""

    @abstractmethod
    def at(self, place: str) -> Export:
        """Return the same export to another place."""

    @abstractmethod
    def objects(self, plan: ExportPlan) -> int:
        """Count the files or objects that are written, at most."""

    @abstractmethod
    def held_bytes(self, plan: ExportPlan) -> int:
        """Estimate what a task holds at most."""

    def tidy(self, place: str) -> None:
        """Remove what killed processes left half-written, when none of this export writes any more."""
        del place

    def close(self, place: str, report: RunReport) -> None:
        """Say in the store what was missing."""
        del place, report

    def notes(self, plan: ExportPlan) -> Iterator[str]:
        """Say what a reader of the report should know."""
        del plan
        return iter(())

    def previews(self, place: str, session: Session, whole: Sequence[Part]) -> Iterator[Preview]:
        """Give pictures of what is written, for a report; of `whole` parts of the plan all blocks are done."""
        del place, session, whole
        return iter(())

    def plan(self, room: Room, block_bytes: int | None) -> ExportPlan:
        """Plan for a cluster of some size."""
        stages = self.stages(room, block_bytes)
        return ExportPlan(
            kind=self.kind, out=self.out, volumes=[described_volume(volume) for volume in self.volumes],
            options=self.options, decides=self.decides, stages=stages,
            voxels=sum(math.prod(map(int, volume.array.shape)) for volume in self.volumes),
            source_chunks=source_chunks(
                ((part, self.sources(part)) for stage in stages for part in stage), self.margin
            ),
        )  # fmt: skip


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
    with _clear_when_full(export.out), open_session(export, running.overwrite) as session:
        todo = _todo(session, running.repair) if session.plan is not None else None
        if todo is not None and not todo.any():
            report = _report(session, todo)
            with reported(export, session, report, page):
                _close(export, session, report)
        else:
            with connect(running.cluster, running.workers, running.wait_s, running.retire_before_s) as client:
                if running.connected is not None:
                    running.connected(client)
                report = _run(export, running, session, client, todo, page)
    report.raise_for_failures()
    return report


@contextmanager
def _clear_when_full(out: str) -> Iterator[None]:
    """Say so where the records, or the empty store, found no space."""
    try:
        yield
    except TargetFullError:
        raise
    except OSError as error:
        if not is_full(error):
            raise
        raise TargetFullError(f"No space is left for {out}: {error}. Make room, and the same call goes on.") from None


def tasks_of(export: Export, session: Session) -> Sequence[Sequence[BlockTask]]:
    """Tasks of an export that was begun."""
    assert session.plan is not None
    return export.tasks(session.place, session, session.plan.stages)


def _run(
    export: Export,
    running: Running,
    session: Session,
    client: Client,
    todo: NDArray[np.bool_] | None,
    page: str | None,
) -> RunReport:
    export.check(client)
    room = room_of(client)
    planned = session.plan or running.plan
    if planned is not None:
        _check_room(export, planned, room)
    if session.plan is None:
        plan = planned or export.plan(room, block_bytes_of(running.block_mib))
        most_missing(running.max_missing, plan)  # before there is anything that would be left behind
        session.begin(plan)
        try:
            export.create(session.place, session, client)
        except BaseException:
            session.abandon()
            raise
        session.begun()
    assert session.plan is not None
    report = _report(session, todo)
    rules = Rules(
        records=session.records, todo=todo, most_missing=most_missing(running.max_missing, session.plan),
        check=session.check, max_requests=running.max_requests, on_failure=partial(_set_aside, session.records),
    )  # fmt: skip
    with reported(export, session, report, page):
        with shown(running.progress, session.plan.blocks, report.before) as on_progress:
            run_blocks(client, _stages(export, running, session, report, todo), report, on_progress, rules)
        _close(export, session, report)
    return report


def _check_room(export: Export, plan: ExportPlan, room: Room) -> None:
    """Refuse blocks that were planned for larger workers."""
    needed = export.held_bytes(plan)
    if needed > room.thread_memory:
        raise ValueError(
            f"{export.out}: the blocks were planned for workers with more memory: a task would hold {needed / 1e9:.3g} "
            f"GB, and a worker here has {room.thread_memory / 1e9:.3g} GB for each thread. Take larger workers, or "
            "start over with smaller blocks (overwrite=True, --overwrite --block-mib N)."
        )


def _stages(
    export: Export, running: Running, session: Session, report: RunReport, todo: NDArray[np.bool_] | None
) -> Iterator[Sequence[BlockTask]]:
    """Tasks of the stages: where a repair wrote other voxels than there had been, what is made of them follows."""
    for index, tasks in enumerate(tasks_of(export, session)):
        if index and running.repair and todo is not None:
            _make_again(session, report, todo)
        yield tasks


def _make_again(session: Session, report: RunReport, todo: NDArray[np.bool_]) -> None:
    assert session.plan is not None
    assert session.records is not None
    before, now = session.digests_before(), session.records.receipts()
    others = {
        int(row["block"]) for row in now if before.get(str(row["block"])) not in (None, row["digest"].item().hex())
    }
    more = _made_of(session.plan, others) & ~todo
    todo |= more
    rows = session.receipts()
    rows = rows[more[rows["block"].astype(np.int64)]]
    report.done, report.before = report.done - len(rows), report.before - len(rows)
    size = int(rows["written_bytes"].sum(dtype=np.uint64))
    report.written_bytes, report.before_bytes = report.written_bytes - size, report.before_bytes - size


def _made_of(plan: ExportPlan, numbers: Collection[int]) -> NDArray[np.bool_]:
    """Blocks that are made of others: which are not known one by one, so that it is all of the volume."""
    found = np.zeros(plan.blocks, bool)
    volumes = {part.volume for first, part in plan.parts if any(0 <= n - first < len(part.blocks) for n in numbers)}
    for first, part in plan.parts:
        if part.volume in volumes and part.doing == "downsample":
            found[first : first + len(part.blocks)] = True
    return found


def _set_aside(records: Records | None, number: int, task: BlockTask, reason: str, attempts: int) -> None:
    """Write down a block that failed."""
    if records is not None:
        line = {"block": number, "name": task.name, "volume": task.volume, "reason": reason}
        line |= {"attempts": attempts, "when": time.time()}
        records.append("failed", json.dumps(line).encode() + b"\n")


def _todo(session: Session, repair: bool) -> NDArray[np.bool_]:
    """Which blocks an export that goes on has to do, by number."""
    assert session.plan is not None
    todo = np.ones(session.plan.blocks, bool)
    todo[session.receipts()["block"].astype(np.int64)] = False
    if repair:
        damaged, changed = session.damaged()
        todo[damaged + changed] = True
        todo |= _made_of(session.plan, changed)
    return todo


def _report(session: Session, todo: NDArray[np.bool_] | None) -> RunReport:
    """Report that begins with what earlier calls have done."""
    plan = session.plan
    assert plan is not None
    report = RunReport(plan.blocks, voxels=plan.voxels)
    if todo is None or session.records is None:
        return report
    receipts = session.receipts()
    receipts = receipts[~todo[receipts["block"].astype(np.int64)]]
    report.done = report.before = len(receipts)
    report.written_bytes = report.before_bytes = int(receipts["written_bytes"].sum(dtype=np.uint64))
    report.counts = counts_of(receipts)
    if report.counts.missing:
        report.counts.missing_keys = [key for keys in missing_first(session.records).values() for key in keys]
    for first, part in plan.parts:
        of_part = receipts[(receipts["block"] >= first) & (receipts["block"] < first + len(part.blocks))]
        counts = counts_of(of_part)
        if part.volume in report.counts_of:
            report.counts_of[part.volume].add(counts)
        else:
            report.counts_of[part.volume] = counts
    return report


def _close(export: Export, session: Session, report: RunReport) -> None:
    assert session.plan is not None
    report.notes += export.notes(session.plan)
    if session.finished and report.before == report.blocks:
        return
    session.check()
    export.tidy(session.place)
    session.tidy()
    if session.records is not None:
        # In the order of the blocks, however often the run was interrupted.
        first = missing_first(session.records)
        for volume, keys in first.items():
            report.counts_of.setdefault(volume, ReadCounts()).missing_keys = keys
        report.counts.missing_keys = [key for keys in first.values() for key in keys]
        write_ledger(session.records)
    export.close(session.place, report)
    if session.replaces:  # a whole store is not replaced by one with holes
        report.raise_for_failures()
    if report.ok:
        session.finish(now())
