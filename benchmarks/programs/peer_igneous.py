"""igneous."""

from __future__ import annotations

import igneous.task_creation as tc
from taskqueue import LocalTaskQueue

CORES = 2


def precomputed(source: str, kind: str, start: list[int], stop: list[int], out: str, levels: int) -> None:
    """Copy level 0 and make the other mips in the same tasks, whose size decides how many there are."""
    side = 64 * 2 ** (levels - 1)
    tasks = tc.create_transfer_tasks(
        source, f"file://{out}", chunk_size=(64, 64, 64), shape=(side, side, 128), compress=False, no_src_update=True,
    )  # fmt: skip
    queue = LocalTaskQueue(parallel=CORES, progress=False)
    queue.insert(tasks)
    queue.execute()
