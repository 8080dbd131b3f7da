"""What exports of volumes with their pyramids have in common, whatever the format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

from imagery_dask.arrays.lazy import CutoutArray
from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import ExportPlan, StageBlocks, voxels_decided_by
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.session import Session
from imagery_dask.export.multiscale.laid_out import Multiscale
from imagery_dask.export.multiscale.level_previews import level_previews
from imagery_dask.export.multiscale.levels import LevelStore, LevelTasks, level_notes, plan_levels
from imagery_dask.export.multiscale.volume_options import VolumeOptions
from imagery_dask.records.journal import records_of
from imagery_dask.run import BlockTask
from imagery_dask.run.chain import Chain
from imagery_dask.serialization import to_json
from imagery_dask.storage.files import Files
from imagery_dask.storage.targets import FolderTarget

__all__ = ["VolumeExport"]


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

    def at(self, place: str) -> Export:
        """Return the same export to another place."""
        other = copy(self)
        other.target = type(self.target)(place)
        other.url = other.target.url
        return other

    def held_bytes(self, plan: ExportPlan) -> int:
        """Estimate what a task holds at most."""
        volumes = {volume.name: volume for volume in self.volumes}
        return max(volumes[part.volume].held_bytes(part.blocks) for part in plan.stages[0])

    @abstractmethod
    def places(self, place: str, session: Session) -> Sequence[Sequence[LevelStore]]:
        """Where each level of each volume is written."""

    @property
    def fingerprint_fields(self) -> dict[str, Any]:
        """Everything that decides the voxels, by name."""
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
        """Where records are kept."""
        return records_of(self.target.url)

    def stages(self, resources: WorkerResources, block_bytes: int | None) -> tuple[tuple[StageBlocks, ...], ...]:
        """Blocks of each stage: of all volumes, one after another."""
        plans = plan_levels([multiscale.export for multiscale in self.multiscales], resources, block_bytes)
        return tuple(
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

    def sources(self, part: StageBlocks) -> Sequence[CutoutArray | None]:
        """Give what the blocks of a part read of volumes."""
        export, index = self._stage_of(part)
        return [] if part.doing == "downsample" else [export.volumes[index].source]

    def tasks(
        self, place: str, session: Session, stages: Sequence[Sequence[StageBlocks]]
    ) -> Sequence[Sequence[BlockTask]]:
        """Tasks of the blocks, made as they are asked for."""
        of_volume = {
            multiscale.volume.name: stores
            for multiscale, stores in zip(self.multiscales, self.places(place, session), strict=True)
        }
        return [
            Chain([LevelTasks(*self._stage_of(part), part.blocks, of_volume[part.volume]) for part in stage])
            for stage in stages
        ]

    def notes(self, plan: ExportPlan) -> Iterator[str]:
        """Say what a reader of the report should know."""
        for multiscale in self.multiscales:
            parts = [part for _, part in plan.parts if part.volume == multiscale.volume.name]
            yield from level_notes(multiscale.export, [part.blocks for part in parts])

    def previews(self, place: str, session: Session, whole: Sequence[StageBlocks]) -> Iterator[Preview]:
        """Give planes of each volume."""
        for multiscale, stores in zip(self.multiscales, self.places(place, session), strict=True):
            yield from level_previews(multiscale.export, stores, whole)

    def _stage_of(self, part: StageBlocks) -> tuple[Any, int]:
        (export,) = (multiscale.export for multiscale in self.multiscales if multiscale.volume.name == part.volume)
        (index,) = (at for at, stage in enumerate(export.stages) if stage.first == part.level)
        return export, index
