"""Run blocks on workers: a bounded window of tasks, a receipt for each finished block, and a report.

This folder imports `cluster`, `records`, `sources` and what is below them, and knows no export format. Begin with
`block` (a block's task, and how a worker runs it); then read `window` (which blocks are submitted, repeated, given up)
and `workers` (what runs them: threads of this process, or a cluster).
Names are imported when they are first used. Only `dask_workers` loads dask.distributed, for runs on a cluster.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.run.block import BlockTask, Chain, Written, is_full
    from imagery_dask.run.report import FailedBlock, RunReport
    from imagery_dask.run.window import WINDOW_PER_THREAD, Rules, Stages, check_missing, run_blocks
    from imagery_dask.run.workers import Tasks, Workers, WorkersDied, tasks_at_once, workers_of
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.run.block": ["BlockTask", "Chain", "Written", "is_full"],
            "imagery_dask.run.report": ["FailedBlock", "RunReport"],
            "imagery_dask.run.window": ["WINDOW_PER_THREAD", "Rules", "Stages", "check_missing", "run_blocks"],
            "imagery_dask.run.workers": ["Tasks", "Workers", "WorkersDied", "tasks_at_once", "workers_of"],
        },
    )

__all__ = [
    "WINDOW_PER_THREAD",
    "BlockTask",
    "Chain",
    "FailedBlock",
    "Rules",
    "RunReport",
    "Stages",
    "Tasks",
    "Workers",
    "WorkersDied",
    "Written",
    "check_missing",
    "is_full",
    "run_blocks",
    "tasks_at_once",
    "workers_of",
]
