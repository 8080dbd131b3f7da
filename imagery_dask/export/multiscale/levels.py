"""Write the levels of volumes, whatever the format, in stages of tasks; a task makes some levels of one block.

The first stage of a volume reads its source and writes level 0, and the levels that fit its blocks
(see `level_layout`);
later ones read the coarsest level that has been written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from xxhash import xxh3_128

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.cluster import WorkerResources
from imagery_dask.config import config
from imagery_dask.export.core.block_reads import steps_of
from imagery_dask.export.multiscale.level_layout import StageLayout
from imagery_dask.geometry.block_plan import SPLIT_ABOVE, BlockPlan, plan_blocks
from imagery_dask.geometry.grid import XYZ, Region, parts_of, region_between, region_within, start_of, stop_of
from imagery_dask.geometry.pyramid import Level
from imagery_dask.geometry.vec import Vec3
from imagery_dask.run import BlockTask, Written
from imagery_dask.sources.volumes.encoded_block import Block, voxels_of

if TYPE_CHECKING:
    from imagery_dask.export.core.inputs import Volume

__all__ = [
    "LevelStore",
    "LevelTasks",
    "LevelsBlock",
    "VolumeLevels",
    "block_size",
    "plan_levels",
]

# A later stage reads what it downsamples in pieces of about this size, and holds only what becomes of them.
PIECE_BYTES = 16 * 2**20
# Parts of blocks are one chunk of the output, or as many small ones as have this size: each costs 0.1 ms.
PART_BYTES = 2**18


class LevelStore(Protocol):
    """One level of a volume where it is written. Picklable; opened by the process that uses it."""

    @property
    def hashes_files(self) -> bool:
        """Whether hashes are of files, not of voxels."""
        ...

    def write(self, region: Region, voxels: Array) -> bytes:
        """Write voxels x, y, z(, c) to a region of whole chunks, and return their hash."""
        ...

    def write_parts(self, region: Region, parts: Iterable[tuple[Region, Block]]) -> bytes:
        """Write a region of whole chunks, given in parts of whole chunks, and return the hash of their hashes."""
        ...

    def digest_of(self, region: Region, voxels: Array) -> bytes:
        """Return the hash that `write` would return, without writing."""
        ...

    def digest_of_parts(self, region: Region, parts: Iterable[tuple[Region, Block]]) -> bytes:
        """Return the hash that `write_parts` would return, without writing."""
        ...

    def digest(self, region: Region, part: Vec3[int] | None = None) -> bytes:
        """Return the hash of what is stored in a region, as it was written: as a whole, or in parts of a shape."""
        ...

    def read(self, region: Region) -> Array:
        """Return the voxels of a region as x, y, z(, c)."""
        ...


@dataclass(frozen=True, slots=True)
class VolumeLevels:
    """A volume, and the levels that are made from it.

    Parameters
    ----------
    volumes : tuple of Volume
        Volume that level 0 is made from; or one for each level, if every level has a source of its own.
    levels : tuple of Level
        Geometry of the levels.
    stages : tuple of StageLayout
        Which levels are made together.
    copied : tuple of bool
        Of each volume, whether its storage chunks are written as they are stored, where they are chunks of the level.
        Blocks are then written chunk by chunk.
    """

    volumes: tuple[Volume, ...]
    levels: tuple[Level, ...]
    stages: tuple[StageLayout, ...]
    copied: tuple[bool, ...] = ()

    def is_copied(self, stage: int) -> bool:
        """Return whether chunks of a stage's first level are copied."""
        return stage < len(self.copied) and self.copied[stage]

    def may_be_written_by(self, level: int, part: Vec3[int]) -> bool:
        """Return whether a level can be written in parts of a shape: no voxel of the next one is made of two parts."""
        if level + 1 == len(self.levels):
            return True
        rests = zip(part, self.levels[level].shape, self.levels[level + 1].step, strict=True)
        return not any(size < whole and size % step for size, whole, step in rests)


