"""Levels of stores as other libraries read them: voxels and their positions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from cloudvolume import CloudVolume
from numpy.typing import NDArray

__all__ = ["READERS", "ReadLevel", "described_levels"]


@dataclass(frozen=True)
class ReadLevel:
    """A level: its voxels x, y, z(, c), and the size and centre of its first voxel (x, y, z in nm)."""

    voxels: NDArray[Any]
    scale: NDArray[np.float64]
    translation: NDArray[np.float64]

    def centre(self, voxel: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the centre of a voxel in nm."""
        return self.translation + np.array(voxel) * self.scale


Reader = Callable[[Path, str, str], list[ReadLevel]]


def described_levels(attributes: Any) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Return the path, scale and translation (x, y, z in nm) of each level in OME attributes."""
    (multiscale,) = attributes.get("ome", attributes)["multiscales"]
    names = [axis["name"] for axis in multiscale["axes"]]
    assert names[-3:] == ["z", "y", "x"]
    assert [axis.get("unit") for axis in multiscale["axes"]][-3:] == ["nanometer"] * 3
    levels = []
    for dataset in multiscale["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        assert (scale["type"], translation["type"]) == ("scale", "translation")
        levels.append((dataset["path"], _xyz(scale["scale"]), _xyz(translation["translation"])))
    return levels


def by_zarr(path: Path, group: str, version: str) -> list[ReadLevel]:
    """Read with plain zarr."""
    opened = zarr.open_group(path, path=group, mode="r")
    levels = []
    for name, scale, translation in described_levels(opened.attrs.asdict()):
        array: Any = opened[name]
        levels.append(ReadLevel(array[...].T, scale, translation))
    return levels


def by_tensorstore(path: Path, group: str, version: str) -> list[ReadLevel]:
    """Read with tensorstore, whose zarr drivers do not interpret the OME attributes."""
    ts = pytest.importorskip("tensorstore", reason="needs tensorstore")
    driver, metadata = {"0.5": ("zarr3", "zarr.json"), "0.4": ("zarr", ".zattrs")}[version]
    store = {"driver": "file", "path": f"{path / group}/"}
    attributes = json.loads(ts.KvStore.open(store).result().read(metadata).result().value)
    levels = []
    for name, scale, translation in described_levels(attributes.get("attributes", attributes)):
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path / group / name)}}
        array = ts.open(spec, read=True).result()
        if version == "0.5":
            assert array.domain.labels[-3:] == ("z", "y", "x")
        levels.append(ReadLevel(array.read().result().T, scale, translation))
    return levels


def by_ome_zarr(path: Path, group: str, version: str) -> list[ReadLevel]:
    """Read with ome-zarr, the reference implementation of the format; it opens labels through the image."""
    reason = "needs ome-zarr, whose s3fs and the boto3 of cloud-files exclude each other: pip install --no-deps"
    pytest.importorskip("ome_zarr", reason=reason)
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    nodes = {str(node.zarr).rstrip("/").partition(f"{path.name}/")[2].partition(" ")[0]: node for node in
             Reader(parse_url(path, mode="r"))()}  # fmt: skip
    node = next(node for name, node in nodes.items() if group in name) if group else next(iter(nodes.values()))
    axes = [axis["name"] for axis in node.metadata["axes"]]
    assert axes[-3:] == ["z", "y", "x"]
    placed = node.metadata["coordinateTransformations"]
    return [
        ReadLevel(np.asarray(data).T, _xyz(scale["scale"]), _xyz(translation["translation"]))
        for data, (scale, translation) in zip(node.data, placed, strict=True)
    ]


def by_ngff_zarr(path: Path, group: str, version: str) -> list[ReadLevel]:
    """Read with ngff-zarr."""
    ngff_zarr = pytest.importorskip("ngff_zarr", reason="needs ngff-zarr")
    multiscales = ngff_zarr.from_ngff_zarr(str(path / group), version=version)
    levels = []
    for image in multiscales.images:
        assert tuple(image.dims)[-3:] == ("z", "y", "x")
        assert {image.axes_units[axis] for axis in "xyz"} == {"nanometer"}
        place = [np.array([float(values[axis]) for axis in "xyz"]) for values in (image.scale, image.translation)]
        levels.append(ReadLevel(np.asarray(image.data).T, *place))
    return levels


def by_xarray(path: Path, group: str, version: str) -> list[ReadLevel]:
    """Read with xarray, one level at a time, because levels have equal dimension names but different lengths."""
    attributes = zarr.open_group(path, path=group, mode="r").attrs.asdict()
    placed = described_levels(attributes)
    levels = []
    for name, scale, translation in placed:
        others = [other for other, *_ in placed if other != name]
        # By default xarray takes 0 for missing data in zarr v2, and makes floats of all voxels.
        options: dict[str, Any] = {"consolidated": False, "drop_variables": others, "mask_and_scale": False}
        with xr.open_zarr(path, group=group or None, **options) as data:
            assert data.attrs == attributes
            levels.append(ReadLevel(data[name].transpose("x", "y", "z", ...).values, scale, translation))
    return levels


def by_cloudvolume(path: Path, group: str, version: str) -> list[ReadLevel]:
    """Read with CloudVolume, which cannot read shards and needs an optional package for blosc."""
    scheme = {"0.5": "zarr3", "0.4": "zarr2"}[version]
    levels = []
    first = CloudVolume(f"{scheme}://file://{path / group}", progress=False)
    for mip in first.available_mips:
        volume = CloudVolume(f"{scheme}://file://{path / group}", mip=mip, progress=False)
        scale = np.array(volume.resolution, float)
        voxels = np.asarray(volume[:])
        centre = (np.array(volume.bounds.minpt, float) + 0.5) * scale
        levels.append(ReadLevel(voxels if voxels.shape[3] > 1 else voxels[..., 0], scale, centre))
    return levels


READERS: dict[str, Reader] = {
    "zarr": by_zarr, "tensorstore": by_tensorstore, "ome-zarr": by_ome_zarr, "ngff-zarr": by_ngff_zarr,
    "xarray": by_xarray,
}  # fmt: skip


def _xyz(values: Any) -> NDArray[np.float64]:
    return np.array(values[-3:][::-1], np.float64)
