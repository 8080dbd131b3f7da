"""Tell how far exports are, from their records alone: without a cluster, and without writing anything."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagery_dask.annotations import JsonObject
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.core.run_states import plan_in
from imagery_dask.export.reports.block_states import Outcomes, outcomes_of, recent_rate
from imagery_dask.records.drivers import Driver, driver_of
from imagery_dask.records.lease import holder_of, is_held
from imagery_dask.records.parts import part_holders
from imagery_dask.records.runs import Run, record_folders, runs_in, time_of
from imagery_dask.storage.atomic_files import Files, records_folder
from imagery_dask.storage.buckets import clear_errors

__all__ = ["Failure", "Holder", "StageStatus", "State", "Status", "drivers_of", "status_of"]

State = Literal["running", "interrupted", "failed", "complete", "damaged"]
FAILURES_KEPT = 10


@dataclass(frozen=True, slots=True)
class Holder:
    """Process that holds the lease on an export, or on a part of it.

    Parameters
    ----------
    host, pid : str, int
        Which process.
    heard_of_seconds_ago : float
        When it last renewed the lease.
    part : str or None
        Which part it writes, as ``"3/8"``; None for all blocks, or those that parts have left.
    """

    host: str
    pid: int
    heard_of_seconds_ago: float
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A block that failed and has not been written since."""

    block: int
    name: str
    reason: str
    attempts: int
    when: float


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How far the blocks of one volume in one stage are."""

    stage: int
    volume: str
    doing: str
    level: int
    blocks: int
    done: int


@dataclass(frozen=True, slots=True)
class Status:
    """How far an export is.

    Parameters
    ----------
    out, kind, run : str
        Where it is written, which writer, and the name of the run among its records.
    state : {"running", "interrupted", "failed", "complete", "damaged"}
        A process is writing; none is, and blocks are left; none is, and blocks failed; all blocks are written; `verify`
        found blocks that differ from what was written.
    created : str
        When the run was started, ISO 8601.
    finished : str or None
        When it was complete.
    blocks, done, failed : int
        Blocks in all; with a receipt; that failed and have no receipt.
    missing, zero_roots, repeats : int
        Storage chunks of the source that were missing, supervoxels without a root, attempts that were repeated.
    refused_or_absent : int
        Those among the missing chunks that may exist: the server answers HTTP 403 also for files that do not.
    written_bytes, voxels : int
        Bytes that are written, uncompressed; voxels of the first levels when all are.
    first, last : float or None
        When the first and the last block was done, s since 1970.
    blocks_per_second, bytes_per_second : float or None
        Over the last five minutes in which blocks were written; pauses between calls do not count.
    seconds_left : float or None
        Until all blocks are done, at that rate; None if no process is writing, or none has finished a block yet.
    holders : tuple of Holder
        Processes that are writing: one, or one for each part.
    damaged : tuple of int
        Blocks that `verify` found damaged.
    failures : tuple of Failure
        The first few of the blocks that failed.
    stages : tuple of StageStatus
        How far each stage is.
    """

    out: str
    kind: str
    run: str
    state: State
    created: str
    finished: str | None
    blocks: int
    done: int
    failed: int
    missing: int
    zero_roots: int
    repeats: int
    refused_or_absent: int
    written_bytes: int
    voxels: int
    first: float | None
    last: float | None
    blocks_per_second: float | None
    bytes_per_second: float | None
    seconds_left: float | None
    holders: tuple[Holder, ...]
    damaged: tuple[int, ...]
    failures: tuple[Failure, ...]
    stages: tuple[StageStatus, ...]


def status_of(out: str | os.PathLike[str]) -> list[Status]:
    """Tell how far the exports to a target are.

    Parameters
    ----------
    out : str or path
        What was exported to: a store or volume, or the prefix of slices; or the folder of the records itself.

    Returns
    -------
    list of Status
        One for each run: several where slices with one prefix show several things, or where an export is to replace
        another one.

    Raises
    ------
    FileNotFoundError
        There are no records of an export.
    """
    text = os.fspath(out).removeprefix("precomputed://").rstrip("/")
    if not text:
        raise ValueError("OUT is empty; give the folder, URL or prefix that was exported to.")
    with clear_errors(text):
        statuses = [status for files in record_folders(text) for status in _statuses(files)]
    if not statuses:
        raise FileNotFoundError(
            f"{text} has no records of an export ({records_folder(text).url}, or .{Path(text).name}_WHAT.*.receipts of "
            "slices). Give what was exported to; records that were removed cannot be made again."
        )
    return statuses


def drivers_of(out: str | os.PathLike[str]) -> list[Driver]:
    """Return the jobs that were submitted (``imagery-dask submit``) to export to a target, also before they start."""
    text = os.fspath(out).removeprefix("precomputed://").rstrip("/")
    with clear_errors(text):
        drivers = [driver_of(files) for files in record_folders(text)] if text else []
    return [driver for driver in drivers if driver is not None]


def _statuses(files: Files) -> list[Status]:
    """Return the status of each run of a records folder."""
    runs = runs_in(files)
    now = time.time()
    names = [run.records.run for run in runs]
    of_run: dict[str, list[Holder]] = {name: [] for name in names}
    for run, holder in _holders(files, now) if runs else ():
        of_run[run if run in of_run else names[-1]].append(holder)  # the last run, if the lease does not name one yet
    return [_status(run, tuple(of_run[run.records.run]), now) for run in runs]


def _holders(files: Files, now: float) -> Iterator[tuple[str | None, Holder]]:
    """Return the processes that hold a lease, and the run that each writes."""
    whole = holder_of(files)
    parts = ((f"{part.number}/{part.parts}", held) for part, held in part_holders(files))
    for part, held in [*([(None, whole)] if whole is not None else []), *parts]:
        if is_held(held):
            heard_of = max(0.0, now - float(held["renewed"]))
            yield held.get("run"), Holder(str(held["host"]), int(held["pid"]), heard_of, part)


def _status(run: Run, holders: tuple[Holder, ...], now: float) -> Status:
    plan = plan_in(run)
    outcomes = outcomes_of(run.records, plan.blocks)
    receipts = outcomes.receipts
    done, failed = len(receipts), len(outcomes.failed)
    state = _state(run, outcomes, plan.blocks, bool(holders))
    running = state == "running"
    rate = recent_rate(receipts, now if running else None)
    left = (plan.blocks - done - failed) / rate[0] if running and rate is not None and rate[0] else None
    return Status(
        out=plan.url, kind=plan.kind, run=run.records.run, state=state, created=run.created, finished=run.finished,
        blocks=plan.blocks, done=done, failed=failed, missing=outcomes.total("missing"),
        zero_roots=outcomes.total("zero_roots"), repeats=outcomes.repeats,
        refused_or_absent=outcomes.refused_or_absent,
        written_bytes=outcomes.total("written_bytes"), voxels=plan.voxels,
        first=float(receipts["finished"].min()) if done else None,
        last=float(receipts["finished"].max()) if done else None,
        blocks_per_second=None if rate is None else rate[0], bytes_per_second=None if rate is None else rate[1],
        seconds_left=left, holders=holders if running else (), damaged=outcomes.damaged,
        failures=tuple(_failure(line) for line in list(outcomes.failed.values())[:FAILURES_KEPT]),
        stages=tuple(_stages(plan, outcomes)),
    )  # fmt: skip


def _state(run: Run, outcomes: Outcomes, blocks: int, held: bool) -> State:
    complete = run.finished is not None and len(outcomes.receipts) == blocks and not outcomes.damaged
    if complete:  # a process that holds the lease has nothing to do
        return "complete"
    if held:
        return "running"
    if outcomes.damaged:
        return "damaged"
    return "failed" if outcomes.failed else "interrupted"


def _failure(line: JsonObject) -> Failure:
    attempts = line.get("attempts", 1)
    return Failure(
        int(line["block"]), str(line.get("name", "")), str(line.get("reason", "")),
        attempts if isinstance(attempts, int) else 1, time_of(line),
    )  # fmt: skip


def _stages(plan: ExportPlan, outcomes: Outcomes) -> Iterator[StageStatus]:
    numbers = outcomes.receipts["block"]  # sorted
    stages: Sequence[int] = [index for index, stage in enumerate(plan.stages) for _ in stage]
    for stage, (first, part) in zip(stages, plan.parts, strict=True):
        # Of the array's dtype: an int would be compared as a float, which merges large numbers.
        edges = numbers.dtype.type(first), numbers.dtype.type(first + len(part.blocks))
        below, upto = numbers.searchsorted(edges)
        yield StageStatus(stage, part.volume, part.doing, part.level, len(part.blocks), int(upto - below))