@dataclass(frozen=True, slots=True)
class LevelsBlock:
    """Task that makes a block of one level, and of coarser ones from it, and writes them.

    Parameters
    ----------
    name, volume : str
        Shown on the dashboard; what is written.
    pieces : tuple of (region, callable)
        Which voxels of the first level, x, y, z, and what gives them as x, y, z(, c); one after another. With `part`,
        `ReadCutout`, which gives them in parts too.
    outputs : tuple of (step, LevelStore)
        The levels, finest first, and how many voxels of the one before become one voxel.
    labels : bool
        Whether voxels are ids.
    part : tuple of 3 int or None
        Shape of the parts in which a piece is read and written; only what coarser levels are made of is held then.
    copied : bool
        Whether parts that are storage chunks are written as they are stored.
    """

    name: str
    volume: str
    pieces: tuple[tuple[Region, Any], ...]
    outputs: tuple[tuple[XYZ, LevelStore], ...]
    labels: bool
    part: Vec3[int] | None = None
    copied: bool = False

    @property
    def hashes_files(self) -> bool:
        """Whether hashes of a level are of files, not of voxels."""
        return any(store.hashes_files for _, store in self.outputs)

    def __call__(self) -> Written:
        """Compute and write; a piece covers whole chunks, which no other task writes."""
        return self._make(
            lambda store, region, block: store.write(region, block),
            lambda store, region, parts: store.write_parts(region, parts),
        )

    def stored(self) -> bytes:
        """Return the hash of what is stored."""
        digest = xxh3_128()
        for region, _ in self.pieces:
            for number, (step, store) in enumerate(self.outputs):
                region = _coarser(region, step)
                digest.update(store.digest(region, None if number else self.part))
        return digest.digest()

    def expected(self) -> bytes:
        """Return the hash of what would be written now."""
        return self._make(
            lambda store, region, block: store.digest_of(region, block),
            lambda store, region, parts: store.digest_of_parts(region, parts),
        ).digest

    def _make(
        self,
        put: Callable[[LevelStore, Region, Array], bytes],
        put_parts: Callable[[LevelStore, Region, Iterable[tuple[Region, Block]]], bytes],
    ) -> Written:
        digest, voxels, size = xxh3_128(), 0, 0
        (_, store), *others = self.outputs
        for region, read in self.pieces:
            first = _FirstLevel(region, others[0][0] if others else None, self.labels)
            if self.part is None:
                # Once for all levels, their encoding and their hashes.
                block = kernels.fortran_ordered(read())
                list(first.passing([(region, block)]))
                digest.update(put(store, region, block))
            else:
                digest.update(put_parts(store, region, first.passing(read.parts(self.part, self.copied))))
            voxels, size = voxels + first.voxels, size + first.size
            if first.coarser is not None:
                block = first.coarser
            for number, (step, coarser) in enumerate(others):
                block = block if number == 0 else kernels.downsample(block, step, self.labels)
                region = _coarser(region, step)
                digest.update(put(coarser, region, block))
                size += int(block.nbytes)
        return Written(voxels, size, digest.digest())


@dataclass(slots=True)
class _FirstLevel:
    """What becomes of the parts of a block's first level: they are counted, and the next level is made of them."""

    region: Region
    #: Voxels that become one of the next level; None if there is none.
    step: XYZ | None
    labels: bool
    voxels: int = 0
    size: int = 0
    #: The block of the next level, when all parts have passed.
    coarser: Array | None = None

    def passing(self, parts: Iterable[tuple[Region, Block]]) -> Iterator[tuple[Region, Block]]:
        for part, block in parts:
            self.voxels += math.prod(block.shape[:3])
            self.size += int(block.nbytes)
            if self.step is not None:
                writeable = np.require(voxels_of(block), requirements="W")  # tinybrain takes no other
                self._add(part, self.step, kernels.downsample(writeable, self.step, self.labels))
            yield part, block

    def _add(self, part: Region, step: XYZ, small: Array) -> None:
        if part == self.region:
            self.coarser = small
            return
        whole = _coarser(self.region, step)
        if self.coarser is None:
            self.coarser = np.empty((*(stop_of(whole) - start_of(whole)), *small.shape[3:]), small.dtype, order="F")
        self.coarser[region_within(_coarser(part, step), whole)] = small


