"""The blocks that an export computes, aligned to the output's chunks and the source's storage chunks.

Every output chunk belongs to one block, so that no two tasks write to it. Where the region allows, every storage chunk
belongs to one block too, so that it is read once::

    output chunks      |---------|---------|---------|---------|--
    storage chunks   |----|----|----|----|----|----|----|----|----
    blocks             |---------|-------------------|------------     edges where both grids have one

A block of a dynamic segmentation also consists of whole graph chunks, so that each supervoxel is looked up once. If
such a block does not fit into memory, it is computed in pieces, one after another::

    graph chunks       |---------------------------------------|----
    pieces of a block  |---------|-------------------|---------|----
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from imagery_dask.geometry.grid import Region
from imagery_dask.geometry.vec import Vec3
from imagery_dask.serialization import NEWER

__all__ = ["SPLIT_ABOVE", "BlockPlan", "SourceChunks", "plan_blocks"]

# A block may exceed the requested size by this factor to avoid cutting storage chunks.
SPLIT_ABOVE = 8


@dataclass(frozen=True, slots=True)
class SourceChunks:
    """Storage chunks along one axis, in voxels of the region that is exported.

    Parameters
    ----------
    size : int
        Voxels of a chunk.
    phase : int
        Voxels from the region's start to the first edge between chunks, from 0 to ``size - 1``.
    """

    size: int
    phase: int = 0


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Blocks of a region, as edges along x, y and z.

    Parameters
    ----------
    edges : tuple of 3 tuples of int
        Edges from 0 to the region's size.
    reads_once : tuple of 3 bool
        For each axis, True if no edge between blocks cuts a storage chunk.
    inner : tuple of 3 tuples of int, optional
        Edges that cut blocks into pieces that fit into memory.
    part : tuple of 3 int, optional
        Shape of the parts in which a block is read and written, one after another: whole chunks of the output. The hash
        of such a block is that of the hashes of its parts. None where blocks are written as a whole.
    """

    edges: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    reads_once: tuple[bool, bool, bool]
    inner: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    part: Vec3[int] | None = field(default=None, metadata=NEWER)

    def __len__(self) -> int:
        return math.prod(len(edges) - 1 for edges in self.edges)

    @property
    def counts(self) -> Vec3[int]:
        """Number of blocks along x, y, z."""
        return Vec3.of(self.edges).map(len) - 1

    def __iter__(self) -> Iterator[tuple[Vec3[int], Region]]:
        """Yield the index and region of each block, x fastest."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> tuple[Vec3[int], Region]:
        """Return the index and region of a block by its number."""
        if not 0 <= number < len(self):
            raise IndexError(f"Block {number} does not exist; blocks are numbered 0 to {len(self) - 1}.")
        nx, ny, _ = self.counts
        index = Vec3(number % nx, number // nx % ny, number // (nx * ny))
        x, y, z = index.map(lambda at, edges: slice(edges[at], edges[at + 1]), self.edges)
        return index, (x, y, z)

    def pieces(self, region: Region) -> Iterator[Region]:
        """Yield the regions in which a block is computed, x fastest; the block itself if it fits into memory."""
        if self.inner is None:
            yield region
            return

        def cut(part: slice, edges: tuple[int, ...]) -> tuple[int, ...]:
            return (part.start, *(edge for edge in edges if part.start < edge < part.stop), part.stop)

        yield from (piece for _, piece in BlockPlan(Vec3.of(region).map(cut, self.inner), self.reads_once))

    @property
    def largest_piece(self) -> Vec3[int]:
        """Shape of the largest piece of a block, or of the largest block where blocks are not cut."""
        return self.largest if self.inner is None else BlockPlan(self.inner, self.reads_once).largest

    @property
    def largest(self) -> Vec3[int]:
        """Largest extent of a block along x, y, z."""
        return Vec3.of(self.edges).map(lambda edges: max(b - a for a, b in pairwise(edges)))


def plan_blocks(
    shape: Sequence[int],
    output_chunks: Sequence[int],
    source_chunks: Sequence[SourceChunks | None],
    voxels: int,
    graph_chunks: Sequence[SourceChunks | None] = (None, None, None),
    most: int | None = None,
) -> BlockPlan:
    """Return the blocks of a region.

    Parameters
    ----------
    shape : sequence of 3 int
        Voxels of the region.
    output_chunks : sequence of 3 int
        Chunk shape of the output. The chunk grid begins at the region's start.
    source_chunks : sequence of 3 SourceChunks or None
        Grid of storage chunks along each axis; None if its edges do not coincide with edges of the region's voxels.
    voxels : int
        Target number of voxels of a block. A block is at least one output chunk.
    graph_chunks : sequence of 3 SourceChunks or None
        Grid of graph chunks (multiples of storage chunks) to align blocks to as well. Such blocks may be computed in
        pieces.
    most : int, optional
        Largest number of voxels of a block that is aligned to the source; by default eight times `voxels`.

    Examples
    --------
    >>> plan = plan_blocks((300, 128, 64), (128, 128, 64), [SourceChunks(64)] * 3, 128 * 128 * 64)
    >>> plan.edges[0], len(plan)
    ((0, 128, 256, 300), 3)
    """
    # A block is at least an output chunk, whatever that takes.
    most = max(SPLIT_ABOVE * voxels if most is None else most, math.prod(output_chunks))
    storage = _aligned(shape, output_chunks, source_chunks, voxels, most)
    if not all(graph_chunks):
        return storage
    chunk = math.prod(grid.size for grid in graph_chunks if grid is not None)
    graph = _aligned(shape, output_chunks, graph_chunks, voxels, SPLIT_ABOVE * chunk)
    fits = math.prod(graph.largest) <= most
    return graph if fits else replace(graph, inner=storage.edges)


def _aligned(
    shape: Sequence[int],
    output_chunks: Sequence[int],
    grids: Sequence[SourceChunks | None],
    voxels: int,
    most: int,
) -> BlockPlan:
    """Return blocks aligned to the output's chunks and, if that takes at most `most` voxels, to another grid."""
    units = list(map(_unit, output_chunks, grids))
    if math.prod(unit for unit, _ in units) > most:
        units = [(chunk, None) for chunk in output_chunks]
    block = [min(unit, shape[axis]) for axis, (unit, _) in enumerate(units)]
    while 2 * math.prod(block) <= voxels:
        growing = [axis for axis in range(3) if block[axis] < shape[axis]]
        if not growing:
            break
        block[min(growing, key=lambda axis: block[axis])] *= 2
    edges, once = [], []
    for axis, (unit, first) in enumerate(units):
        step = unit * -(-block[axis] // unit)
        inner = range(step if first is None or first == 0 else first, shape[axis], step)
        edges.append((0, *inner, shape[axis]))
        once.append(first is not None or len(inner) == 0)
    return BlockPlan((edges[0], edges[1], edges[2]), (once[0], once[1], once[2]))


def _unit(chunk: int, source: SourceChunks | None) -> tuple[int, int | None]:
    """Return the distance between edges that both grids share, and the first such edge or None."""
    if source is None:
        return chunk, None
    unit = math.lcm(chunk, source.size)
    for edge in range(0, unit, chunk):
        if (edge - source.phase) % source.size == 0:
            return unit, edge
    return chunk, None
