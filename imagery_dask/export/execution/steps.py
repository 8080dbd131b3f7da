"""Steps of an export's run: what is left to do, the empty store, the blocks, the end.

The order in which things are written is what makes it safe to kill at any moment::

    lease -> plan -> empty store -> "begun" -> blocks, each with its receipt -> attributes, ledger -> "finished"

What has a plan and was not begun is removed and begun anew; what was begun goes on with the blocks without a receipt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from imagery_dask.cluster import WorkerResources, resources_of
from imagery_dask.errors import TargetFullError
from imagery_dask.export.core.base import Export, RunOptions, tasks_of
from imagery_dask.export.core.options import block_bytes_of, most_missing
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.core.session import Session
from imagery_dask.records.journal import Records
from imagery_dask.records.ledger import missing_first, write_ledger
from imagery_dask.records.receipts import counts_of
from imagery_dask.records.runs import now
from imagery_dask.run import BlockTask, Rules, RunReport, is_full, run_blocks
from imagery_dask.run.progress import shown
from imagery_dask.sources import ReadCounts

__all__ = ["begin", "check_workers", "clear_when_full", "close", "left_to_do", "report_of", "run_left"]


@contextmanager
def clear_when_full(out: str) -> Iterator[None]:
    """Say so where the records, or the empty store, found no space."""
    try:
        yield
    except TargetFullError:
        raise
    except OSError as error:
        if not is_full(error):
            raise
        raise TargetFullError(f"No space is left for {out}: {error}. Make room, and the same call goes on.") from None


def begin(export: Export, run_options: RunOptions, session: Session, client: Client) -> None:
    """Write down what is going to be written, and make the empty store."""
    plan = run_options.plan or export.plan(resources_of(client), block_bytes_of(run_options.block_mib))
    most_missing(run_options.max_missing, plan)  # before there is anything that would be left behind
    session.begin(plan)
    try:
        export.create(session.place, session, client)
    except BaseException:
        session.abandon()
        raise
    session.begun()


def check_workers(export: Export, run_options: RunOptions, session: Session, client: Client) -> None:
    """Refuse a cluster that cannot write there, or whose workers are too small for blocks that are planned."""
    export.check(client)
    planned = session.plan or run_options.plan
    if planned is not None:
        _check_memory(export, planned, resources_of(client))


def run_left(
    export: Export,
    run_options: RunOptions,
    session: Session,
    client: Client,
    report: RunReport,
    todo: NDArray[np.bool_] | None,
) -> None:
    """Run the blocks that are to be done, stage by stage."""
    assert session.plan is not None
    rules = Rules(
        records=session.records, todo=todo, most_missing=most_missing(run_options.max_missing, session.plan),
        check=session.check, max_requests=run_options.max_requests, on_failure=partial(_set_aside, session.records),
    )  # fmt: skip
    with shown(run_options.progress, report.blocks, report.before) as on_progress:
        run_blocks(client, _stages(export, run_options, session, report, todo), report, on_progress, rules)


def _check_memory(export: Export, plan: ExportPlan, resources: WorkerResources) -> None:
    """Refuse blocks that were planned for larger workers."""
    needed = export.held_bytes(plan)
    if needed > resources.thread_memory:
        raise ValueError(
            f"{export.url}: the blocks were planned for workers with more memory: a task would hold {needed / 1e9:.3g} "
            f"GB, and a worker here has {resources.thread_memory / 1e9:.3g} GB for each thread. Take larger workers, "
            "or start over with smaller blocks (overwrite=True, --overwrite --block-mib N)."
        )


def _stages(
    export: Export, run_options: RunOptions, session: Session, report: RunReport, todo: NDArray[np.bool_] | None
) -> Iterator[Sequence[BlockTask]]:
    """Tasks of the stages: where a repair wrote other voxels than there had been, what is made of them follows."""
    for index, tasks in enumerate(tasks_of(export, session)):
        if index and run_options.repair and todo is not None:
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


def left_to_do(session: Session, repair: bool = False) -> NDArray[np.bool_]:
    """Which blocks an export that goes on has to do, by number."""
    assert session.plan is not None
    todo = np.ones(session.plan.blocks, bool)
    todo[session.receipts()["block"].astype(np.int64)] = False
    if repair:
        damaged, changed = session.damaged()
        todo[damaged + changed] = True
        todo |= _made_of(session.plan, changed)
    return todo


def report_of(session: Session, todo: NDArray[np.bool_] | None, counted: NDArray[np.bool_] | None = None) -> RunReport:
    """Report that begins with what earlier calls have done.

    Parameters
    ----------
    session : Session
        Where the export stands.
    todo : ndarray of bool or None
        Blocks that are to be done, by number; None is all of them, of an export that has just begun.
    counted : ndarray of bool, optional
        Blocks that the report is of; all by default.
    """
    plan = session.plan
    assert plan is not None
    report = RunReport(plan.blocks, voxels=plan.voxels) if counted is None else RunReport(int(counted.sum()))
    if todo is None or session.records is None:
        return report
    receipts = session.receipts()
    numbers = receipts["block"].astype(np.int64)
    receipts = receipts[~todo[numbers] & (True if counted is None else counted[numbers])]
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


def close(export: Export, session: Session, report: RunReport) -> None:
    """Say in the store what was missing, and let it take its place."""
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
