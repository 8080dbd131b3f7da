"""Names of the tasks of slice exports: what is done, and which slab it is."""

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
from imagery_dask.storage.files import Files

SHAPE = (64, 64, 32)
BOUNDS = [[0, 0, 0], SHAPE]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_by_the_place_of_their_slab(client: ImageryClient, tmp_path: Path, axis: int) -> None:
    volumes = as_volumes(client.image_cutout(BOUNDS))
    plan = plan_slices(storage_edges(volumes), axis, 32, 1)
    name = SliceNames("em", axis, SHAPE, (0, 0, 0), True, "png")
    found = [task.name for task in SliceTasks(plan, volumes, ImageryPages(), name, Files.at(tmp_path), "png")]
    counts = [len(edges) - 1 for edges in plan.edges]
    assert found == [
        f"read+write slices z{z} y{y} x{x}"
        for z in range(counts[2])
        for y in range(counts[1])
        for x in range(counts[0])
    ]
    both = [*as_volumes(remapped(client.segmentation_cutout(BOUNDS))), *volumes]
    over = SliceTasks(plan, both, ImageryPages(), name, Files.at(tmp_path), "png")
    assert over[0].name == "read+remap+resize+write slices z0 y0 x0"
