"""``python -m benchmarks.worker_host SCHEDULER COUNT THREADS``: many dask workers in one process, to their end."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from typing import Any

import dask
from distributed import Worker

# Of a worker that does nothing, these are most of its work; none is the scheduler's.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.admin.tick.interval": "1h",
    "distributed.admin.tick.cycle": "1h",
}


class LightWorker(Worker):
    """A worker that measures itself once: a machine runs few, and measuring a thousand of them would fill its cores."""

    _measured: Any = None

    async def get_metrics(self) -> Any:
        """Return the first metrics."""
        if self._measured is None:
            type(self)._measured = await super().get_metrics()
        return self._measured


async def main(scheduler: str, count: int, threads: int) -> None:
    """Run workers until the scheduler closes them."""
    with tempfile.TemporaryDirectory() as folder:
        # No nanny, no dashboard, no limit of memory.
        options = {"memory_limit": 0, "dashboard": False, "local_directory": folder, "host": "127.0.0.1"}
        workers = [LightWorker(scheduler, nthreads=threads, **options) for _ in range(count)]
        for worker in workers:
            await worker
        await asyncio.gather(*(worker.finished() for worker in workers))


if __name__ == "__main__":
    with dask.config.set(QUIET):
        asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
