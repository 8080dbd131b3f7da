"""What workers do for a check: decode the chunks of a box, or compare samples of two levels. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import ClassVar
from zlib import crc32

import numpy as np

from imagery_dask.checking.level_methods import Tally, compare
from imagery_dask.checking.level_pairs import LevelPair
from imagery_dask.errors import CorruptChunkError, MissingChunkError
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import VoxelGrid, start_of, stop_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.run import Written
from imagery_dask.sources import SourceHandle

__all__ = [
    "FROM_FIRST",
    "SAMPLES",
    "CheckChunks",
    "ChunksFound",
    "CompareLevels",
    "Corners",
    "LevelBoxes",
    "boxes_of",
    "drawn",
]

# Decoded bytes of the chunks that are fetched together: their encoded bytes are in memory at once.
PIECE_BYTES = 2**26
# Damaged chunks of a box that are named.
NAMED = 1000
# Boxes of each level that are compared with the finer level.
SAMPLES = 16
# Added to the name of a method whose windows lie side by side from the first voxel on.
FROM_FIRST = ", from the first voxel on"


# First voxel of a chunk, and one past the last.
Corners = tuple[Vec3[int], Vec3[int]]


@dataclass(slots=True)
class ChunksFound:
    """What the chunks of a box are.

    Parameters
    ----------
    damaged : int
        Chunks that do not decode.
    named : list of tuple of 2 str
        Keys of the first of them, and reasons.
    varied : list of tuple of 2 Vec3
        Corners of some chunks whose voxels are not all equal, for samples of levels.
    """

    damaged: int = 0
    named: list[tuple[str, str]] = field(default_factory=list)
    varied: list[Corners] = field(default_factory=list)


def drawn(chunks: Iterable[Corners], seed: int) -> list[Corners]:
    """Return some chunks, the same of the same ones in whatever order and portions they are given."""
    return nsmallest(SAMPLES, chunks, key=lambda corners: crc32(f"{seed} {corners}".encode()))


class _Reads:
    """A task that has no hashes, since it writes nothing."""

    hashes_files: ClassVar[bool] = False

    def stored(self) -> bytes:
        """Raise."""
        raise TypeError(f"{type(self).__name__} writes nothing.")

    def expected(self) -> bytes:
        """Raise."""
        raise TypeError(f"{type(self).__name__} writes nothing.")


@dataclass(frozen=True)
class CheckChunks(_Reads):
    """Task that decodes the chunks of a box of a level.

    Parameters
    ----------
    handle : SourceHandle
        The level.
    volume : str
        Name of the level, for which counts are kept.
    number : int
        Number of the level in the check.
    at : tuple of 3 int
        Position of the box in the grid of boxes.
    box : VoxelGrid
        Its voxels.
    piece : tuple of 3 int
        Voxels whose chunks are fetched together.
    voxel_bytes : int
        Bytes of a voxel, with all its channels.
    seed : int
        Chooses chunks of which samples are taken.
    """

    handle: SourceHandle
    volume: str
    number: int
    at: Vec3[int]
    box: VoxelGrid
    piece: Vec3[int]
    voxel_bytes: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the task, for the dashboard."""
        x, y, z = self.at
        return f"check {self.volume} z{z} y{y} x{x}"

    def __call__(self) -> Written:
        """Decode the chunks, piece by piece."""
        found = ChunksFound()
        for piece in self.box.tiles(self.piece):
            for chunk in self.handle.check_chunks(piece):
                if chunk.damage:
                    found.damaged += 1
                    if len(found.named) < NAMED:
                        found.named.append((chunk.key, chunk.damage))
                elif not chunk.is_uniform:
                    found.varied.append((chunk.start, chunk.stop))
            found.varied = drawn(found.varied, self.seed)
        return Written(self.box.size, self.box.size * self.voxel_bytes, b"", found)


@dataclass(frozen=True)
class LevelBoxes(Sequence[CheckChunks]):
    """The tasks of a level, made when they are indexed.

    Parameters
    ----------
    handle, volume, number, piece, voxel_bytes, seed
        As of `CheckChunks`.
    boxes : BlockPlan
        Regions of the boxes.
    """

    handle: SourceHandle
    volume: str
    number: int
    boxes: BlockPlan
    piece: Vec3[int]
    voxel_bytes: int
    seed: int

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, number: int) -> CheckChunks:  # type: ignore[override]
        at, region = self.boxes[number]
        start = start_of(region)
        box = self.handle.mip.grid.crop(start, stop_of(region) - start)
        return CheckChunks(self.handle, self.volume, self.number, at, box, self.piece, self.voxel_bytes, self.seed)


