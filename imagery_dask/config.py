"""Tuning parameters: block sizes, retries, timeouts. None of them changes a voxel of the result.

``config.get("export.block_bytes")`` reads a parameter; ``with config.set({"export.block_bytes": 2**20}): ...`` changes
it temporarily in this process. The environment variable ``IMAGERY_DASK_EXPORT__BLOCK_BYTES`` (two underscores for each
dot) and YAML files in ``~/.config/imagery_dask/`` set it for every process that starts afterwards, including workers
(see `donfig <https://donfig.readthedocs.io>`_).
"""

from __future__ import annotations

from donfig import Config

__all__ = ["config"]

MIB = 2**20

config = Config(
    "imagery_dask",
    defaults=[
        {
            # Target size of a block of a lazy array.
            "lazy": {"block_bytes": 16 * MIB},
            # Size of the cache of decoded chunks (`imagery_dask.sources.volumes.chunk_cache`); None is its default.
            "cache_bytes": None,
            # Largest result that is computed at once (`imagery_dask.arrays.guards`): None is a quarter of this
            # machine's memory, 0 no limit.
            "max_bytes": None,
            "export": {
                # Three blocks must fit into a worker with 1 GB of memory, beside everything else it holds.
                "block_bytes": 32 * MIB,
                # Small exports get smaller blocks, about this many per thread, so that all threads finish together.
                "small_block_bytes": 4 * MIB,
                "blocks_per_thread": 4,
                # Block that computes several levels at once: at most this, and smaller where it would leave fewer
                # blocks than so many, which threads share.
                "fused_bytes": 32 * MIB,
                "small_fused_bytes": 4 * MIB,
                "fused_blocks_at_least": 8,
            },
            "run": {
                # Size of an export from which `imagery-dask export` without --cluster starts processes. Blocks hold
                # Python's lock for a fifth to a half of their time, and a process has few requests in flight.
                "process_bytes": 2 * 2**30,
                # Fast blocks share a dask task, because each task costs the driver and scheduler milliseconds.
                "batch_blocks": 128,
                # Tasks that the workers of a cluster end in a second, from which the length of a task follows: 200 s
                # with a thousand threads, if blocks are shorter. A worker that dies repeats its task.
                "tasks_per_s": 5.0,
                # Attempts at a block that fails with a transient error, and the pauses between them.
                "attempts": 4,
                "pauses_s": (1.0, 4.0, 16.0),
                # Number of workers that may die while they process a block before the block is marked as failed.
                "worker_deaths": 16,
                # Seconds between two queries of the scheduler for the number of worker threads.
                "ask_s": 5.0,
                # Seconds in which the blocks of a number of workers are counted, where it follows what they achieve.
                "measure_s": 20.0,
                # Seconds without a heartbeat after which a worker is restarted and its blocks are given to others.
                "silent_s": 120.0,
                # Seconds that a cluster may be without workers before the run ends.
                "no_worker_s": 600.0,
                # Seconds between progress lines where the output is not a terminal.
                "progress_line_s": 10.0,
            },
            "requests": {
                # Attempts at a request for voxels; the pauses between them grow from the first to the longest.
                "attempts": 5,
                "first_pause_s": 0.3,
                "longest_pause_s": 8.0,
                # Upper limit of the pause that a Retry-After header can impose.
                "longest_retry_after_s": 120.0,
                # To connect, and between two pieces of a response.
                "timeout_s": (10, 60),
                # Beyond both timeouts, a response may take as long as the received bytes take at this rate.
                "slowest_bytes_per_s": 2000,
            },
            "graph": {
                "attempts": 5,
                "timeout_s": (10, 120),
                # Request bodies above this number of bytes are compressed.
                "gzip_above": 1_000_000,
                # Largest number of ids in one request.
                "batch_ids": 100_000,
                # Fetching the supervoxels of listed roots costs one request per root and process; looking up the roots
                # of supervoxels costs one per block. The cheaper one is chosen, for this number of processes.
                "processes": 8,
            },
            "lease": {
                # How often the holder of a lease renews it, and the age at which another process may take it over.
                "renew_s": 10.0,
                "expires_s": 60.0,
                # Pause before a new lease is read again; longer than a file takes to become visible to other processes.
                "look_again_s": 0.5,
            },
            # Receipts per object in a bucket: an object has at most 380 kB, and a million receipts make 250 objects.
            # Blocks of a task put their receipts together, but no later than after so many seconds.
            "records": {"segment_records": 4096, "put_s": 10.0},
        }
    ],
)
