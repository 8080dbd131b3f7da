"""Let a store that was written become another export, of which few blocks differ.

A store's receipts say which of its blocks hold the voxels of its run. To update it is to make the run of the other
export, with the receipts of the blocks that are equal in both, and to remove the run that was before; the blocks that
are left to do are then written like those of any run that is resumed. In this order, a process may be killed at any
moment: until the run before is removed, no block has been written::

    lease -> plan -> receipts of equal blocks -> "begun" -> other runs removed -> blocks, as `execute` writes them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import ExportPlan, described_volume
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.core.store_metadata import keep_metadata
from imagery_dask.export.execution.resume import new_id, open_update, refuse_own_source
from imagery_dask.records.receipts import chosen
from imagery_dask.records.runs import Records, Run, now

__all__ = ["update_run"]

# Receipts that are appended at once.
APPENDED = 2**14


def update_run(
    export: Export, but_for: Collection[str], changed: Callable[[ExportPlan], NDArray[np.bool_]]
) -> int | None:
    """Make the run that has written a store the run of another export, whose blocks that differ are left to do.

    Parameters
    ----------
    export : Export
        What the store is to become.
    but_for : collection of str
        Fields of the fingerprint in which it differs from what the store is.
    changed : callable
        Given the plan of the store as it is, marks the blocks that differ, by number.

    Returns
    -------
    int or None
        Number of blocks that differ; None if there is no store that differs in these fields alone.

    Raises
    ------
    TargetBusyError, FileExistsError
        As `open_update`.
    """
    refuse_own_source(export)
    if export.records is None:
        return None
    with open_update(export, but_for) as opened:
        if opened is None:
            return None
        before, runs = opened
        # What was not written as it should be, and what was found damaged, is written like a block that differs.
        differ = changed(before.plan) | before.left_to_do(repair=True)
        _make_run(export, before, differ)
        for run in runs:
            run.records.remove()
        return int(differ.sum())


def _make_run(export: Export, before: StartedRun, differ: NDArray[np.bool_]) -> None:
    """Write down the run of an export whose equal blocks are those of a run before."""
    plan = replace(
        before.plan, volumes=[described_volume(volume) for volume in export.volumes],
        fingerprint_fields=export.fingerprint_fields,
    )  # fmt: skip
    record = Run(Records(before.records.files, new_id()), plan.to_json(), now()).saved()
    receipts = before.receipts
    kept = chosen(receipts, ~differ[receipts["block"].astype(np.int64)])
    for first in range(0, len(kept), APPENDED):
        record.records.append("receipts", kept[first : first + APPENDED].tobytes(), at_once=False)
    record.records.flush("receipts")
    numbers = set(kept["block"].tolist())
    for line in before.records.lines("ledger"):
        if line.get("block") in numbers:
            record.records.append("ledger", json.dumps(line).encode() + b"\n")
    started = StartedRun(before.target, record, plan, before.lease)
    keep_metadata(export, started)
    started.begun()
