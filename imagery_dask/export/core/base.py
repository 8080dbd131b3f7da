"""What a format implements to be exported to: `Export`, and the functions of an `OutputFormat`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from imagery_dask.annotations import JsonObject
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.inputs import Volume
from imagery_dask.export.core.plans import ExportPlan, StageBlocks, described_volume, fingerprint_of, source_chunks
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun, Target
from imagery_dask.geometry.grid import XYZ, Region
from imagery_dask.run import BlockTask, RunReport, Workers
from imagery_dask.serialization import to_json
from imagery_dask.storage.atomic_files import Files

__all__ = ["BlockReads", "Export", "OutputFormat", "held_bytes", "plan_of"]


class Export(ABC):
    """What is written: a format, its options, and the volumes. It is picklable, and says nothing of how it is run."""

    kind: ClassVar[str]
    format: ClassVar[OutputFormat[Any]]
    volumes: Sequence[Volume]
    target: Target
    # Options of the format: a dataclass.
    options: Any
    # Fields that determine the output voxels, by name.
    fingerprint_fields: JsonObject

    @property
    def url(self) -> str:
        """Local path or URL of the target."""
        return self.target.url

    @property
    def nbytes(self) -> int:
        """Uncompressed bytes of the volumes."""
        return sum(volume.nbytes for volume in self.volumes)

    @property
    @abstractmethod
    def records(self) -> Files | None:
        """Folder of the records; None where files cannot be listed."""

    @abstractmethod
    def plan(self, resources: WorkerResources, block_bytes: int | None) -> ExportPlan:
        """Plan the blocks for a cluster; ValueError where a block does not fit into a worker."""

    def prepare(
        self, run: StartedRun, workers: Workers, options: RunOptions, regions: Sequence[Region] | None = None
    ) -> None:
        """Find out what the store needs to know of the voxels of all regions, or of a few, before it is made."""
        del run, workers, options, regions

    @abstractmethod
    def create(self, run: StartedRun, workers: Workers, regions: Sequence[Region] | None = None) -> None:
        """Make the empty store, for blocks of all regions or of a few."""

    @abstractmethod
    def tasks(self, run: StartedRun) -> Sequence[Sequence[BlockTask]]:
        """Return the tasks of each stage of the run's plan; each is made when it is taken."""

    @abstractmethod
    def close(self, run: StartedRun, report: RunReport) -> None:
        """Remove what killed processes left half-written, and write into the store what was missing."""

    def earlier(self) -> Iterable[Self]:
        """Return this export as earlier versions wrote it, whose runs are resumed and verified as they were begun."""
        return ()

    def as_begun(self, recorded: Iterable[JsonObject]) -> Self:
        """Return this export, or as an earlier version wrote it: whichever has the recorded fields of a plan."""
        fingerprints = {_without_arrays(fields) for fields in recorded}
        exports = (self, *self.earlier()) if fingerprints else ()
        return next((export for export in exports if _without_arrays(export.fingerprint_fields) in fingerprints), self)

    def put_tables(self, run: StartedRun) -> None:
        """Copy tables that `prepare` has recorded into the store."""
        del run

    def metadata_names(self) -> list[str]:
        """Return the names of the files, beside chunks and pictures, that a reader needs."""
        return []

    def metadata_files(self, url: str) -> Files:
        """Return the folder in which these lie, of a store at a URL."""
        return Files.at(url)

    def by_region(self, plan: ExportPlan) -> dict[str, tuple[Export, ExportPlan]]:
        """Return the exports that this one is made of, and their parts of a plan, by region; itself if it has none."""
        return {"": (self, plan)}

    def copied_to(self, url: str) -> Self:
        """Return the same export to another URL."""
        other = copy(self)
        other.target = self.target.at(url)
        return other


def _without_arrays(fields: JsonObject) -> str:
    """Return the fingerprint of fields but the names of computed arrays, which a plan cannot make again."""
    return fingerprint_of({name: value for name, value in fields.items() if not name.endswith(" array")})


@dataclass(frozen=True, slots=True)
class BlockReads:
    """What the blocks of a stage of a volume read, and how much memory that takes."""

    # None stands for an array that is computed; a block that is downsampled reads no source.
    sources: tuple[CutoutArray | None, ...]
    # Bytes that a task holds at most.
    task_bytes: int
    # Voxels around a block that are read with it.
    margin: XYZ = (0, 0, 0)


E = TypeVar("E", bound=Export)


@dataclass(frozen=True, slots=True)
class OutputFormat(Generic[E]):
    """What else is known of the exports of a format: functions of the format's own folder."""

    reads: Callable[[E, StageBlocks], BlockReads]
    # Files or objects that are written, at most.
    objects: Callable[[E], int]
    # What a reader of the report should know.
    notes: Callable[[E], Iterable[str]]
    # Pictures of what was written, of those parts of the plan of which all blocks are done.
    previews: Callable[[E, StartedRun, Sequence[StageBlocks]], Iterable[Preview]]


def plan_of(export: Export, stages: tuple[tuple[StageBlocks, ...], ...]) -> ExportPlan:
    """Return the plan of an export with these blocks."""
    reads = ((part, export.format.reads(export, part)) for stage in stages for part in stage)
    return ExportPlan(
        kind=export.kind, url=export.url, volumes=[described_volume(volume) for volume in export.volumes],
        options=to_json(export.options), fingerprint_fields=export.fingerprint_fields, stages=stages,
        voxels=sum(math.prod(map(int, volume.array.shape)) for volume in export.volumes),
        source_chunks=source_chunks((part.blocks, read.sources, read.margin) for part, read in reads),
    )  # fmt: skip


def held_bytes(export: Export, plan: ExportPlan) -> int:
    """Return the most bytes that a task holds: coarser levels are made from pieces of finer ones, and hold less."""
    return max(export.format.reads(export, part).task_bytes for part in plan.stages[0])