@dataclass(frozen=True, slots=True)
class ReadDownsampled:
    """Read a region of a level from the level above it, which has been written.

    Parameters
    ----------
    store : LevelStore
        The level above.
    above : tuple of 3 int
        Its voxels along x, y, z.
    region : Region
        Voxels to give.
    step : tuple of 3 int
        Voxels of the level above for one of them.
    unit : tuple of 3 int
        Voxels of whole chunks of the level above, in voxels to give.
    labels : bool
        Whether voxels are ids.
    """

    store: LevelStore
    above: Vec3[int]
    region: Region
    step: Vec3[int]
    unit: Vec3[int]
    labels: bool

    def __call__(self) -> Array:
        """Return the voxels of the region; only a piece of the level above is held at a time."""
        first, *others = parts_of(self.region, self.unit)  # no region is empty
        small = self._piece(first)
        shape = stop_of(self.region) - start_of(self.region)
        out = np.empty((*shape, *small.shape[3:]), small.dtype, order="F")
        for piece, voxels in itertools.chain([(first, small)], ((piece, self._piece(piece)) for piece in others)):
            out[region_within(piece, self.region)] = voxels
        return out

    def parts(self, shape: Vec3[int], encoded: bool = False) -> Iterator[tuple[Region, Array]]:
        """Yield the voxels of parts of the region of a shape, x fastest, and which they are."""
        del encoded  # what is downsampled is stored nowhere
        for part in parts_of(self.region, shape):
            yield part, replace(self, region=part)()

    def _piece(self, piece: Region) -> Array:
        """Voxels of a part of the region."""
        finer = region_between(start_of(piece) * self.step, (stop_of(piece) * self.step).minimum(self.above))
        return kernels.downsample(self.store.read(finer), self.step, self.labels)


def plan_levels(
    exports: Sequence[VolumeLevels], resources: WorkerResources, block_bytes: int | None
) -> list[list[BlockPlan]]:
    """Plan the blocks of each stage of each volume, in voxels of the stage's first level.

    Parameters
    ----------
    exports : sequence of VolumeLevels
        What to write.
    resources : WorkerResources
        Where they will run.
    block_bytes : int, optional
        Size that blocks should have; by default 32 MiB, less where that leaves threads without work.

    Raises
    ------
    ValueError
        A block would take more memory than a worker has.
    """
    wanted = block_bytes or block_size(resources, sum(export.volumes[0].nbytes for export in exports))
    plans = [_plans(export, wanted, max(wanted, config.get("export.block_bytes")) * SPLIT_ABOVE) for export in exports]
    for export, of_volume in zip(exports, plans, strict=True):
        for volume, plan in zip(export.volumes, of_volume, strict=False):
            _refuse_too_large(volume, plan, resources.thread_memory)
    return plans


@dataclass(frozen=True, slots=True)
class LevelTasks(Sequence[BlockTask]):
    """The tasks of a stage of a volume; each is made when it is taken.

    Parameters
    ----------
    export : VolumeLevels
        What is written.
    stage : int
        Which stage.
    plan : BlockPlan
        Blocks, from `plan_levels`.
    stores : sequence of LevelStore
        Where each level is written.
    compact : callable or None
        Wraps what reads a piece of the source, so that its ids become compact ids.
    """

    export: VolumeLevels
    stage: int
    plan: BlockPlan
    stores: Sequence[LevelStore]
    compact: Callable[[Callable[[], Array]], Callable[[], Array]] | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: Any) -> Any:
        export, stores = self.export, self.stores
        stage, volume = export.stages[self.stage], export.volumes[min(self.stage, len(export.volumes) - 1)]
        outputs = tuple(
            ((1, 1, 1) if level == stage.first else export.levels[level].step, stores[level])
            for level in range(stage.first, stage.last + 1)
        )
        (x, y, z), region = self.plan[number]
        reads_source = self.stage < len(export.volumes)
        doing = steps_of([volume]) if reads_source else "downsample"
        which = f" level {stage.first}" if stage.first else ""
        name = f"{doing} {volume.name}{which} z{z} y{y} x{x}"
        wrap = self.compact if reads_source and self.compact is not None else lambda read: read
        pieces = tuple((piece, wrap(_reader(export, self.stage, piece, stores))) for piece in self.plan.pieces(region))
        copied = export.is_copied(self.stage)
        return LevelsBlock(name, volume.name, pieces, outputs, volume.labels, self.plan.part, copied)


