"""igneous."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import igneous.task_creation as tc
from taskqueue import LocalTaskQueue

from benchmarks.child import timed

CORES = 2
CHUNK = (64, 64, 64)


def precomputed(source: str, kind: str, start: list[int], stop: list[int], out: str, levels: int) -> None:
    """Copy level 0 and make the other mips in the same tasks, whose size decides how many there are.

    Without other mips, igneous copies the files of level 0, since source and target have the same chunks.
    """
    side = 64 * 2 ** (levels - 1)
    _run(tc.create_transfer_tasks(
        source, f"file://{out}", chunk_size=CHUNK, shape=(max(side, 128), max(side, 128), 128), compress=False,
        no_src_update=True, skip_downsamples=levels == 1,
    ))  # fmt: skip


def precomputed_mips(source: str, kind: str, start: list[int], stop: list[int], out: str, levels: int) -> Any:
    """Copy level 0, and make the other mips from it; times are those of the mips."""
    precomputed(source, kind, start, stop, out, 1)
    # A task holds as much as it takes to make so many mips.
    tasks = tc.create_downsampling_tasks(f"file://{out}", num_mips=levels - 1, compress=False)
    return timed(lambda: _run(tasks))


def _run(tasks: Iterable[Any]) -> None:
    queue = LocalTaskQueue(parallel=CORES, progress=False)
    queue.insert(tasks)
    queue.execute()
