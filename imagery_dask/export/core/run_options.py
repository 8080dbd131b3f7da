"""How an export runs: the cluster, and limits that the user sets. Nothing here determines a voxel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from imagery_dask.cluster import WAIT_S, cores
from imagery_dask.config import config
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.records.parts import Part
from imagery_dask.run import RunReport, Workers, workers_of
from imagery_dask.validate import number, whole_number

__all__ = ["RunOptions", "block_bytes_of"]

MIB = 2**20
# Processes of this machine.
LOCAL = "local"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How an export runs.

    Parameters
    ----------
    cluster, workers, max_workers, threads, wait_s, retire_before_s
        See `imagery_dask.run.workers_of`.
    large : str or None
        Cluster of exports of `run.process_bytes` or more, if `cluster` is None. By default threads of this process.
    connected : callable or None
        Called with the workers when there are some.
    progress : bool or callable
        Show progress, or call with the `RunReport` after each block.
    overwrite : bool
        Replace what the target holds.
    repair : bool
        Write the blocks again that `verify` found damaged.
    block_mib : float or None
        Size of blocks.
    redo_missing : bool
        Write the blocks again that had missing chunks.
    max_missing : float, int or None
        Fraction (float) or number (int) of storage chunks that may be missing.
    max_requests : int or None
        Requests in flight to one server, from all workers together.
    report : str, path or None
        File that an HTML report is written to.
    plan : ExportPlan or None
        A plan that was made before.
    part : Part or None
        Write only this part of the blocks; the last part to end closes the store.

    Raises
    ------
    ValueError
        A size or limit is out of range, `threads` is given for a cluster beyond this machine, or `overwrite`, `repair`
        or `redo_missing` is combined with `part`.
    """

    cluster: Any = None
    large: str | None = None
    workers: int | Literal["auto"] | None = None
    max_workers: int | None = None
    threads: int | None = None
    wait_s: float = WAIT_S
    retire_before_s: float | None = None
    connected: Callable[[Workers], None] | None = field(default=None, repr=False)
    progress: bool | Callable[[RunReport], None] = True
    overwrite: bool = False
    repair: bool = False
    redo_missing: bool = False
    block_mib: float | None = None
    max_missing: float | None = None
    max_requests: int | None = None
    report: str | os.PathLike[str] | None = None
    plan: ExportPlan | None = field(default=None, repr=False)
    part: Part | None = None

    def __post_init__(self) -> None:
        flags = [name for name in ("overwrite", "repair", "redo_missing") if getattr(self, name)]
        if self.part is not None and flags:
            what = f"{flags[0]} (--{flags[0].replace('_', '-')})"
            raise ValueError(f"{what} concerns a whole export and cannot be combined with {self.part}: omit one.")
        block_bytes_of(self.block_mib)
        _check_missing(self.max_missing)
        if self.threads is not None:
            whole_number("threads", self.threads)
            if self.cluster not in (None, LOCAL):
                raise ValueError(
                    "threads (--threads) is for processes of this machine; on other clusters the cluster file has the "
                    f"threads of a worker. Got cluster {self.cluster!r}."
                )
        if self.max_requests is not None:
            whole_number("max_requests", self.max_requests)

    @property
    def block_bytes(self) -> int | None:
        """Size of blocks in bytes."""
        return block_bytes_of(self.block_mib)

    def most_missing(self, plan: ExportPlan) -> float | None:
        """Return how many storage chunks of a plan's source may be missing; None for any number."""
        if not isinstance(self.max_missing, float):
            return self.max_missing
        if plan.source_chunks is None:
            raise ValueError(
                "max_missing is a fraction of the storage chunks that are read, and it is not known how many these "
                "are, because an array is computed; give a whole number of chunks."
            )
        return self.max_missing * plan.source_chunks

    @contextmanager
    def connect(self, nbytes: int, useful: int | None = None) -> Iterator[Workers]:
        """Start workers for exports of so many bytes, or connect to them (`imagery_dask.run.workers_of`).

        Parameters
        ----------
        nbytes : int
            Uncompressed size of the export.
        useful : int, optional
            Number of threads that keep this machine busy, by what was measured; by default one for each core.
        """
        cluster, threads = self.cluster, self.threads
        if cluster is None and threads is None and nbytes >= config.get("run.process_bytes"):
            cluster = self.large
        if threads is None and useful is not None:
            processes = 1 if cluster is None else self.workers if isinstance(self.workers, int) else cores()
            threads = max(1, useful // processes)
        with workers_of(
            cluster, self.workers, self.wait_s, self.retire_before_s, max_workers=self.max_workers,
            threads=threads if cluster in (None, LOCAL) else None,
        ) as workers:  # fmt: skip
            if self.connected is not None:
                self.connected(workers)
            yield workers


def _check_missing(value: object) -> None:
    """Raise ValueError unless this is None, a float from 0 to 1, or a number of chunks."""
    if value is None:
        return
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    fraction = isinstance(value, float) and 0 <= value <= 1
    if not (count or fraction):
        raise ValueError(
            f"max_missing is a fraction of the storage chunks that are read, from 0.0 to 1.0, or a number of them; "
            f"got {value!r}."
        )


def block_bytes_of(block_mib: float | None) -> int | None:
    """Return a size of blocks in bytes; ValueError where `block_mib` is not a positive number."""
    if block_mib is None:
        return None
    return max(1, int(number("block_mib", block_mib) * MIB))
