"""Stores pass the strict schemas of OME-Zarr 0.4 and 0.5, which include what the specification recommends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaozarrs
import zarr
from ngff_zarr import validate
from support.volumes import write_volume

from imagery_dask import ImageryClient, to_zarr

SHAPE = (24, 20, 12)
FIRST_ID = 864691135000000001
BOUNDS = [[0, 0, 0], list(SHAPE)]
NM = {"resolution_nm": (8, 8, 40)}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> ImageryClient:
    folder = tmp_path_factory.mktemp("schemas")
    random = np.random.default_rng(1)
    image = random.integers(0, 256, SHAPE, dtype=np.uint8)
    ids = random.integers(FIRST_ID, FIRST_ID + 9, SHAPE, dtype=np.uint64)
    return ImageryClient(
        image_source=write_volume(folder / "em", image, mips=2),
        segmentation_source=write_volume(folder / "ids", ids, layer_type="segmentation", mips=2),
    )


#: Data, options, and the type of the pyramid of each group.
DATA: dict[str, tuple[Callable[[ImageryClient], Any], dict[str, Any], dict[str, str]]] = {
    "dataset": (
        lambda client: client.dataset(BOUNDS), {"levels": 2}, {"": "mean", "labels/segmentation": "mode"},
    ),
    "image of a dataset": (lambda client: client.dataset(BOUNDS)[["image"]], {}, {"": "mean"}),
    "segmentation of a dataset": (lambda client: client.dataset(BOUNDS)[["segmentation"]], {}, {"": "mode"}),
    "image": (lambda client: client.image_volume(), {"levels": "source"}, {"": "source"}),
    "segmentation": (lambda client: client.segmentation_volume(), {"levels": "source"}, {"": "source"}),
    "ids as int64": (lambda client: client.segmentation_cutout(BOUNDS), {}, {"": "mode"}),
    "mask": (lambda client: client.segmentation_cutout(BOUNDS) == FIRST_ID, NM | {"levels": 2}, {"": "mode"}),
    "mask of an object": (lambda client: client.split_segmentation_cutout(BOUNDS)[FIRST_ID], {}, {"": "mode"}),
    "mask in a dataset": (
        lambda client: client.dataset(BOUNDS).assign(segmentation=client.dataset(BOUNDS).segmentation.astype("uint8")),
        {}, {"": "mean", "labels/segmentation": "mode"},
    ),
    "no place": (lambda client: np.arange(240, dtype=np.float32).reshape(4, 6, 10), {}, {"": "mean"}),
    "channels": (lambda client: np.arange(720, dtype=np.uint16).reshape(4, 6, 10, 3), NM, {"": "mean"}),
    "masks of channels": (lambda client: np.ones((4, 6, 10, 2), bool), NM, {"": "mode"}),
}  # fmt: skip


def attributes_of(folder: Path, version: str) -> Any:
    if version == "0.4":
        return json.loads((folder / ".zattrs").read_text())
    return json.loads((folder / "zarr.json").read_text())["attributes"]


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("name", DATA)
def test_strict_schemas(client: ImageryClient, tmp_path: Path, name: str, version: str) -> None:
    data, options, groups = DATA[name]
    out = tmp_path / "out.zarr"
    assert to_zarr(data(client), out, ome_version=version, progress=False, **options).ok  # type: ignore[arg-type]
    yaozarrs.validate_zarr_store(out)
    for group, pyramid in groups.items():
        attributes = attributes_of(out / group, version)
        content = attributes if version == "0.4" else attributes["ome"]
        validate(attributes, version=version, model="image", strict=True)
        (multiscale,) = content["multiscales"]
        assert multiscale["type"] == pyramid
        assert set(multiscale["metadata"]) == {"description", "method", "version"}
        array = zarr.open_array(out, path=f"{group}/0".lstrip("/"), mode="r")
        assert ("image-label" in content) == (pyramid != "mean" and array.ndim == 3 and name != "image")
        if "image-label" in content:
            validate(attributes, version=version, model="label", strict=True)
            assert array.dtype.kind in "iu"
            colors = content["image-label"]["colors"]
            assert colors[0] == {"label-value": 0, "rgba": [0, 0, 0, 0]}
            # napari draws listed integers alone: all of a mask, none of ids.
            integers = [color["label-value"] for color in colors if isinstance(color["label-value"], int)]
            assert integers == ([0, 1] if name.startswith("mask") and group == "" else [])


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("levels", [1, 3])
def test_masks_are_written_as_integers(tmp_path: Path, version: str, levels: int) -> None:
    voxels = np.random.default_rng(3).random((40, 30, 20)) > 0.7
    out = tmp_path / "out.zarr"
    data = xr.DataArray(voxels, dims=("x", "y", "z"), name="mask")
    options: dict[str, Any] = {"chunks": (8, 8, 8), "levels": levels, "ome_version": version, "block_mib": 0.002}
    assert to_zarr(data, out, progress=False, **options).ok
    stored = np.asarray(zarr.open_array(out, path="0", mode="r")).T
    np.testing.assert_array_equal(stored, voxels.astype(np.uint8), strict=True)
    if levels > 1:
        coarse = np.asarray(zarr.open_array(out, path="2", mode="r"))
        assert coarse.dtype == np.uint8
        assert set(np.unique(coarse)) == {0, 1}
