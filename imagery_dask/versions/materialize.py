"""Copies of versions as ordinary OME-Zarr, which follow: another version rewrites the blocks in which an id changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.execution.update import update_run
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.moments import describe_moment
from imagery_dask.urls import redacted
from imagery_dask.versions.copy_options import CopyOptions
from imagery_dask.versions.differences import changes
from imagery_dask.versions.object_tables import STARTS, STOPS
from imagery_dask.versions.recorded import Recorded, recorded_in

if TYPE_CHECKING:
    from imagery_dask.versions.opened_versions import VersionStore

__all__ = ["blocks_with", "blocks_with_changes", "prepare_copy"]

SEGMENTATION = "segmentation"
MOMENT = f"{SEGMENTATION} timestamp"


def prepare_copy(
    store: VersionStore,
    recorded: Recorded,
    url: str | os.PathLike[str],
    options: CopyOptions,
    *,
    image: bool = False,
    overwrite: bool = False,
) -> tuple[ZarrExport, list[str]]:
    """Return the export of a version; a copy of another version at its place becomes the begun run of this export.

    Parameters
    ----------
    store : VersionStore
        The store.
    recorded : Recorded
        The version.
    url : str or path
        The copy.
    options : CopyOptions
        How it is written.
    image : bool
        Copy the imagery too.
    overwrite : bool
        Write the copy anew.

    Returns
    -------
    export : ZarrExport
        To be executed.
    notes : list of str
        What an update takes.
    """
    data = store.at(recorded.name)
    export = ZarrExport(data if image else data[[SEGMENTATION]], url, options.like(store))
    return export, [] if overwrite else _follow(store, recorded, export)


def _follow(store: VersionStore, recorded: Recorded, export: ZarrExport) -> list[str]:
    """Let a copy of another version become this one; return notes of what that takes."""
    known = {one.timestamp: one for one in recorded_in(store.url)}
    from_: list[Recorded] = []

    def changed(plan: ExportPlan) -> NDArray[np.bool_]:
        moment = plan.fingerprint_fields[MOMENT]
        if moment not in known:
            raise ValueError(
                f"{export.url} is a copy of the moment {describe_moment(int(moment))}, of which {redacted(store.url)} "
                "has no record, so that the blocks that differ are not known. Add that version again, or write the "
                "copy anew (overwrite=True, --overwrite)."
            )
        from_.append(known[moment])
        return blocks_with_changes(store, export, plan, known[moment], recorded)

    count = update_run(export, [MOMENT], changed)
    if count is None:
        return []
    export.mark_updating()
    return [f"{count:,} blocks differ between {from_[0].title} and {recorded.title}; the others are kept."]


def blocks_with_changes(
    store: VersionStore, export: ZarrExport, plan: ExportPlan, before: Recorded, after: Recorded
) -> NDArray[np.bool_]:
    """Mark the blocks of a plan in which an id changes, by number: of each level, those that hold such voxels."""
    marked = np.zeros(plan.blocks, bool)
    (multiscale,) = (one for one in export.multiscales if one.volume.name == SEGMENTATION)
    assert multiscale.volume.source is not None
    target, steps = multiscale.volume.source.cutout.target, [level.step for level in multiscale.export.levels]
    parts = [(first, part) for first, part in plan.parts if part.volume == SEGMENTATION]
    for rows in changes(store.supervoxels, before, after):
        starts, stops = (np.stack([rows[name] for name in names], axis=1) for names in (STARTS, STOPS))
        for first, part in parts:
            factor = Vec3(1, 1, 1)
            for step in steps[1 : part.level + 1]:
                factor = factor * step
            inside = blocks_with(part.blocks, target, starts, stops, factor)
            marked[first : first + len(part.blocks)] |= inside
    return marked


def blocks_with(
    blocks: BlockPlan, target: VoxelGrid, starts: NDArray[np.int64], stops: NDArray[np.int64], factor: Vec3[int]
) -> NDArray[np.bool_]:
    """Mark the blocks that hold a voxel of any box, by number.

    Parameters
    ----------
    blocks : BlockPlan
        Blocks of a level, in its voxels from its first one.
    target : VoxelGrid
        Voxels of level 0.
    starts, stops : numpy.ndarray of int64, shape (n, 3)
        Boxes, in voxels of level 0, absolute.
    factor : tuple of 3 int
        Voxels of level 0 in one of the level.
    """
    step, origin = np.array(factor), np.array(target.start)
    # Boxes that are partly outside of what was exported are cut.
    low = np.maximum(starts - origin, 0) // step
    high = -(-(np.minimum(stops, np.array(target.stop)) - origin) // step)
    first, last = np.empty_like(low), np.empty_like(high)
    for axis, edges in enumerate(blocks.edges):
        first[:, axis] = np.searchsorted(edges, low[:, axis], "right") - 1
        last[:, axis] = np.searchsorted(edges, high[:, axis], "left")
    marked = np.zeros(blocks.counts, bool)
    ranges = np.unique(np.concatenate([first, last], axis=1)[(low < high).all(axis=1)], axis=0)
    for x, y, z, x_stop, y_stop, z_stop in ranges.tolist():
        marked[x:x_stop, y:y_stop, z:z_stop] = True
    return np.asarray(marked.ravel(order="F"))
