"""How the volume of a store is written: levels, codec, and shards that agree with graph chunks.

A shard is whole graph chunks, or a graph chunk is whole shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from imagery_dask.export.core.writer_arguments import option
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.geometry.pyramid import Levels
from imagery_dask.geometry.vec import Vec3

__all__ = ["StoreOptions", "aligned_shapes"]

# Voxels of a chunk: 2 MiB of ids; along an axis, where a graph chunk has such a divisor; and of a shard: 32 MiB.
CHUNK_VOXELS = 2**18
CHUNK_EDGES = (16, 32, 64, 128)
SHARD_VOXELS = 2**22


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Options of `imagery_dask.create_versions` that say how voxels are written.

    Raises
    ------
    ValueError, TypeError
        An option is not valid.
    """

    chunks: Sequence[int] | None = option(
        None,
        "Chunk shape in voxels, X,Y,Z.  [default: about a cube in nm, 16 to 128 voxels long, a part of a graph chunk]",
        syntax="shape",
    )
    shards: Sequence[int] | Literal["auto"] | None = option(
        "auto",
        "Chunks that make one file: a shape in voxels, auto (about 32 MiB of ids, in step with graph chunks), none.",
        syntax="shape",
        choices=("auto", "none"),
    )
    levels: Levels = option(
        1, "Levels of the pyramid: a number, or auto (down to 512 voxels).", syntax="levels", choices=("auto",)
    )
    codec: str = option(
        "auto", "Compression of chunks, with a level if it is not 1 (zstd:3); auto is zstd for ids.", syntax="codec"
    )

    def __post_init__(self) -> None:
        self._zarr(self.chunks, self.shards)

    def zarr(self, graph_chunk: Vec3[int], shape: Vec3[int], resolution_nm: Vec3[float]) -> ZarrOptions:
        """Return the options of the volume."""
        chunks, shards = aligned_shapes(graph_chunk, shape, resolution_nm)
        if self.chunks is not None or self.shards != "auto":
            return self._zarr(self.chunks or (None if self.shards is None else chunks), self.shards)
        return self._zarr(chunks, shards)

    def _zarr(self, chunks: Any, shards: Any) -> ZarrOptions:
        return ZarrOptions(chunks=chunks, shards=shards, levels=self.levels, codec=self.codec)


def aligned_shapes(graph_chunk: Vec3[int], shape: Vec3[int], resolution_nm: Vec3[float]) -> tuple[Vec3[int], Vec3[int]]:
    """Return the shapes of chunks and shards for a volume.

    Chunks are about cubes in nm: of sections that are thick, fewer are decoded for one that is looked at.

    Parameters
    ----------
    graph_chunk : Vec3 of int
        Voxels of a graph chunk.
    shape : Vec3 of int
        Voxels of the volume.
    resolution_nm : Vec3 of float
        Size of a voxel.

    Examples
    --------
    >>> aligned_shapes(Vec3(256, 256, 512), Vec3(4096, 4096, 2048), Vec3(8, 8, 8))
    ((64, 64, 64), (128, 128, 256))
    >>> aligned_shapes(Vec3(256, 256, 512), Vec3(4096, 4096, 2048), Vec3(8, 8, 40))
    ((128, 128, 16), (128, 128, 256))
    >>> aligned_shapes(Vec3(32, 32, 16), Vec3(128, 128, 32), Vec3(8, 8, 40))
    ((32, 32, 16), (128, 128, 32))
    """
    edge_nm = (CHUNK_VOXELS * math.prod(resolution_nm)) ** (1 / 3)
    edges = (_nearest_edge(edge_nm / nm) for nm in resolution_nm)
    chunk = Vec3.of(_largest_divisor(size, edge) for size, edge in zip(graph_chunk, edges, strict=True))
    shard = [*graph_chunk]
    while Vec3.of(shard).prod() > SHARD_VOXELS:
        halves = [axis for axis in range(3) if shard[axis] % (2 * chunk[axis]) == 0]
        if not halves:
            break
        shard[max(halves, key=lambda axis: shard[axis])] //= 2
    if shard == [*graph_chunk]:
        while 2 * Vec3.of(shard).prod() <= SHARD_VOXELS:
            growing = [axis for axis in range(3) if shard[axis] < shape[axis]]
            if not growing:
                break
            shard[min(growing, key=lambda axis: shard[axis])] *= 2
    return chunk, Vec3.of(shard)


def _nearest_edge(voxels: float) -> int:
    return min(CHUNK_EDGES, key=lambda edge: abs(math.log(edge / voxels)))


def _largest_divisor(size: int, most: int) -> int:
    return next((divisor for divisor in range(most, most // 4 - 1, -1) if size % divisor == 0), size)
