"""How many blocks of a plan hold the objects that are kept; the others are read as zeros, without requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import ExportPlan, said_of
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.graph_ids import SupervoxelIds, chunks_crossed
from imagery_dask.sources import chunks_of_objects

__all__ = ["blocks_with_objects", "notes_of_objects"]


def notes_of_objects(export: Export, plan: ExportPlan) -> Iterator[str]:
    """Tell how many blocks are read, of each layer of which that is known without reading voxels."""
    for region, (one, own) in export.by_region(plan).items():
        for _, part in own.parts:
            sources = () if part.doing == "downsample" else one.format.reads(one, part).sources
            for source in sources:
                held = None if source is None else blocks_with_objects(source, part.blocks)
                if held is not None:
                    yield said_of([region], (
                        f"{part.layer}: {held:,} of {len(part.blocks):,} blocks are in graph chunks that hold the "
                        "objects. The others are 0, and nothing is read for them."
                    ))  # fmt: skip


def blocks_with_objects(source: CutoutArray, blocks: BlockPlan) -> int | None:
    """Count the blocks of a cutout that are read; None where each must be read to know."""
    cutout, target = source.cutout, source.cutout.target
    rule, query = cutout.labels, cutout.query
    if rule is None or query is None or rule.keep is None or [edges[-1] for edges in blocks.edges] != [*target.shape]:
        return None
    graph = query.graph
    chunks = chunks_of_objects(replace(query, stop_layer=None), rule.keep, rule.leaves_within)
    if chunks is None or graph.chunk_bits is None:
        return None
    held = SupervoxelIds(graph.layer_bits, graph.chunk_bits).index_of(chunks)
    ranges = np.zeros((len(held), 2, 3), np.int64)  # of blocks that cross each of the chunks
    for axis, edges in enumerate(blocks.edges):
        starts, stops = [], []
        for first, stop in pairwise(edges):
            offset, shape = [0, 0, 0], [*target.shape]
            offset[axis], shape[axis] = first, stop - first
            box = target.crop(Vec3.of(offset), Vec3.of(shape)).at(cutout.mip.grid.resolution_nm)
            crossed = chunks_crossed(graph, box.intersection(cutout.mip.grid))
            if crossed is None:
                return None
            starts.append(crossed[0][axis])
            stops.append(crossed[1][axis])
        ranges[:, 0, axis] = np.searchsorted(stops, held[:, axis], "right")
        ranges[:, 1, axis] = np.searchsorted(starts, held[:, axis], "right")
    marked = np.zeros(blocks.counts, bool)
    for (x, y, z), (x_stop, y_stop, z_stop) in np.unique(ranges, axis=0).tolist():
        marked[x:x_stop, y:y_stop, z:z_stop] = True
    return int(marked.sum())
