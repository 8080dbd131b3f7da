"""The table of the supervoxels of a volume: their graph chunk, their voxels, and their box.

A block is a group of graph chunks, which no supervoxel crosses, so that its rows are whole; rows of a supervoxel that
lies in several blocks, of a volume whose voxels cut graph chunks, are added up. Pieces are named by the position of
their graph chunks along x, which ids sort by: rows are joined slab by slab, and no process holds all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage

from imagery_dask import kernels
from imagery_dask.annotations import Array, JsonObject
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.config import config
from imagery_dask.errors import SourceError
from imagery_dask.export.core.base import BlockReads
from imagery_dask.export.core.block_reads import ReadCutout
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import Region, parts_of, start_of, stop_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.graph_ids import SupervoxelIds
from imagery_dask.run import BlockTask, RunReport, Written
from imagery_dask.versions.tables.table_export import Pieces, TableExport
from imagery_dask.versions.tables.table_files import ColumnsHash, TableFile, TableWriter, regrouped

__all__ = ["BOX", "COLUMNS", "ROW", "SupervoxelTable", "graph_blocks", "rows_of"]

BOX = ("x_start", "y_start", "z_start", "x_stop", "y_stop", "z_stop")
ROW = np.dtype([("supervoxel", "<u8"), ("voxels", "<u8"), *((name, "<i8") for name in BOX)])
COLUMNS = {"supervoxel": np.uint64, "chunk": np.uint64, "voxels": np.uint64, **dict.fromkeys(BOX, np.int64)}
# Bytes that are held for a voxel while it is counted: its id, its number in the block, and a copy.
HELD = 3


def graph_blocks(shape: Vec3[int], chunk: Vec3[int], phase: Vec3[int], voxels: int) -> BlockPlan:
    """Return blocks of whole graph chunks, of about so many voxels.

    Parameters
    ----------
    shape : Vec3 of int
        Voxels of the volume.
    chunk, phase : Vec3 of int
        Voxels of a graph chunk, and of the first one that are in the volume (0 for all).
    voxels : int
        Voxels of a block; a block is at least a graph chunk.
    """
    counts = [1, 1, 1]
    while 2 * int(np.prod(counts)) * chunk.prod() <= voxels:
        growing = [axis for axis in range(3) if counts[axis] * chunk[axis] < shape[axis]]
        if not growing:
            break
        counts[min(growing, key=lambda axis: counts[axis] * chunk[axis])] *= 2

    def edges(size: int, step: int, first: int, count: int) -> tuple[int, ...]:
        return (0, *range(first or step * count, size, step * count), size)

    x, y, z = shape.map(edges, chunk, phase, counts)
    return BlockPlan((x, y, z), (True, True, True))


def rows_of(block: Array, start: Vec3[int]) -> Array:
    """Return the rows of a block of supervoxels: one for each that is not 0, ascending.

    Parameters
    ----------
    block : numpy.ndarray of uint64, shape (x, y, z)
        Supervoxels.
    start : Vec3 of int
        First voxel of the block.
    """
    ids, counts = kernels.unique_counts(block)
    numbers = kernels.remap(block.copy(order="K"), ids, np.arange(1, len(ids) + 1, dtype=np.uint64))
    rows: Array = np.zeros(len(ids), ROW)
    rows["supervoxel"], rows["voxels"] = ids, counts
    boxes = ndimage.find_objects(numbers.astype(np.int32), len(ids))
    for axis, name in enumerate("xyz"):
        rows[f"{name}_start"] = [box[axis].start + start[axis] for box in boxes]
        rows[f"{name}_stop"] = [box[axis].stop + start[axis] for box in boxes]
    return np.asarray(rows[rows["supervoxel"] != 0])


def merged(parts: list[Array]) -> Array:
    """Return the rows of some parts, ascending; those of one supervoxel are added up."""
    rows: Array = np.concatenate([np.zeros(0, ROW), *parts])
    rows = rows[np.argsort(rows["supervoxel"], kind="stable")]
    ids = rows["supervoxel"]
    firsts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.zeros(0, np.int64)
    if len(firsts) == len(rows):
        return rows
    out: Array = rows[firsts].copy()
    out["voxels"] = np.add.reduceat(rows["voxels"], firsts)
    for name in BOX:
        out[name] = (np.minimum if name.endswith("start") else np.maximum).reduceat(rows[name], firsts)
    return out


def counted(source: CutoutArray, region: Region) -> Array:
    """Return the rows of a region, whose voxels are read in parts."""
    shape, parts = stop_of(region) - start_of(region), []
    while 8 * shape.prod() > config.get("export.block_bytes") and max(shape) > 1:
        longest = max(range(3), key=lambda axis: shape[axis])
        shape = Vec3.of(-(-length // 2) if axis == longest else length for axis, length in enumerate(shape))
    for part in parts_of(region, shape):
        block = ReadCutout(source, part)()
        parts.append(rows_of(block.astype(np.uint64, copy=False), source.cutout.target.start + start_of(part)))
    return merged(parts)


@dataclass(frozen=True, slots=True)
class CountSupervoxels:
    """Task of a block: count its supervoxels, and write their rows by the position of their graph chunk along x."""

    number: int
    region: Region
    source: CutoutArray
    ids: SupervoxelIds
    pieces: Pieces
    hashes_files: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name of the task."""
        x, y, z = start_of(self.region)
        return f"read+count supervoxels z{z} y{y} x{x}"

    @property
    def volume(self) -> str:
        """Name of the table."""
        return SupervoxelTable.layer

    def __call__(self) -> Written:
        """Write the rows."""
        rows = self.rows()
        xs = self.ids.x_of(rows["supervoxel"])
        for x in np.unique(xs):
            self.pieces.put(f"{x:08}-{self.number:08}", rows[xs == x])
        shape = stop_of(self.region) - start_of(self.region)
        return Written(shape.prod(), rows.nbytes, kernels.digest_of_bytes(rows.tobytes()))

    def rows(self) -> Array:
        """Return the rows of the block."""
        return counted(self.source, self.region)

    def stored(self) -> bytes:
        """Return nothing: pieces are not kept."""
        return b""

    def expected(self) -> bytes:
        """Return the hash of the rows as they would be written now."""
        return kernels.digest_of_bytes(self.rows().tobytes())


