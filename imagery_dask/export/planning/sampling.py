"""Measure a few blocks of an export, which are written into a temporary folder.

This module is run as a program, so that the memory that it measures is that of the blocks: it reads a pickled
`Sampling` from stdin and writes a pickled list of `Sample` to stdout.
"""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloudpickle import dumps

from imagery_dask.errors import ImageryDaskError
from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import NewRun
from imagery_dask.records.lease import NoLease
from imagery_dask.records.runs import Records
from imagery_dask.run.thread_workers import ThreadWorkers
from imagery_dask.sources import ReadCounts, collect_counts, tokens_for_own_workers
from imagery_dask.storage.atomic_files import records_folder
from imagery_dask.urls import location_of

__all__ = ["Sample", "Sampling", "sample_blocks"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one block took.

    Parameters
    ----------
    number : int
        Which block.
    volume : str
        Name of the volume.
    seconds : float
        Reading, computing and writing.
    voxels : int
        Voxels of the block.
    stored_bytes : int
        Bytes of the files that it wrote.
    files : int
        Number of these files.
    counts : ReadCounts
        What it read.
    peak_bytes : int
        Most memory of the process so far; 0 if it was not measured.
    cpu_seconds : float
        CPU time of the process, with that of the threads that fetch and encode.
    queued_seconds : float
        Time in which the block's thread was ready and other programs had the cores; 0 where that is not known.
    written_bytes : int
        Uncompressed bytes of what it wrote.
    """

    number: int
    volume: str
    seconds: float
    voxels: int
    stored_bytes: int
    files: int
    counts: ReadCounts
    peak_bytes: int
    cpu_seconds: float
    queued_seconds: float
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """Blocks to write as samples.

    Parameters
    ----------
    export : Export
        What is exported; nothing is written to its target.
    plan : ExportPlan
        Its blocks.
    numbers : sequence of int
        Which of them.
    """

    export: Export
    plan: ExportPlan
    numbers: Sequence[int]

    def __call__(self, measured: bool) -> list[Sample]:
        """Write the blocks, one after another."""
        with tempfile.TemporaryDirectory(prefix="imagery_dask-plan-") as folder:
            export = self.export.copied_to(os.path.join(folder, "sample"))
            records = Records(records_folder(os.path.join(folder, "sample")), "sample")
            run = NewRun(export.target, records, NoLease(), export.url).start(self.plan)
            workers, regions = ThreadWorkers(1), [self.plan.region(number) for number in self.numbers]
            export.prepare(run, workers, RunOptions(progress=False), regions)
            export.create(run, workers, regions)
            (tasks, *_) = export.tasks(run)
            samples = [_sample(tasks[number], number, Path(folder), measured) for number in self.numbers]
            first = samples[0]
            if not first.counts.root_requests:  # whose answers are kept
                # The first block opens volumes and stores, which no other one has to.
                warm = _sample(tasks[first.number], first.number, Path(folder), measured)
                if warm.seconds < first.seconds:
                    times = {name: getattr(warm, name) for name in ("seconds", "cpu_seconds", "queued_seconds")}
                    samples[0] = replace(first, **times)
            return samples


def sample_blocks(sampling: Sampling) -> list[Sample]:
    """Write some blocks in a process of their own, or in this process if they read its memory.

    Raises
    ------
    ImageryDaskError, ValueError, OSError
        As a block raises.
    """
    if any(_is_here(volume) for volume in sampling.export.volumes):
        return sampling(measured=False)
    ran = subprocess.run(
        [sys.executable, "-m", "imagery_dask.export.planning.sampling"],
        input=dumps(sampling), capture_output=True,
        env=os.environ | dict(tokens_for_own_workers()), check=False,
    )  # fmt: skip
    if ran.returncode:
        raise ImageryDaskError(f"The sample blocks could not be done: {ran.stderr.decode(errors='replace')[-2000:]}")
    result: list[Sample] | Exception = pickle.loads(ran.stdout)
    if isinstance(result, Exception):
        raise result
    return result


def _sample(task: Any, number: int, folder: Path, measured: bool) -> Sample:
    before = _sizes(folder)
    started, cpu_started, queued_before = time.perf_counter(), time.process_time(), _queued_s()
    with collect_counts() as counts:
        written = task()
    seconds = time.perf_counter() - started
    cpu_seconds, queued_seconds = time.process_time() - cpu_started, _queued_s() - queued_before
    after = _sizes(folder)
    new = [size for name, (size, when) in after.items() if before.get(name) != (size, when)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if measured else 0
    return Sample(
        number, task.volume, seconds, written.voxels, sum(new), len(new), counts, peak, cpu_seconds,
        min(seconds, queued_seconds), written.size,
    )  # fmt: skip


def _queued_s() -> float:
    """Return the time for which this thread was ready and had no core, so far."""
    try:
        # Linux: nanoseconds on a core, nanoseconds in the queue, number of turns.
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size of each file, and when it was written."""
    files = ((str(path), path.stat()) for path in folder.rglob("*") if path.is_file())
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in files}


def _is_here(volume: Any) -> bool:
    """Return True if a volume is in the memory of this process."""
    return volume.source is None or location_of(volume.source.cutout.path).startswith("mem")


def main() -> None:
    """Write the samples that stdin describes."""
    result_file = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed does not mix with the result
    try:
        result: Any = pickle.loads(sys.stdin.buffer.read())(measured=True)
    except Exception as error:
        result = error
    with os.fdopen(result_file, "wb") as file:
        file.write(pickle.dumps(result))


if __name__ == "__main__":
    main()
