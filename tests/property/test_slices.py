"""Slabs and tiles of slice exports partition the volume, cut no chunk, and give the pages of the whole."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask.array as da
import imageio.v2 as imageio
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.volumes import coordinate_volume, random_labels

from imagery_dask.export.core.inputs import as_volumes
from imagery_dask.export.images.slice_files import SliceNames, plane_axes
from imagery_dask.export.images.slice_pages import ImageryPages, MaskPages
from imagery_dask.export.images.slice_plan import plan_slices, storage_edges
from imagery_dask.export.images.slice_tasks import SliceTasks
from imagery_dask.storage.atomic_files import Files

CHUNKS = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)
AXES = st.integers(0, 2)
TILES = st.none() | st.integers(1, 30)


@given(st.tuples(CHUNKS, CHUNKS, CHUNKS), AXES, TILES, st.integers(1, 3000))
def test_tasks_partition_the_volume(chunks: Any, axis: int, tile: int | None, voxels: int) -> None:
    edges = tuple([0, *accumulate(sizes)] for sizes in chunks)
    plan = plan_slices(edges, axis, tile, voxels)  # type: ignore[arg-type]
    covered = np.zeros([sum(sizes) for sizes in chunks], np.uint8)
    for _, region in plan:
        covered[region] += 1
    assert (covered == 1).all()
    assert set(plan.edges[axis]) <= set(edges[axis])
    for across in plane_axes(axis):
        sizes = np.diff(plan.edges[across])
        assert tile is None or sizes.max() <= tile
        if tile is None or tile >= max(chunks[across]):
            assert set(plan.edges[across]) <= set(edges[across])


# Every tile of every plane is a file for every id; `CHUNKS` would give up to a hundred thousand files.
FEW_CHUNKS = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@settings(max_examples=25)
@given(st.tuples(FEW_CHUNKS, FEW_CHUNKS, FEW_CHUNKS), AXES, st.none() | st.integers(3, 20), st.booleans())
def test_pages_do_not_depend_on_slabs_and_tiles(chunks: Any, axis: int, tile: int | None, masks: bool) -> None:
    shape = tuple(sum(sizes) for sizes in chunks)
    data = random_labels(shape, n=3) if masks else coordinate_volume(shape, dtype=np.uint16)
    kinds = [f"root_id_{value}" for value in np.unique(data)] if masks else ["imagery"]
    pages: Any = MaskPages(np.unique(data), {}) if masks else ImageryPages()
    volumes = as_volumes(da.from_array(data, chunks=chunks))
    plan = plan_slices(storage_edges(volumes), axis, tile, 50)
    names = SliceNames("em", axis, shape, (-5, 0, 7), tile is not None, "png")  # type: ignore[arg-type]
    columns, rows = plane_axes(axis)
    with TemporaryDirectory() as folder:
        for task in SliceTasks(plan, volumes, pages, names, Files.at(folder), "png"):
            task()
        assert len([path for path in Path(folder).iterdir() if path.is_file()]) == len(kinds) * shape[axis] * int(
            np.prod([len(plan.edges[across]) - 1 for across in (columns, rows)])
        )
        for index in range(shape[axis]):
            whole = np.take(data, index, axis=axis).T
            for kind in kinds:
                expected = np.where(whole == np.uint64(kind[8:]), 255, 0) if masks else whole
                for row in plan.edges[rows][:-1]:
                    for column in plan.edges[columns][:-1]:
                        page = np.asarray(imageio.imread(Path(folder) / names.name(kind, index, (column, row))))
                        page = page[..., 3] if masks else page
                        part = expected[row:, column:][: page.shape[0], : page.shape[1]]
                        np.testing.assert_array_equal(page, part)
