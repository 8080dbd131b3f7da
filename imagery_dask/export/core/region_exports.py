"""An export of several named regions: one plan and one run, and a group or folder for each region.

It is made of one export for each region, which sees its own blocks as a run of its own. In the plan, names of layers
begin with that of the region: ``train/image``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self, TypeGuard

import xarray as xr

from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.base import BlockReads, Export, OutputFormat, plan_of
from imagery_dask.export.core.plans import ExportPlan, StageBlocks, said_of
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.geometry.grid import Region
from imagery_dask.model.arguments import check_region_names
from imagery_dask.records.runs import records_of
from imagery_dask.run import BlockTask, RunReport, Workers, Written
from imagery_dask.run.block import Chain
from imagery_dask.serialization import to_json
from imagery_dask.storage.atomic_files import Files

__all__ = ["RegionsExport", "are_regions"]

# Regions of which a report has pictures.
PICTURED = 8


def are_regions(data: object) -> TypeGuard[Mapping[str, Any]]:
    """Return True for a mapping of names to data, which an xarray object is not."""
    return isinstance(data, Mapping) and not isinstance(data, (xr.Dataset, xr.DataTree))


class RegionsExport(Export):
    """An export of named regions.

    Parameters
    ----------
    data : mapping of str to anything that is exported
        Data of each region.
    make : callable
        Returns the export of one region: of its name and data.
    options : dataclass
        Options of the format.

    Raises
    ------
    ValueError, TypeError
        A name cannot be that of a folder, or a region cannot be exported; the message names it.
    """

    exports: Mapping[str, Export]

    def __init__(self, data: Mapping[str, Any], make: Callable[[str, Any], Export], options: Any) -> None:
        check_region_names(list(data))
        exports = {}
        for name, one in data.items():
            try:
                exports[name] = make(name, one)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"region {name!r}: {error}") from error
        self.exports, self.options = exports, options
        self.volumes = [volume for export in exports.values() for volume in export.volumes]
        self.fingerprint_fields = {"format": self.kind, "regions": list(exports)} | {
            f"{name}/{field}": value for name, export in exports.items()
            for field, value in export.fingerprint_fields.items()
        }  # fmt: skip

    def place(self, url: str, name: str) -> str:
        """Return the URL of a region, below that of all."""
        return f"{url}/{name}"

    def root_names(self) -> list[str]:
        """Return the names of the metadata files above the regions."""
        return []

    def create_root(self, url: str) -> None:
        """Make what lies above the regions, for a store at a URL."""

    @property
    def records(self) -> Files | None:
        """Folder of the records."""
        return records_of(self.target.url)

    def by_region(self, plan: ExportPlan) -> dict[str, tuple[Export, ExportPlan]]:
        """Return the export of each region, and its part of a plan."""
        stages: dict[str, list[tuple[StageBlocks, ...]]] = {name: [] for name in self.exports}
        for stage in plan.stages:
            of_stage: dict[str, list[StageBlocks]] = {}
            for part in stage:
                of_stage.setdefault(part.region, []).append(replace(part, volume=part.layer, region=""))
            for name, parts in of_stage.items():
                stages[name].append(tuple(parts))
        return {name: (export, plan_of(export, tuple(stages[name]))) for name, export in self.exports.items()}

    def plan(self, resources: WorkerResources, block_bytes: int | None) -> ExportPlan:
        """Plan the blocks of all regions, which share the workers; each stage has one after another."""
        shared = replace(resources, threads=max(1, resources.threads // len(self.exports)))
        plans = {name: export.plan(shared, block_bytes) for name, export in self.exports.items()}
        counted = [plan.source_chunks for plan in plans.values()]
        known = [count for count in counted if count is not None]
        return ExportPlan(
            kind=self.kind, url=self.url, options=to_json(self.options), fingerprint_fields=self.fingerprint_fields,
            volumes=[dict(volume) | {"region": name} for name, plan in plans.items() for volume in plan.volumes],
            stages=tuple(
                tuple(
                    replace(part, volume=f"{name}/{part.volume}", region=name)
                    for name, plan in plans.items() if index < len(plan.stages)
                    for part in plan.stages[index]
                )
                for index in range(max(len(plan.stages) for plan in plans.values()))
            ),
            voxels=sum(plan.voxels for plan in plans.values()),
            source_chunks=sum(known) if len(known) == len(counted) else None,
        )  # fmt: skip

    def prepare(
        self, run: StartedRun, workers: Workers, options: RunOptions, regions: Sequence[Region] | None = None
    ) -> None:
        """Prepare each region."""
        for export, of_region in self._runs(run).values():
            export.prepare(of_region, workers, options, regions)

    def create(self, run: StartedRun, workers: Workers, regions: Sequence[Region] | None = None) -> None:
        """Make what lies above the regions, and the empty store of each."""
        self.create_root(run.url)
        for export, of_region in self._runs(run).values():
            export.create(of_region, workers, regions)

    def tasks(self, run: StartedRun) -> Sequence[Sequence[BlockTask]]:
        """Return the tasks of each stage: of all regions, one after another."""
        made = [(name, export.tasks(of_region)) for name, (export, of_region) in self._runs(run).items()]
        return [
            Chain([_RegionTasks(stages[index], name) for name, stages in made if index < len(stages)])
            for index in range(len(run.plan.stages))
        ]

    def close(self, run: StartedRun, report: RunReport) -> None:
        """Close the store of each region."""
        for name, (export, of_region) in self._runs(run).items():
            export.close(of_region, _report_of(report, name))

    def put_tables(self, run: StartedRun) -> None:
        """Copy tables of all regions from the records into the store."""
        for export, of_region in self._runs(run).values():
            export.put_tables(of_region)

    def metadata_names(self) -> list[str]:
        """Return the names of the metadata files above the regions and in them."""
        of_regions = (f"{name}/{file}" for name, export in self.exports.items() for file in export.metadata_names())
        return [*self.root_names(), *of_regions]

    def copied_to(self, url: str) -> Self:
        """Return the same export to another URL."""
        other = copy(self)
        other.target = self.target.at(url)
        other.exports = {name: export.copied_to(self.place(url, name)) for name, export in self.exports.items()}
        return other

    def _runs(self, run: StartedRun) -> dict[str, tuple[Export, StartedRun]]:
        """Return the export of each region, and its part of a run."""
        return {
            name: (export, _RegionRun(
                export.target, run.record, plan, run.lease, run.overwrites, name, self.place(run.url, name),
            ))
            for name, (export, plan) in self.by_region(run.plan).items()
        }  # fmt: skip


@dataclass
class _RegionRun(StartedRun):
    """The part of a run that is one region's."""

    region: str = ""
    place: str = ""

    @property
    def url(self) -> str:
        """Where the region is written."""
        return self.place

    def file(self, name: str) -> str:
        """Return the name of a file of the region among the records; names of regions have no comma."""
        return f"{self.id}/{self.region},{name}"


