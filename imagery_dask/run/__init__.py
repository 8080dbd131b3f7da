"""RunOptions blocks on a cluster: a bounded window of them, receipts of those that are done, a report of all."""

from imagery_dask.run.block import BlockTask, Written, is_full
from imagery_dask.run.report import FailedBlock, RunReport
from imagery_dask.run.window import WINDOW_PER_THREAD, Rules, Stages, check_missing, run_blocks

__all__ = [
    "WINDOW_PER_THREAD",
    "BlockTask",
    "FailedBlock",
    "Rules",
    "RunReport",
    "Stages",
    "Written",
    "check_missing",
    "is_full",
    "run_blocks",
]
