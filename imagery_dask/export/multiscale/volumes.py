"""What exports of volumes with their pyramids have in common, whatever the format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.base import BlockReads, Export, plan_of
from imagery_dask.export.core.plans import ExportPlan, StageBlocks, voxels_decided_by
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.multiscale.laid_out import Multiscale
from imagery_dask.export.multiscale.level_previews import level_previews
from imagery_dask.export.multiscale.levels import LevelStore, LevelTasks, VolumeLevels, plan_levels
from imagery_dask.export.multiscale.volume_options import VolumeOptions
from imagery_dask.records.journal import records_of
from imagery_dask.run import BlockTask
from imagery_dask.run.chain import Chain
from imagery_dask.serialization import to_json
from imagery_dask.storage.files import Files
from imagery_dask.storage.targets import FolderTarget

__all__ = ["VolumeExport", "volume_previews", "volume_reads"]


class VolumeExport(Export):
    """An export of volumes with levels.

    Parameters
    ----------
    multiscales : sequence of Multiscale
        What is written.
    options : VolumeOptions
        Options of the format.
    """

    target: FolderTarget

    def __init__(self, multiscales: Sequence[Multiscale], options: VolumeOptions) -> None:
        self.multiscales = list(multiscales)
        self.volumes = [multiscale.volume for multiscale in multiscales]
        self.options = options

    @abstractmethod
    def stores(self, run: StartedRun) -> Sequence[Sequence[LevelStore]]:
        """Return where each level of each volume is written."""

    @property
    def fingerprint_fields(self) -> dict[str, Any]:
        """Fields that determine the output voxels, by name."""
        found: dict[str, Any] = {"format": self.kind}
        for multiscale in self.multiscales:
            found |= voxels_decided_by(multiscale.volume)
            found[f"{multiscale.volume.name} levels"] = len(multiscale.export.levels)
            for index, level in enumerate(multiscale.export.levels):
                found[f"{multiscale.volume.name} level {index} shape"] = list(level.shape)
                found[f"{multiscale.volume.name} level {index} step"] = list(level.step)
                found[f"{multiscale.volume.name} level {index} resolution_nm"] = to_json(level.resolution_nm)
        return found

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
        of_volume = dict(zip((volume.name for volume in self.volumes), self.stores(run), strict=True))
        return [
            Chain([LevelTasks(*_stage_of(self, part), part.blocks, of_volume[part.volume]) for part in stage])
            for stage in run.plan.stages
        ]


def volume_reads(export: VolumeExport, part: StageBlocks) -> BlockReads:
    """Return what the blocks of a stage of a volume read."""
    levels, index = _stage_of(export, part)
    if part.doing == "downsample":
        return BlockReads((), 0)
    return BlockReads((levels.volumes[index].source,), levels.volumes[0].held_bytes(part.blocks))


def volume_previews(export: VolumeExport, run: StartedRun, whole: Sequence[StageBlocks]) -> Iterator[Preview]:
    """Return planes of each volume."""
    for multiscale, stores in zip(export.multiscales, export.stores(run), strict=True):
        yield from level_previews(multiscale.export, stores, whole)


def _stage_of(export: VolumeExport, part: StageBlocks) -> tuple[VolumeLevels, int]:
    (levels,) = (multiscale.export for multiscale in export.multiscales if multiscale.volume.name == part.volume)
    (index,) = (at for at, stage in enumerate(levels.stages) if stage.first == part.level)
    return levels, index