class SupervoxelTable(TableExport):
    """The table of the supervoxels of a volume.

    Parameters
    ----------
    table : TableFile
        The file.
    source : CutoutArray
        Supervoxels, in voxels of the volume.
    ids : SupervoxelIds
        Layout of their ids.
    blocks : BlockPlan
        Groups of graph chunks.
    fields : dict
        What the volume is of, by name.
    """

    layer, doing = "supervoxels", "read+count"

    def __init__(
        self, table: TableFile, source: CutoutArray, ids: SupervoxelIds, blocks: BlockPlan, fields: JsonObject
    ) -> None:
        super().__init__(table, fields, {})
        self.source, self.ids, self._blocks = source, ids, blocks

    def blocks(self) -> BlockPlan:
        """Return the groups of graph chunks."""
        return self._blocks

    def counted(self, region: Region) -> Array:
        """Return the rows of a region of the volume, from its voxels."""
        return counted(self.source, region)

    @property
    def reads(self) -> BlockReads:
        """The volume."""
        return BlockReads((self.source,), HELD * max(config.get("export.block_bytes"), 8 * self._smallest))

    @property
    def _smallest(self) -> int:
        return self.source.cutout.mip.chunk_shape.prod()

    def task(self, run: StartedRun) -> Callable[[int, Region], BlockTask]:
        """Return what makes the task of a block."""
        source, ids, pieces = self.source, self.ids, Pieces.of(run)
        return lambda number, region: CountSupervoxels(number, region, source, ids, pieces)

    def join(self, pieces: Pieces, report: RunReport) -> None:
        """Write the rows of one slab of graph chunks after another."""
        del report
        hashed, voxels = ColumnsHash(list(COLUMNS)), 0
        with TableWriter(self.table, COLUMNS, ["chunk"]) as writer:
            for group in regrouped(self._slabs(pieces)):
                writer.write(group)
                hashed.add(group)
                voxels += int(group["voxels"].sum(dtype=np.uint64))
            if not writer.rows:
                raise SourceError(f"{self.source.cutout.path} has no supervoxel: all of its voxels are 0.")
            said: JsonObject = {
                "rows": writer.rows, "voxels": voxels, "hash": hashed.hexdigest(),
                "supervoxels_hash": hashed.of("supervoxel"),
            }  # fmt: skip
            writer.publish(said)

    def _slabs(self, pieces: Pieces) -> Iterator[dict[str, Array]]:
        for _, names in groupby(pieces.names(), key=lambda name: name.partition("-")[0]):
            rows = merged([pieces.get(name) for name in names])
            columns: dict[str, Any] = {name: np.ascontiguousarray(rows[name]) for name in ROW.names or ()}
            columns["chunk"] = self.ids.chunks_of(columns["supervoxel"])
            yield {name: columns[name] for name in COLUMNS}
