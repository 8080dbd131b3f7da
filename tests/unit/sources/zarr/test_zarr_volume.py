"""Chunks that a zarr array leaves out, and what their files would hold: of arrays anywhere, and of parts of arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.http_server import FileServer

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources import open_volume
from imagery_dask.sources.volumes.stored_volume import StoredVolume, UnstoredChunk

SHAPE, CHUNK, SHARD = (42, 35, 27), (8, 8, 8), (16, 16, 8)
# Of the array, beginning in the middle of a shard.
TOP_LEFT, SIZE = (9, 11, 8), (30, 20, 19)


def write_array(folder: Path, ahead: int, shards: bool) -> None:
    """Write an array of x, y, z, whose first shards leave out some chunks, and of which others do not exist."""
    voxels = np.zeros(SHAPE, np.uint64)
    voxels[:16:2, :8], voxels[16:32, 16:32, 8:16] = 2**60, 2**61
    zarr.create_array(
        folder, shape=(1,) * ahead + SHAPE, chunks=(1,) * ahead + CHUNK, dtype="u8", fill_value=0,
        shards=(1,) * ahead + SHARD if shards else None, dimension_names=[*"cxyz"][1 - ahead :],
    )[...] = voxels.reshape((1,) * ahead + SHAPE)  # fmt: skip


def whole(folder: Path, shards: bool) -> tuple[str, Vec3[int]]:
    """Return the path of an array with an offset, and the position of the first voxel of the array."""
    write_array(folder / "em", 0, shards)
    return "em#voxel_offset=-100,7,2053&resolution=8,8,40", Vec3(-100, 7, 2053)


def part(folder: Path, shards: bool) -> tuple[str, Vec3[int]]:
    """Return the path of a layer of webknossos that is a box of an array."""
    write_array(folder / "em" / "cells" / "1", 1, shards)
    layer: dict[str, Any] = {
        "name": "cells", "category": "segmentation", "dataFormat": "zarr3",
        "mags": [{"mag": [1, 1, 1], "path": "./cells/1", "axisOrder": {"c": 0, "x": 1, "y": 2, "z": 3}}],
        "boundingBox": {"topLeft": TOP_LEFT, "width": SIZE[0], "height": SIZE[1], "depth": SIZE[2]},
    }  # fmt: skip
    zarr.open_group(folder / "em", mode="a")
    zarr.open_group(folder / "em" / "cells", mode="a")
    scale = {"factor": [8.0, 8.0, 40.0], "unit": "nanometer"}
    (folder / "em" / "datasource-properties.json").write_text(json.dumps({"scale": scale, "dataLayers": [layer]}))
    return "em/cells", Vec3(0, 0, 0)


def unstored(volume: StoredVolume, box: VoxelGrid) -> list[UnstoredChunk]:
    found: list[UnstoredChunk] = []
    volume.read(0, box, "error", unstored=found.extend)
    return found


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("shards", [True, False])
@pytest.mark.parametrize("make", [whole, part])
def test_chunks_that_are_not_stored_say_what_their_absent_file_would_hold(
    tmp_path: Path, file_server: FileServer, make: Callable[[Path, bool], tuple[str, Vec3[int]]], shards: bool,
    is_remote: bool,
) -> None:  # fmt: skip
    path, first = make(tmp_path, shards)
    volume = open_volume(f"zarr3://{file_server.url if is_remote else tmp_path.as_uri()}/{path}")
    grid = volume.layer.mips[0].grid
    found = unstored(volume, grid)
    own = Vec3.of(SHARD if shards else CHUNK)
    for chunk in found:
        name = chunk.key.partition(", chunk ")[0].partition("/em/")[2]
        start = Vec3.of(int(at) for at in name.split("/")[-3:]) * own + first
        file = VoxelGrid.between(start, start + own, grid.resolution_nm).intersection(grid)
        assert chunk.absent == (chunk.box if (tmp_path / "em" / name).exists() else file)
        assert file.contains(chunk.box)
        assert [*map(str, unstored(volume, chunk.box))] == [str(chunk)]
    assert len({chunk.box for chunk in found}) == len(found)
    if shards:
        assert {chunk.absent == chunk.box for chunk in found} == {True, False}
