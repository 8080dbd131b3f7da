"""An export, whatever its format: what is written, and how it is run."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from distributed import Client

from imagery_dask.arrays.lazy import CutoutArray
from imagery_dask.cluster import WAIT_S, WorkerResources, connect
from imagery_dask.export.core.inputs import Volume
from imagery_dask.export.core.options import block_bytes_of, checked_missing, checked_requests
from imagery_dask.export.core.plans import ExportPlan, StageBlocks, described_volume
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.session import Session, Target
from imagery_dask.export.core.source_reads import source_chunks
from imagery_dask.geometry.grid import XYZ
from imagery_dask.geometry.region import Region
from imagery_dask.records.parts import Part
from imagery_dask.run import BlockTask, RunReport
from imagery_dask.serialization import to_json
from imagery_dask.storage.files import Files

__all__ = ["Export", "RunOptions", "tasks_of"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How an export runs: nothing here decides a voxel.

    Parameters
    ----------
    cluster, workers, wait_s, retire_before_s
        See `imagery_dask.cluster.connect`.
    connected : callable or None
        Called with the client when there are workers.
    progress : bool or callable
        Show progress, or call with the `RunReport` after each block.
    overwrite : bool
        Start over where there is something.
    repair : bool
        Do the blocks again that `verify` found damaged.
    block_mib : float or None
        Size of blocks.
    max_missing : float, int or None
        Part, or number, of storage chunks that may be missing.
    max_requests : int or None
        Requests in flight to one server, from all workers together.
    report : str, path or None
        File that an HTML report is written to.
    plan : ExportPlan or None
        Blocks that were planned before.
    part : Part or None
        Do this part of the blocks only; the last part to end closes the store.

    Raises
    ------
    ValueError
        For a size or a limit that is none, or what a part cannot do.
    """

    cluster: Any = None
    workers: int | None = None
    wait_s: float = WAIT_S
    retire_before_s: float | None = None
    connected: Callable[[Client], None] | None = field(default=None, repr=False)
    progress: bool | Callable[[RunReport], None] = True
    overwrite: bool = False
    repair: bool = False
    block_mib: float | None = None
    max_missing: float | None = None
    max_requests: int | None = None
    report: str | os.PathLike[str] | None = None
    plan: ExportPlan | None = field(default=None, repr=False)
    part: Part | None = None

    def __post_init__(self) -> None:
        if self.part is not None and (self.overwrite or self.repair):
            what = "overwrite (--overwrite)" if self.overwrite else "repair (--repair)"
            raise ValueError(f"{what} is of all of an export, and {self.part} is a part of one: leave either out.")
        block_bytes_of(self.block_mib)
        checked_missing(self.max_missing)
        checked_requests(self.max_requests)

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Connect to the cluster (`imagery_dask.cluster.connect`)."""
        with connect(self.cluster, self.workers, self.wait_s, self.retire_before_s) as client:
            if self.connected is not None:
                self.connected(client)
            yield client


class Export(ABC):
    """What is written: a format, its options, and the volumes."""

    kind: ClassVar[str]
    url: str
    volumes: Sequence[Volume]
    target: Target
    #: Options of the format: a dataclass.
    options: Any

    @property
    @abstractmethod
    def fingerprint_fields(self) -> dict[str, Any]:
        """Everything that decides the voxels, by name."""

    @property
    @abstractmethod
    def records(self) -> Files | None:
        """Where records are kept; None where there is no such place."""

    @abstractmethod
    def check(self, client: Client) -> None:
        """Refuse a cluster that cannot write there."""

    @abstractmethod
    def stages(self, resources: WorkerResources, block_bytes: int | None) -> tuple[tuple[StageBlocks, ...], ...]:
        """Blocks, for a cluster of some size; ValueError for those that do not fit into a worker."""

    @abstractmethod
    def sources(self, part: StageBlocks) -> Sequence[CutoutArray | None]:
        """Give what the blocks of a part read of volumes; None stands for an array that is computed."""

    @property
    def margin(self) -> XYZ:
        """Voxels around a block that are read with it."""
        return (0, 0, 0)

    @abstractmethod
    def create(self, place: str, session: Session, client: Client) -> None:
        """Make the empty store."""

    def create_sample(self, session: Session, client: Client, regions: Sequence[Region]) -> None:
        """Make what blocks of some regions need to be done for a test."""
        del regions
        self.create(session.place, session, client)

    @abstractmethod
    def tasks(
        self, place: str, session: Session, stages: Sequence[Sequence[StageBlocks]]
    ) -> Sequence[Sequence[BlockTask]]:
        """Tasks of the blocks, made as they are asked for."""

    @abstractmethod
    def at(self, place: str) -> Export:
        """Return the same export to another place."""

    @abstractmethod
    def objects(self, plan: ExportPlan) -> int:
        """Count the files or objects that are written, at most."""

    @abstractmethod
    def held_bytes(self, plan: ExportPlan) -> int:
        """Estimate what a task holds at most."""

    def tidy(self, place: str) -> None:
        """Remove what killed processes left half-written, when none of this export writes any more."""
        del place

    def close(self, place: str, report: RunReport) -> None:
        """Say in the store what was missing."""
        del place, report

    def notes(self, plan: ExportPlan) -> Iterator[str]:
        """Say what a reader of the report should know."""
        del plan
        return iter(())

    def previews(self, place: str, session: Session, whole: Sequence[StageBlocks]) -> Iterator[Preview]:
        """Give pictures of what is written, for a report; of `whole` parts of the plan all blocks are done."""
        del place, session, whole
        return iter(())

    def plan(self, resources: WorkerResources, block_bytes: int | None) -> ExportPlan:
        """Plan for a cluster of some size."""
        stages = self.stages(resources, block_bytes)
        return ExportPlan(
            kind=self.kind, url=self.url, volumes=[described_volume(volume) for volume in self.volumes],
            options=to_json(self.options), fingerprint_fields=self.fingerprint_fields, stages=stages,
            voxels=sum(math.prod(map(int, volume.array.shape)) for volume in self.volumes),
            source_chunks=source_chunks(
                ((part, self.sources(part)) for stage in stages for part in stage), self.margin
            ),
        )  # fmt: skip


def tasks_of(export: Export, session: Session) -> Sequence[Sequence[BlockTask]]:
    """Tasks of an export that was begun."""
    assert session.plan is not None
    return export.tasks(session.place, session, session.plan.stages)
