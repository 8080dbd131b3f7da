"""Task names of slice exports: the steps, and the position of the slab."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cutouts import remapped

from imagery_dask import ImageryClient
from imagery_dask.export.core.inputs import as_volumes
from imagery_dask.export.images.slice_files import SliceNames
from imagery_dask.export.images.slice_pages import ImageryPages
from imagery_dask.export.images.slice_plan import plan_slices, storage_edges
from imagery_dask.export.images.slice_tasks import SliceTasks
from imagery_dask.storage.atomic_files import Files

SHAPE = (64, 64, 32)
BOUNDS = [[0, 0, 0], SHAPE]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tasks_are_named_after_steps_and_position(client: ImageryClient, tmp_path: Path, axis: int) -> None:
    volumes = as_volumes(client.image_cutout(BOUNDS))
    plan = plan_slices(storage_edges(volumes), axis, 32, 1)
    file_names = SliceNames("em", axis, SHAPE, (0, 0, 0), True, "png")
    task_names = [
        task.name for task in SliceTasks(plan, volumes, ImageryPages(), file_names, Files.at(tmp_path), "png")
    ]
    counts = [len(edges) - 1 for edges in plan.edges]
    assert task_names == [
        f"read+write slices z{z} y{y} x{x}"
        for z in range(counts[2])
        for y in range(counts[1])
        for x in range(counts[0])
    ]
    both = [*as_volumes(remapped(client.segmentation_cutout(BOUNDS))), *volumes]
    overlays = SliceTasks(plan, both, ImageryPages(), file_names, Files.at(tmp_path), "png")
    assert overlays[0].name == "read+remap+resize+write slices z0 y0 x0"
