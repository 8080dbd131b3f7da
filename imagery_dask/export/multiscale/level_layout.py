"""Cut levels into chunks and shards, and choose which of them one task makes together.

A task that holds the voxels of a level makes the next coarser ones too, as long as its block is whole chunks (or
shards) of each of them, so that they are neither read again nor touched by two tasks::

    level 0   |---------------|---------------|---------------|     shards, each of 4 x 4 chunks
    level 1   |-------|-------|-------|-------|-------|-------|     shards of 2 x 2 chunks: the same region
    level 2   |---|---|---|---|---|---|---|---|---|---|---|---|     chunks: the same region
              <--- a block --->

Coarser levels are made from the last of these, in another stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.config import config
from imagery_dask.export.core.writer_arguments import Flag, option, option_by_name
from imagery_dask.geometry.grid import XYZ
from imagery_dask.geometry.pyramid import Level, Levels, checked_levels
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.labels import Kind
from imagery_dask.serialization import NEWER
from imagery_dask.validate import choice, triple, whole_triple

__all__ = ["LevelLayout", "ShardOf", "StageLayout", "VolumeOptions", "checked_shards", "default_chunks", "lay_out"]

# Viewers fetch chunks of some hundred kilobytes (compressed); object stores and file systems want fewer, larger files.
# With these, 10 TB of 8 bit imagery and its pyramid are 990,000 objects.
SHARD_BYTES = 32 * 2**20
SHARDS_AT_LEAST = 64
# So many chunks of a level can be files of their own.
CHUNKS_UNSHARDED = 1024
# Blocks that version 0.1 left at least where it made several levels together.
BLOCKS_BEFORE = 16


# Shard shape of a level in voxels: whole chunks.
ShardOf = Callable[[Level], Vec3[int]]


@dataclass(frozen=True, slots=True)
class LevelLayout:
    """Chunks of one level.

    Parameters
    ----------
    level : Level
        Its geometry.
    chunk : tuple of 3 int
        Voxels of a chunk along x, y, z, no more than the level has.
    shard : tuple of 3 int or None
        Voxels of a shard, whole chunks; None where every chunk is an object of its own.
    """

    level: Level
    chunk: Vec3[int]
    shard: Vec3[int] | None


@dataclass(frozen=True, slots=True)
class StageLayout:
    """Levels ``first`` to ``last``, which one task makes together.

    Parameters
    ----------
    first, last : int
        Levels. The first stage makes level 0 from the source, a later one its first level from the level above.
    unit : tuple of 3 int
        Voxels of the first level that blocks are whole multiples of.
    chunk : tuple of 3 int
        Voxels of a chunk of the first level.
    """

    first: int
    last: int
    unit: Vec3[int]
    chunk: Vec3[int]


def default_chunks(itemsize: int) -> XYZ:
    """Return a chunk shape of about two megabytes: 128 voxels along each axis for imagery, 64 for ids."""
    return (128, 128, 128) if itemsize <= 2 else (64, 64, 64)


def lay_out(
    levels: Sequence[Level],
    chunks: XYZ,
    shards: XYZ | Literal["auto"] | None,
    voxel_bytes: int,
    as_before: bool = False,
    shard_of: ShardOf | None = None,
) -> tuple[tuple[LevelLayout, ...], tuple[StageLayout, ...]]:
    """Cut levels into chunks, shards and stages. Depends on nothing but its arguments.

    Parameters
    ----------
    levels : sequence of Level
        A pyramid.
    chunks : tuple of 3 int
        Chunk shape of all levels.
    shards : tuple of 3 int, "auto" or None
        Shard shape of the first level of each stage, further levels of which have shards of the same region; None makes
        every chunk an object. ``"auto"`` makes shards of 32 MiB where there are more than 1,024 chunks.
    voxel_bytes : int
        Bytes of a voxel with all its channels.
    as_before : bool
        Lay out as version 0.1, whose small exports made fewer levels together, with other shards.
    shard_of : callable, optional
        Returns the shard shape of each level by itself, in place of `shards`.
    """
    chunk = Vec3.of(chunks)
    total = levels[0].shape.prod() * voxel_bytes
    least, most = config.get("export.small_fused_bytes"), config.get("export.fused_bytes")
    blocks = BLOCKS_BEFORE if as_before else config.get("export.fused_blocks_at_least")
    fused = min(most, max(least, total // blocks)) // voxel_bytes
    if shards == "auto":
        count = levels[0].shape.ceil_div(chunk).prod()
        wanted = min(SHARD_BYTES, total // SHARDS_AT_LEAST) // voxel_bytes
        shards = None if count <= CHUNKS_UNSHARDED else _grown(chunk, levels[min(1, len(levels) - 1)].step, wanted)
    layouts: list[LevelLayout] = []
    stages: list[StageLayout] = []
    while len(layouts) < len(levels):
        first = len(layouts)
        # In voxels of the stage's first level: what blocks are multiples of, and how much coarser the last level is.
        own = [chunk if shard_of is None else shard_of(level) for level in levels[first:]]
        unit, scale = own[0] if shards is None else Vec3.of(shards), Vec3(1, 1, 1)
        is_sharded = shards is not None or shard_of is not None
        layouts.append(_clipped(levels[first], chunk, unit if is_sharded else None))
        for level, of_level in zip(levels[first + 1 :], own[1:], strict=True):
            scale = scale * level.step
            larger = unit.map(math.lcm, scale * of_level)
            block = larger.minimum(levels[first].shape)
            # Shards that are already whole chunks of the level leave as many blocks, whether they make it or not.
            grows = as_before or block != unit.minimum(levels[first].shape)
            if block.prod() > (fused if grows else most // voxel_bytes):
                break
            unit = larger
            shard = unit // scale if shard_of is None else of_level
            layouts.append(_clipped(level, chunk, shard if is_sharded else None))
        stages.append(StageLayout(first, len(layouts) - 1, unit, layouts[first].chunk))
    return tuple(layouts), tuple(stages)


def checked_shards(shards: object, chunks: XYZ) -> XYZ | Literal["auto"] | None:
    """Return the shard shape of an argument.

    Raises
    ------
    ValueError
        The argument is not a shape, or not whole chunks.
    """
    if shards is None or (isinstance(shards, str) and shards == "auto"):
        return shards  # type: ignore[return-value]
    shape = whole_triple("shards", shards)
    if any(Vec3.of(shape) % chunks):
        fitting = Vec3.of(shape).ceil_div(chunks) * chunks
        raise ValueError(f"shards {shape} are not multiples of chunks {chunks}; {fitting} would be.")
    return shape


def _grown(chunk: Vec3[int], step: Vec3[int], voxels: int) -> Vec3[int]:
    """Double a chunk, first along the axes that the next level halves, up to a number of voxels."""
    shape = list(chunk)
    halved = [axis for axis in range(3) if step[axis] == 2]
    while halved and math.prod(shape) * 2 ** len(halved) <= voxels:
        for axis in halved:
            shape[axis] *= 2
    while 2 * math.prod(shape) <= voxels:
        shape[int(np.argmin(shape))] *= 2
    return Vec3.of(shape)


def _clipped(level: Level, chunk: Vec3[int], shard: Vec3[int] | None) -> LevelLayout:
    """Chunks and shards no longer than the level, and no shards of one chunk."""
    chunk = chunk.minimum(level.shape)
    if shard is None:
        return LevelLayout(level, chunk, None)
    whole = shard.minimum(level.shape.ceil_div(chunk) * chunk) // chunk * chunk
    return LevelLayout(level, chunk, None if whole == chunk else whole)


def _checked_kind(kind: object) -> Kind | dict[str, Kind] | None:
    if kind is None or (isinstance(kind, Mapping) and not kind):
        return None
    if isinstance(kind, Mapping):
        return {str(name): choice(f"kind of {name}", value, get_args(Kind)) for name, value in kind.items()}
    return choice("kind", kind, get_args(Kind))


@dataclass(frozen=True, kw_only=True)
class VolumeOptions:
    """Chunks, levels and position of the volumes that are written; see `imagery_dask.to_zarr`.

    Raises
    ------
    ValueError, TypeError
        An option is not valid, whatever the data.
    """

    chunks: Sequence[int] | None = option(
        None, "Chunks of the output.  [default: 128,128,128; 64,64,64 for 32 and 64 bit voxels]", syntax="shape"
    )
    levels: Levels = option(
        1, "Levels of the pyramid; auto: down to 512 voxels; source: the mips of the source.", syntax="levels"
    )
    kind: Kind | Mapping[str, Kind] | None = option_by_name(
        None,
        NEWER,
        image=Flag(
            "What the image's voxels are: intensities, which levels average, or ids.  [default: ids in a layer of type "
            "segmentation, and if they are integers of 32 bits or more]",
            choices=get_args(Kind),
        ),
    )
    relabel: Literal["uint32"] | None = option(
        None,
        "Write ids as numbers of this type, and a table that gives the ids back. The region is read twice.",
        NEWER,
    )
    resolution_nm: Sequence[float] | None = None
    translation_nm: Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._set("kind", _checked_kind(self.kind))
        if self.chunks is not None:
            self._set("chunks", whole_triple("chunks", self.chunks))
        self._set("levels", checked_levels(self.levels))
        choice("relabel", self.relabel, ("uint32", None))
        if self.resolution_nm is not None:
            triple("resolution_nm", self.resolution_nm, positive=True)
            self._set("resolution_nm", tuple(np.asarray(self.resolution_nm, dtype=object).ravel()))
        if self.translation_nm is not None:
            triple("translation_nm", self.translation_nm)
            self._set("translation_nm", tuple(np.asarray(self.translation_nm, dtype=object).ravel()))

    @classmethod
    def from_json(cls, options: JsonObject) -> Self:
        """Return the options that a plan's JSON holds."""
        return cls(**options)

    @property
    def chunk(self) -> XYZ | None:
        """Chunk shape x, y, z, or None for the default of the data type."""
        return cast(XYZ | None, self.chunks)

    def _set(self, name: str, value: object) -> None:
        """Set a field to its normal form, while the value is made."""
        object.__setattr__(self, name, value)