@dataclass(frozen=True, slots=True)
class _RegionTask:
    """Task of a block of a region, under names that say so."""

    task: BlockTask
    region: str

    @property
    def name(self) -> str:
        """Name of the task, with the region before the block: groups of tasks have one name in all regions."""
        work, *block = self.task.name.rsplit(maxsplit=3)
        return f"{work} {self.region}:{' '.join(block)}"

    @property
    def volume(self) -> str:
        """Name of the layer, with the region before it."""
        return f"{self.region}/{self.task.volume}"

    @property
    def hashes_files(self) -> bool:
        """Whether hashes are of files, not of voxels."""
        return self.task.hashes_files

    def __call__(self) -> Written:
        """Read, compute and write the block."""
        return self.task()

    def stored(self) -> bytes:
        """Return the hash of the block as it is in the store."""
        return self.task.stored()

    def expected(self) -> bytes:
        """Return the hash of the block as it would be written now."""
        return self.task.expected()


@dataclass(frozen=True, slots=True)
class _RegionTasks(Sequence[Any]):
    """Tasks of a region; each is made when it is taken."""

    tasks: Sequence[BlockTask]
    region: str

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: Any) -> Any:
        return _RegionTask(self.tasks[number], self.region)


def _report_of(report: RunReport, name: str) -> RunReport:
    """Return what a report says of a region: its counts, and its failures among those that are listed."""
    start = f"{name}/"
    failed = [block for block in report.failed if block.name.rsplit(maxsplit=3)[1].startswith(f"{name}:")]
    counts = {layer.removeprefix(start): of for layer, of in report.counts_of.items() if layer.startswith(start)}
    return replace(report, counts_of=counts, failed=failed, failures=len(failed))


# ---------------------------------------------------------------------------------- what else is known of the export


def _of_part(export: RegionsExport, part: StageBlocks) -> tuple[Export, StageBlocks]:
    """Return the export of a region, and its name for some of the blocks."""
    return export.exports[part.region], replace(part, volume=part.layer, region="")


def _reads(export: RegionsExport, part: StageBlocks) -> BlockReads:
    of_region, own = _of_part(export, part)
    return of_region.format.reads(of_region, own)


def _objects(export: RegionsExport) -> int:
    return len(export.root_names()) + sum(one.format.objects(one) for one in export.exports.values())


def _notes(export: RegionsExport) -> Iterator[str]:
    """Yield the notes of the regions; one that several have is given once."""
    noted: dict[str, list[str]] = {}
    for name, one in export.exports.items():
        for note in one.format.notes(one):
            noted.setdefault(note, []).append(name)
    yield from (note if len(names) == len(export.exports) else said_of(names, note) for note, names in noted.items())


def _previews(export: RegionsExport, run: StartedRun, whole: Sequence[StageBlocks]) -> Iterator[Preview]:
    """Yield pictures of the first regions that are done."""
    done = {part.region for part in whole}
    runs = [(name, *of) for name, of in export._runs(run).items() if name in done][:PICTURED]
    for name, of_region, own in runs:
        parts = [_of_part(export, part)[1] for part in whole if part.region == name]
        for preview in of_region.format.previews(of_region, own, parts):
            yield replace(preview, caption=f"{name}: {preview.caption}")


RegionsExport.format = OutputFormat(_reads, _objects, _notes, _previews)