def _refuse_too_large(volume: Volume, plan: BlockPlan, memory: int) -> None:
    needed = volume.held_bytes(plan)
    if needed <= memory:
        return
    shape = "x".join(f"{n:,}" for n in plan.largest_piece)
    remedy = "Choose smaller chunks, shards or blocks, or workers with more memory."
    if volume.source is None:
        sizes = "x".join(f"{max(chunks):,}" for chunks in volume.array.chunks[:3])
        remedy = f"It is computed from chunks of {sizes}: rechunk the array to blocks of that shape first (rechunk)."
    raise ValueError(
        f"{volume.name}: a task would hold {needed / 1e9:.3g} GB for a block of {shape} voxels, and a worker has "
        f"{memory / 1e9:.3g} GB for each thread. {remedy}"
    )


def _plans(export: VolumeLevels, block_bytes: int, most: int) -> list[BlockPlan]:
    plans = []
    for index, stage in enumerate(export.stages):
        if index < len(export.volumes):
            volume = export.volumes[index]
            plan = volume.plan(stage.unit, block_bytes, most)
            part = _part(export, stage, volume, PART_BYTES if not export.is_copied(index) else 0)
            plans.append(replace(plan, part=part))
        else:
            voxels = max(1, block_bytes // export.volumes[0].voxel_bytes)
            plan = plan_blocks(export.levels[stage.first].shape, stage.unit, (None, None, None), voxels)
            # Blocks of large shards are not held as a whole.
            part = _grown_part(export, stage) if plan.largest.prod() > voxels else None
            plans.append(replace(plan, part=part))
    return plans


def _part(export: VolumeLevels, stage: StageLayout, volume: Volume, least: int) -> Vec3[int] | None:
    """Return the shape of the parts in which blocks of a volume are read and written; None if they are not."""
    return _grown_part(export, stage, least) if volume.reads_parts else None


def _grown_part(export: VolumeLevels, stage: StageLayout, least: int = PART_BYTES) -> Vec3[int] | None:
    """Return the shape of whole chunks of a stage's first level with so many bytes, or None if levels cut it."""
    shape, voxel_bytes = export.levels[stage.first].shape, export.volumes[0].voxel_bytes
    part = list(stage.chunk)
    shorter = [axis for axis in range(3) if part[axis] < shape[axis]]
    while shorter and math.prod(part) * voxel_bytes < least:
        part[min(shorter, key=lambda axis: part[axis])] *= 2
        shorter = [axis for axis in shorter if part[axis] < shape[axis]]
    is_alone = stage.first == stage.last
    return Vec3.of(part) if is_alone or export.may_be_written_by(stage.first, Vec3.of(part)) else None


def _reader(export: VolumeLevels, index: int, region: Region, stores: Sequence[LevelStore]) -> Callable[[], Array]:
    if index < len(export.volumes):
        return export.volumes[index].reader(region)
    volume, stage, first = export.volumes[0], export.stages[index], export.stages[index].first
    step = export.levels[first].step
    voxels = max(1, PIECE_BYTES // (volume.voxel_bytes * step.prod()))
    unit = _halved(stage.unit, voxels)
    return ReadDownsampled(stores[first - 1], export.levels[first - 1].shape, region, step, unit, volume.labels)


def block_size(resources: WorkerResources, total: int) -> int:
    """Return the bytes of a block: as many as memory allows, but few enough that every thread gets several blocks."""
    least: int = config.get("export.small_block_bytes")
    most: int = config.get("export.block_bytes")
    blocks: int = config.get("export.blocks_per_thread") * max(1, resources.threads)
    return min(most, max(least, total // blocks))


def _coarser(region: Region, step: XYZ) -> Region:
    return region_between(start_of(region) // step, stop_of(region).ceil_div(step))


def _halved(unit: Vec3[int], voxels: int) -> Vec3[int]:
    """Cut a shape in halves along its longest axis until it has no more than so many voxels."""
    shape = list(unit)
    while math.prod(shape) > voxels and max(shape) > 1:
        axis = int(np.argmax(shape))
        shape[axis] = -(-shape[axis] // 2)
    return Vec3.of(shape)
