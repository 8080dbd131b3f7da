"""What exports of volumes with their pyramids have in common, whatever the format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from imagery_dask.cluster import Room
from imagery_dask.export.job import Export
from imagery_dask.export.levels import LevelStore, LevelTasks, level_notes, plan_levels
from imagery_dask.export.plans import ExportPlan, Part, voxels_decided_by
from imagery_dask.export.previews import Preview, level_previews
from imagery_dask.export.session import Session
from imagery_dask.export.stacks import Stack
from imagery_dask.export.stores import records_of
from imagery_dask.export.target import FolderTarget
from imagery_dask.files import Files
from imagery_dask.lazy import CutoutArray
from imagery_dask.run import BlockTask
from imagery_dask.run.chain import Chain
from imagery_dask.values import to_json

__all__ = ["VolumeExport"]


class VolumeExport(Export):
    """An export of volumes with levels.

    Parameters
    ----------
    stacks : sequence of Stack
        What is written.
    options : dict
        Arguments of the constructor besides data and place.
    """

    target: FolderTarget

    def __init__(self, stacks: Sequence[Stack], options: dict[str, Any]) -> None:
        self.stacks = list(stacks)
        self.volumes = [stack.volume for stack in stacks]
        self.options = to_json({name: _plain(value) for name, value in options.items()})

    def at(self, place: str) -> Export:
        """Return the same export to another place."""
        other = copy(self)
        other.target = type(self.target)(place)
        other.out = other.target.store
        return other

    def held_bytes(self, plan: ExportPlan) -> int:
        """Estimate what a task holds at most."""
        volumes = {volume.name: volume for volume in self.volumes}
        return max(volumes[part.volume].held_bytes(part.blocks) for part in plan.stages[0])

    @abstractmethod
    def places(self, place: str, session: Session) -> Sequence[Sequence[LevelStore]]:
        """Where each level of each volume is written."""

    @property
    def decides(self) -> dict[str, Any]:
        """Everything that decides the voxels, by name."""
        found: dict[str, Any] = {"format": self.kind}
        for stack in self.stacks:
            found |= voxels_decided_by(stack.volume)
            found[f"{stack.volume.name} levels"] = len(stack.export.levels)
            for index, level in enumerate(stack.export.levels):
                found[f"{stack.volume.name} level {index} shape"] = list(level.shape)
                found[f"{stack.volume.name} level {index} step"] = list(level.step)
                found[f"{stack.volume.name} level {index} resolution_nm"] = to_json(level.resolution_nm)
        return found

    @property
    def records(self) -> Files | None:
        """Where records are kept."""
        return records_of(self.target.store)

    def stages(self, room: Room, block_bytes: int | None) -> tuple[tuple[Part, ...], ...]:
        """Blocks of each stage: of all volumes, one after another."""
        plans = plan_levels([stack.export for stack in self.stacks], room, block_bytes)
        return tuple(
            tuple(
                Part(
                    stack.volume.name,
                    "read+write" if index < len(stack.export.volumes) else "downsample",
                    stack.export.stages[index].first,
                    of_volume[index],
                )
                for stack, of_volume in zip(self.stacks, plans, strict=True)
                if index < len(of_volume)
            )
            for index in range(max(len(of_volume) for of_volume in plans))
        )

    def sources(self, part: Part) -> Sequence[CutoutArray | None]:
        """Give what the blocks of a part read of volumes."""
        export, index = self._stage_of(part)
        return [] if part.doing == "downsample" else [export.volumes[index].source]

    def tasks(self, place: str, session: Session, stages: Sequence[Sequence[Part]]) -> Sequence[Sequence[BlockTask]]:
        """Tasks of the blocks, made as they are asked for."""
        of_volume = {
            stack.volume.name: stores for stack, stores in zip(self.stacks, self.places(place, session), strict=True)
        }
        return [
            Chain([LevelTasks(*self._stage_of(part), part.blocks, of_volume[part.volume]) for part in stage])
            for stage in stages
        ]

    def notes(self, plan: ExportPlan) -> Iterator[str]:
        """Say what a reader of the report should know."""
        for stack in self.stacks:
            parts = [part for _, part in plan.parts if part.volume == stack.volume.name]
            yield from level_notes(stack.export, [part.blocks for part in parts])

    def previews(self, place: str, session: Session, whole: Sequence[Part]) -> Iterator[Preview]:
        """Give planes of each volume."""
        for stack, stores in zip(self.stacks, self.places(place, session), strict=True):
            yield from level_previews(stack.export, stores, whole)

    def _stage_of(self, part: Part) -> tuple[Any, int]:
        (export,) = (stack.export for stack in self.stacks if stack.volume.name == part.volume)
        (index,) = (at for at, stage in enumerate(export.stages) if stage.first == part.level)
        return export, index


def _plain(value: Any) -> Any:
    """Give the sequence that an array is."""
    return value.tolist() if isinstance(value, np.ndarray) else dict(value) if isinstance(value, Mapping) else value
