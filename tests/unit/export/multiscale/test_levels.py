"""Task names of volume exports: the steps, the layer, and the position of the block."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from support.cutouts import remapped
from support.settings import Configure

from imagery_dask import ImageryClient
from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.inputs import as_volumes
from imagery_dask.export.multiscale.level_layout import lay_out
from imagery_dask.export.multiscale.levels import LevelTasks, VolumeLevels, plan_levels
from imagery_dask.geometry.pyramid import pyramid

SHAPE = (64, 64, 32)
CHUNKS = (32, 32, 16)
BLOCK_BYTES = 32 * 32 * 16
RESOURCES = WorkerResources(1, 2**30)


def names(data: Any, levels: int = 1) -> list[list[str]]:
    """Return the names of the tasks of each stage of an export."""
    (volume,) = as_volumes(data)
    all_levels = pyramid(volume.shape, volume.resolution_nm, volume.translation_nm, levels)
    _, stages = lay_out(all_levels, CHUNKS, None, volume.voxel_bytes)
    export = VolumeLevels((volume,), all_levels, stages)
    (plans,) = plan_levels([export], RESOURCES, BLOCK_BYTES * volume.voxel_bytes)
    stores: Any = [None] * levels
    return [[task.name for task in LevelTasks(export, at, plan, stores)] for at, plan in enumerate(plans)]


def first(data: Any) -> str:
    return names(data)[0][0]


BOUNDS = [[0, 0, 0], SHAPE]


def test_tasks_are_named_after_the_position_of_their_block(client: ImageryClient) -> None:
    (stage_names,) = names(client.image_cutout(BOUNDS))
    assert stage_names == [f"read+write image z{z} y{y} x{x}" for z in range(2) for y in range(2) for x in range(2)]


def test_resampled_layers_are_resized(client: ImageryClient) -> None:
    assert first(client.segmentation_cutout(BOUNDS)) == "read+resize+write segmentation z0 y0 x0"
    coarse = client.image_cutout([[0, 0, 0], (32, 32, 32)], resolution=(16, 16, 40))
    assert first(coarse) == "read+resize+write image z0 y0 x0"


def test_dynamic_segmentations_are_remapped(client: ImageryClient) -> None:
    resampled = remapped(client.segmentation_cutout(BOUNDS))
    assert first(resampled) == "read+remap+resize+write segmentation z0 y0 x0"
    stored = remapped(client.segmentation_cutout([[0, 0, 0], (32, 32, 32)], resolution=(16, 16, 40)))
    assert first(stored) == "read+remap+write segmentation z0 y0 x0"


def test_tasks_of_other_arrays_are_named_after_the_array(client: ImageryClient) -> None:
    assert first(client.segmentation_cutout(BOUNDS).rechunk(CHUNKS) + 1) == "read+write image z0 y0 x0"
    assert first(np.zeros(SHAPE, np.uint8)) == "read+write image z0 y0 x0"
    named = xr.DataArray(np.zeros(SHAPE, np.uint8), dims=("x", "y", "z"), name="nuclei, a-b 2")
    assert first(named) == "read+write nuclei, a-b 2 z0 y0 x0"


def test_coarser_levels_are_downsampled(configure: Configure, client: ImageryClient) -> None:
    configure("export.small_fused_bytes", 2**14)
    above, *below = names(client.image_cutout(BOUNDS), levels=3)
    assert above[0] == "read+write image z0 y0 x0"
    assert below
    for stage_names in below:
        level = int(stage_names[0].split()[3])
        assert stage_names[0] == f"downsample image level {level} z0 y0 x0"
