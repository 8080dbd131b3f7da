"""Run blocks on a cluster: a bounded window of tasks, a receipt for each finished block, and a report.

This folder imports `cluster`, `records`, `sources` and what is below them, and knows no export format. Begin with
`block` (a block's task, and how a worker runs it); then read `window` (which blocks are submitted, repeated, given up).
Names are imported when they are first used: `window` loads dask.distributed, `report` does not.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.run.block import BlockTask, Chain, Written, is_full
    from imagery_dask.run.report import FailedBlock, RunReport
    from imagery_dask.run.window import WINDOW_PER_THREAD, Rules, Stages, check_missing, run_blocks
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.run.block": ["BlockTask", "Chain", "Written", "is_full"],
            "imagery_dask.run.report": ["FailedBlock", "RunReport"],
            "imagery_dask.run.window": ["WINDOW_PER_THREAD", "Rules", "Stages", "check_missing", "run_blocks"],
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
    "Written",
    "check_missing",
    "is_full",
    "run_blocks",
]