def boxes_of(
    shape: Vec3[int], chunk: Vec3[int], file: Vec3[int], voxel_bytes: int, most: int = PIECE_BYTES
) -> tuple[BlockPlan, Vec3[int]]:
    """Return the boxes of a level, and the shape of the pieces of a box.

    A box has a number of whole files, or one shard. A shard is larger than a piece, which has a number of chunks.

    Parameters
    ----------
    shape, chunk, file : tuple of 3 int
        Voxels of the level, of a chunk, and of what a file holds together.
    voxel_bytes : int
        Bytes of a voxel, with all its channels.
    most : int
        Bytes of a piece, unless a chunk has more.

    Examples
    --------
    >>> chunk, shard = Vec3(64, 64, 64), Vec3(1024, 1024, 1024)
    >>> plan, piece = boxes_of(Vec3(4096, 4096, 2048), chunk, shard, voxel_bytes=1)
    >>> len(plan), plan.largest, piece
    (32, (1024, 1024, 1024), (512, 512, 256))
    >>> plan, piece = boxes_of(Vec3(4096, 4096, 300), chunk, chunk, voxel_bytes=1)
    >>> len(plan), plan.largest, piece
    (128, (512, 512, 256), (512, 512, 256))
    """
    whole = shape.ceil_div(chunk) * chunk
    piece = _grown(chunk, whole.minimum(file), most // voxel_bytes)
    box = file.minimum(whole)
    if box.prod() * voxel_bytes <= most:
        box = piece = _grown(box, whole, most // voxel_bytes)
    x, y, z = shape.map(lambda size, step: (*range(0, size, step), size), box)
    return BlockPlan((x, y, z), (True, True, True)), piece


def _grown(unit: Vec3[int], most_shape: Vec3[int], voxels: int) -> Vec3[int]:
    """Return a shape of whole units, doubled axis by axis as long as it has no more voxels, and covers no more."""
    grown = unit
    while True:
        # The axis that was doubled least, x before y before z.
        axes = sorted(range(3), key=lambda axis: grown[axis] // unit[axis])
        doubled = [grown * Vec3.of(2 if n == axis else 1 for n in range(3)) for axis in axes]
        fitting = [
            one
            for axis, one in zip(axes, doubled, strict=True)
            if grown[axis] < most_shape[axis] and one.prod() <= voxels
        ]
        if not fitting:
            return grown
        grown = fitting[0]


@dataclass(frozen=True)
class CompareLevels(_Reads):
    """Task that compares a box of a level with the finer level, by each method.

    Parameters
    ----------
    path : str
        The volume.
    volume : str
        Name of the coarser level.
    number : int
        Number of the pair of levels in the check.
    pairs : tuple of LevelPair
        How their voxels may belong together.
    start, shape : tuple of 3 int
        The box, from the first voxel of the coarser level on.
    are_ids, is_lossy : bool
        As of `level_methods.compare`.
    """

    path: str
    volume: str
    number: int
    pairs: tuple[LevelPair, ...]
    start: Vec3[int]
    shape: Vec3[int]
    are_ids: bool
    is_lossy: bool

    @property
    def name(self) -> str:
        """Name of the task, for the dashboard."""
        x, y, z = self.start
        return f"compare {self.volume} z{z} y{y} x{x}"

    def __call__(self) -> Written:
        """Compare; nothing is found where a chunk is missing or damaged, which the check of the chunks says."""
        found: dict[str, Tally] = {}
        coarse = SourceHandle(self.path, self.pairs[0].coarse, "error")
        try:
            voxels = coarse.read(coarse.mip.grid.crop(self.start, self.shape))
            for number, pair in enumerate(self.pairs):
                window = pair.window(self.start, self.shape)
                if window is None:
                    continue
                fine = pair.filled(SourceHandle(self.path, pair.fine, "error").read(window), self.start, self.shape)
                are_whole = pair.are_whole(self.start, self.shape)
                tallies = compare(np.asarray(fine), voxels, pair.factor, are_whole, self.are_ids, self.is_lossy)
                found |= {name + (FROM_FIRST if number else ""): tally for name, tally in tallies.items()}
        except (MissingChunkError, CorruptChunkError):
            return Written(0, 0, b"")
        return Written(voxels.size, voxels.nbytes, b"", found or None)
