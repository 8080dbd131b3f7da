"""Datasets of webknossos, also as older versions describe them, and on servers that refuse what does not exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.http_server import FileServer

from imagery_dask.errors import InvalidInfoError, SourceNotFoundError
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources import layers_of, open_volume

SHAPE, TOP_LEFT = (21, 18, 11), (37, 20, 9)  # x, y, z


def dataset(folder: Path, **options: Any) -> Any:
    """Write a dataset with a layer of two mags, whose arrays are larger than its bounding box; return its voxels."""
    random = np.random.default_rng(0)
    properties: dict[str, Any] = {"scale": options.pop("scale", {"factor": [4.0, 4.0, 40.0], "unit": "nanometer"})}
    layer: dict[str, Any] = {
        "name": "cells", "category": "segmentation", "dataFormat": "zarr3", "mags": [],
        "boundingBox": {"topLeft": TOP_LEFT, "width": SHAPE[0], "height": SHAPE[1], "depth": SHAPE[2]},
    }  # fmt: skip
    properties["dataLayers"] = [layer | options]
    zarr.open_group(folder, mode="w")
    zarr.open_group(folder / "cells", mode="w")
    levels = []
    for mag in ([2, 2, 1], [1, 1, 1]):
        voxels = np.zeros((1, *(-(-64 // by) for by in mag)), np.uint16)
        box = [slice(at // by, -(-(at + n) // by)) for at, n, by in zip(TOP_LEFT, SHAPE, mag, strict=True)]
        voxels[(0, *box)] = random.integers(1, 1000, voxels[(0, *box)].shape)
        name = "1" if mag[0] == 1 else "2-2-1"
        array = zarr.create_array(
            folder / "cells" / name, shape=voxels.shape, chunks=(1, 8, 8, 8), dtype="u2", dimension_names=list("cxyz")
        )
        array[...] = voxels
        layer["mags"].append({"mag": mag, "path": f"./cells/{name}", "axisOrder": {"c": 0, "x": 1, "y": 2, "z": 3}})
        levels.insert(0, voxels[0])
    (folder / "datasource-properties.json").write_text(json.dumps(properties))
    return levels


def test_bounds_kind_and_size_are_those_of_the_properties(tmp_path: Path) -> None:
    levels = dataset(tmp_path / "ds")
    volume = open_volume(str(tmp_path / "ds" / "cells"))
    assert volume.layer.kind == "segmentation"
    assert [mip.grid.resolution_nm for mip in volume.layer.mips] == [(4, 4, 40), (8, 8, 40)]
    # From the chunk with the first voxel on.
    assert [mip.grid.start for mip in volume.layer.mips] == [(32, 16, 8), (16, 8, 8)]
    assert [mip.grid.stop for mip in volume.layer.mips] == [(58, 38, 20), (29, 19, 20)]
    for mip, voxels in enumerate(levels):
        grid = volume.layer.mips[mip].grid
        own = tuple(slice(low, high) for low, high in zip(grid.start, grid.stop, strict=True))
        np.testing.assert_array_equal(volume.read(mip, grid, "error")[0][..., 0], voxels[own])
        alone = open_volume(str(tmp_path / "ds" / "cells" / ("1", "2-2-1")[mip])).layer
        assert (alone.mips[0].grid, alone.kind) == (grid, "segmentation")


@pytest.mark.parametrize(
    "options", [{"scale": [4, 4, 40]}, {"scale": {"factor": [4e-3, 4e-3, 4e-2], "unit": "micrometer"}}]
)
def test_older_and_other_ways_to_say_it(options: dict[str, Any], tmp_path: Path) -> None:
    dataset(tmp_path / "ds", **options)
    file = tmp_path / "ds" / "datasource-properties.json"
    properties = json.loads(file.read_text())
    properties["dataLayers"][0]["mags"] = [{"mag": 1}, {"mag": [2, 2, 1]}]  # without path and axes
    file.write_text(json.dumps(properties))
    mips = open_volume(str(tmp_path / "ds" / "cells")).layer.mips
    assert [(mip.key, mip.grid.resolution_nm) for mip in mips] == [("1", (4, 4, 40)), ("2-2-1", (8, 8, 40))]


def test_what_is_given_with_the_path_comes_first(tmp_path: Path) -> None:
    dataset(tmp_path / "ds")
    mip = open_volume(f"{tmp_path}/ds/cells/1#axes=cxyz").layer.mips[0]
    assert (mip.grid.start, mip.grid.shape, mip.grid.resolution_nm) == ((0, 0, 0), (64, 64, 64), (1, 1, 1))


def test_a_box_that_is_empty_or_elsewhere_leaves_the_array_whole(tmp_path: Path) -> None:
    dataset(tmp_path / "ds", boundingBox={"topLeft": [0, 0, 0], "width": 0, "height": 0, "depth": 0})
    grid = open_volume(f"{tmp_path}/ds/cells").layer.mips[0].grid
    assert (grid.start, grid.shape) == ((0, 0, 0), Vec3(64, 64, 64))


def test_properties_that_are_not_understood_are_named(tmp_path: Path) -> None:
    dataset(tmp_path / "ds", boundingBox={})
    with pytest.raises(InvalidInfoError, match=r"datasource-properties.json of its dataset has no usable 'topLeft'"):
        open_volume(f"{tmp_path}/ds/cells")


def test_a_dataset_says_its_layers(tmp_path: Path) -> None:
    dataset(tmp_path / "ds")
    path = f"{tmp_path}/ds"
    assert layers_of(path) == {f"zarr3://file://{path}/cells": True}
    with pytest.raises(InvalidInfoError, match=r"It has cells: give cells in it"):
        open_volume(path)


def test_a_server_that_refuses_what_does_not_exist(
    http_server_factory: Callable[..., FileServer], tmp_path: Path
) -> None:
    dataset(tmp_path / "ds")
    server = http_server_factory(tmp_path)
    server.absent = 403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    grids = [mip.grid for mip in open_volume(f"zarr://{server.url}/ds/cells").layer.mips]
    assert grids == [mip.grid for mip in open_volume(f"{tmp_path}/ds/cells").layer.mips]


@pytest.mark.parametrize("name", ["", "/em", "/em/1"])
def test_wkw_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "ds" / "em" / "1").mkdir(parents=True)
    (tmp_path / "ds" / "em" / "1" / "header.wkw").write_bytes(b"WKW\x01")
    layer = {"name": "em", "dataFormat": "wkw", "mags": [{"mag": [1, 1, 1]}]}
    (tmp_path / "ds" / "datasource-properties.json").write_text(json.dumps({"dataLayers": [layer]}))
    with pytest.raises(SourceNotFoundError, match="stored it as WKW, which is no zarr"):
        open_volume(f"{tmp_path}/ds{name}")
