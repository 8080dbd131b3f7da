"""An export of volumes with levels of several resolutions, whatever the format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.base import BlockReads, Export, plan_of
from imagery_dask.export.core.inputs import Volume, source_levels
from imagery_dask.export.core.plans import ExportPlan, StageBlocks, voxels_decided_by
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.multiscale.compact_ids import CompactTable, find_ids, ids_in, recorded
from imagery_dask.export.multiscale.level_layout import (
    LevelLayout,
    ShardOf,
    StageLayout,
    VolumeOptions,
    checked_shards,
    default_chunks,
    lay_out,
)
from imagery_dask.export.multiscale.level_previews import level_previews
from imagery_dask.export.multiscale.levels import LevelStore, LevelTasks, VolumeLevels, plan_levels
from imagery_dask.geometry.grid import XYZ, Region
from imagery_dask.geometry.pyramid import Level, Levels, pyramid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.records.runs import records_of
from imagery_dask.run import BlockTask, Workers
from imagery_dask.run.block import Chain
from imagery_dask.serialization import to_json
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.store_files import ROOT_IDS
from imagery_dask.storage.targets import FolderTarget

__all__ = ["Multiscale", "VolumeExport", "multiscale_of", "volume_previews", "volume_reads"]


@dataclass(frozen=True, slots=True)
class Multiscale:
    """The levels of a volume, with their chunks.

    Parameters
    ----------
    volume : Volume
        What level 0 is made of.
    export : VolumeLevels
        What is computed.
    layouts : tuple of LevelLayout
        Chunks and shards of each level.
    """

    volume: Volume
    export: VolumeLevels
    layouts: tuple[LevelLayout, ...]


def multiscale_of(
    volume: Volume,
    levels: Levels,
    chunks: XYZ | None,
    shards: object = None,
    as_before: bool = False,
    shard_of: ShardOf | None = None,
) -> Multiscale:
    """Lay out the levels of a volume; `as_before` as version 0.1 did, `shard_of` with shards of each level's own.

    Raises
    ------
    ValueError
        Shards are not whole chunks, or the source has no coarser levels.
    """
    chunks = chunks or default_chunks(volume.array.dtype.itemsize)
    shards = checked_shards(shards, chunks)
    if levels != "source":
        geometry = pyramid(volume.shape, volume.resolution_nm, volume.translation_nm, levels)
        layouts, stages = lay_out(geometry, chunks, shards, volume.voxel_bytes, as_before, shard_of)
        return Multiscale(volume, VolumeLevels((volume,), geometry, stages), layouts)
    volumes = source_levels(volume)
    geometry = tuple(Level(one.shape, Vec3(1, 1, 1), one.resolution_nm, one.translation_nm) for one in volumes)
    laid_out = [lay_out([level], chunks, shards, volume.voxel_bytes, shard_of=shard_of) for level in geometry]
    stages = tuple(replace(stage, first=index, last=index) for index, (_, (stage,)) in enumerate(laid_out))
    return Multiscale(volume, VolumeLevels(volumes, geometry, stages), tuple(layout for (layout,), _ in laid_out))


class VolumeExport(Export):
    """An export of volumes with levels.

    Parameters
    ----------
    multiscales : sequence of Multiscale
        What is written.
    options : VolumeOptions
        Options of the format.
    fields : dict
        Fields of the format's own that determine the output voxels, by name.
    """

    target: FolderTarget

    def __init__(self, multiscales: Sequence[Multiscale], options: VolumeOptions, fields: JsonObject) -> None:
        self.multiscales = list(multiscales)
        self.volumes = [multiscale.volume for multiscale in multiscales]
        self.options = options
        self.fingerprint_fields = {"format": self.kind} | _voxel_fields(multiscales) | fields

    @abstractmethod
    def stores(self, run: StartedRun) -> Sequence[Sequence[LevelStore]]:
        """Return where each level of each volume is written."""

    @property
    def records(self) -> Files | None:
        """Folder of the records."""
        return records_of(self.target.url)

    def plan(self, resources: WorkerResources, block_bytes: int | None) -> ExportPlan:
        """Plan the blocks of each stage: of all volumes, one after another."""
        plans = plan_levels([multiscale.export for multiscale in self.multiscales], resources, block_bytes)
        stages = tuple(
            tuple(
                StageBlocks(
                    multiscale.volume.name,
                    "read+write" if index < len(multiscale.export.volumes) else "downsample",
                    multiscale.export.stages[index].first,
                    of_volume[index],
                )
                for multiscale, of_volume in zip(self.multiscales, plans, strict=True)
                if index < len(of_volume)
            )
            for index in range(max(len(of_volume) for of_volume in plans))
        )
        return plan_of(self, stages)

    def tasks(self, run: StartedRun) -> Sequence[Sequence[BlockTask]]:
        """Return the tasks of each stage; each is made when it is taken."""
        stores = dict(zip((volume.name for volume in self.volumes), self.stores(run), strict=True))
        planned = {one.volume.name: _as_planned(one, run.plan) for one in self.multiscales}

        def tasks_of(part: StageBlocks) -> LevelTasks:
            levels, name = planned[part.volume], part.volume
            return LevelTasks(levels, _stage_at(levels, part), part.blocks, stores[name], self._compact(run, name))

        return [Chain([tasks_of(part) for part in stage]) for stage in run.plan.stages]

    @abstractmethod
    def folder_of(self, volume: Volume) -> str:
        """Return the folder of a volume in the store: "", or ending in "/"."""

    def prepare(
        self, run: StartedRun, workers: Workers, options: RunOptions, regions: Sequence[Region] | None = None
    ) -> None:
        """Find the ids that become compact ids."""
        for multiscale in self.multiscales:
            if not multiscale.volume.relabel:
                continue
            if not run.records.kept:
                raise ValueError(
                    f"relabel needs records, and {self.url} has no place for them: write to a disk or bucket."
                )
            if regions is None:
                find_ids(run, workers, multiscale.export, options)
            else:
                ids_in(run, multiscale.export, regions)

    def put_tables(self, run: StartedRun) -> None:
        """Copy the tables of compact ids from the records into the store."""
        for volume in self.volumes:
            if volume.relabel:
                Files.at(run.url).put(f"{self.folder_of(volume)}{ROOT_IDS}", recorded(run, volume.name))

    @property
    def table_names(self) -> list[str]:
        """Names of the tables of compact ids in the store."""
        return [f"{self.folder_of(volume)}{ROOT_IDS}" for volume in self.volumes if volume.relabel]

    def notes(self) -> Iterator[str]:
        """Yield what a reader of compact ids should know."""
        for volume in self.volumes:
            if volume.relabel:
                yield (
                    f"{volume.name}: ids are numbers of uint32; imagery_dask.root_ids_of gives the ids back. A first "
                    "pass has read the region to find them."
                )

    def _compact(self, run: StartedRun, name: str) -> Any:
        """Return what replaces the ids of a volume by compact ids, or None."""
        (volume,) = (volume for volume in self.volumes if volume.name == name)
        if not volume.relabel:
            return None
        return CompactTable(Files.at(f"{run.url}/{self.folder_of(volume)}"), run.id).reader


def _voxel_fields(multiscales: Sequence[Multiscale]) -> JsonObject:
    """Return the fields that determine the voxels of all levels, by name."""
    fields: JsonObject = {}
    for multiscale in multiscales:
        name, levels = multiscale.volume.name, multiscale.export.levels
        fields |= voxels_decided_by(multiscale.volume)
        of_levels: JsonObject = {f"{name} levels": len(levels)}
        if multiscale.volume.relabel:
            of_levels[f"{name} relabel"] = "uint32"
        if multiscale.volume.chosen_kind is not None and any(level.step != (1, 1, 1) for level in levels):
            of_levels[f"{name} kind"] = multiscale.volume.chosen_kind
        for index, level in enumerate(levels):
            for what in ("shape", "step", "resolution_nm"):
                of_levels[f"{name} level {index} {what}"] = getattr(level, what)
        fields |= to_json(of_levels)
    return fields


def volume_reads(export: VolumeExport, part: StageBlocks) -> BlockReads:
    """Return what the blocks of a stage of a volume read."""
    if part.doing == "downsample":
        return BlockReads((), 0)
    (levels,) = (multiscale.export for multiscale in export.multiscales if multiscale.volume.name == part.volume)
    source = levels.volumes[_stage_at(levels, part)].source
    return BlockReads((source,), levels.volumes[0].held_bytes(part.blocks))


def volume_previews(export: VolumeExport, run: StartedRun, whole: Sequence[StageBlocks]) -> Iterator[Preview]:
    """Return planes of each volume."""
    for multiscale, stores in zip(export.multiscales, export.stores(run), strict=True):
        yield from level_previews(_as_planned(multiscale, run.plan), stores, whole)


def _as_planned(multiscale: Multiscale, plan: ExportPlan) -> VolumeLevels:
    """Return the levels of a volume in the stages of a plan, which another version or configuration may have made."""
    levels, name = multiscale.export, multiscale.volume.name
    firsts = [part.level for stage in plan.stages for part in stage if part.volume == name]
    ends = [*firsts[1:], len(levels.levels)]
    # Blocks are as the plan says; pieces of a later stage are cut along the chunks of its first level.
    units = {stage.first: stage.unit for stage in levels.stages}
    chunks = [layout.chunk for layout in multiscale.layouts]
    return replace(
        levels,
        stages=tuple(
            StageLayout(first, end - 1, units.get(first, chunks[first]), chunks[first])
            for first, end in zip(firsts, ends, strict=True)
        ),
    )


def _stage_at(levels: VolumeLevels, part: StageBlocks) -> int:
    """Return the number of the stage that a part of a plan begins."""
    return next(at for at, stage in enumerate(levels.stages) if stage.first == part.level)
