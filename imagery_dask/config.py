"""Numbers that tune the program and determine no voxel, in one place.

``config.get("export.block_bytes")`` reads a number; ``with config.set({"export.block_bytes": 2**20}): ...`` changes it
for a while, in this process. The environment variable ``IMAGERY_DASK_EXPORT__BLOCK_BYTES`` (two underscores for each
dot) and YAML files in ``~/.config/imagery_dask/`` change it where a process starts, worker processes included
(`donfig <https://donfig.readthedocs.io>`_).
"""

from __future__ import annotations

from donfig import Config

__all__ = ["config"]

MIB = 2**20

config = Config(
    "imagery_dask",
    defaults=[
        {
            # Lazy arrays: the wanted size of a block.
            "lazy": {"block_bytes": 16 * MIB},
            "export": {
                # Three blocks must fit beside each other in a worker with 1 GB and other things to do.
                "block_bytes": 32 * MIB,
                # A small export is cut finer than memory asks for, so that threads end together.
                "small_block_bytes": 4 * MIB,
                "blocks_per_thread": 4,
                # What a block may hold to make several levels at once, and the least of it in a region of few blocks.
                "fused_bytes": 32 * MIB,
                "small_fused_bytes": 4 * MIB,
                "fused_blocks_at_least": 16,
            },
            "run": {
                # Short blocks share a task of dask, which costs driver and scheduler milliseconds.
                "batch_blocks": 128,
                # Attempts at a block that fails for a reason that may pass, and the pauses between them.
                "attempts": 4,
                "pauses_s": (1.0, 4.0, 16.0),
                # Workers that may die with a block before the block is taken to be the reason.
                "worker_deaths": 16,
                # How often the scheduler is asked for the number of its workers' threads.
                "ask_s": 5.0,
                # How long a cluster may be without a worker before the run ends.
                "no_worker_s": 600.0,
                # Seconds between progress lines, where there is no terminal for a bar.
                "progress_line_s": 10.0,
            },
            "requests": {
                # Attempts at a request for voxels; pauses between them grow from the first to the longest.
                "attempts": 5,
                "first_pause_s": 0.3,
                "longest_pause_s": 8.0,
                # A server whose Retry-After asks for longer is asked again after this.
                "longest_retry_after_s": 120.0,
                # To connect, and between two pieces of an answer.
                "timeout_s": (10, 60),
            },
            "graph": {
                "attempts": 5,
                "timeout_s": (10, 120),
                # Request bodies above this are compressed.
                "gzip_above": 1_000_000,
                # Ids in one request.
                "batch_ids": 100_000,
                # Fetching the supervoxels of listed roots costs a request for each root and process; looking up roots
                # costs one for each block. The former is chosen where it is fewer with this many processes.
                "processes": 8,
            },
            "lease": {
                "renew_s": 10.0,
                "expires_s": 60.0,
                # Longer than a file takes from one process to another.
                "look_again_s": 0.5,
            },
            # Receipts in one object of a bucket: 380 kB at most, so that a million receipts are 250 objects.
            "records": {"segment_records": 4096},
        }
    ],
)
