"""Stores of the package ome-zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr.writer import write_image, write_labels
from own_reading import OwnReadings, ids, run

SHAPE = (37, 53, 71)  # z, y, x
NM = {"nanometer": 1.0, "micrometer": 1000.0}


def write(folder: Path, readings: OwnReadings) -> None:
    """Write images with labels, of both formats."""
    image = np.random.default_rng(1).integers(0, 255, SHAPE, np.uint8)
    cells = ids(SHAPE, np.uint64)
    for fmt in (FormatV04(), FormatV05()):
        for axes, unit in (("zyx", "micrometer"), ("czyx", "nanometer"), ("tczyx", "nanometer")):
            path = folder / f"{axes}-{fmt.version}.zarr"
            group = zarr.open_group(str(path), mode="w", zarr_format=fmt.zarr_format)
            size = {"z": 28.0 / NM[unit], "y": 11.24 / NM[unit], "x": 11.24 / NM[unit]}
            told: dict[str, Any] = {
                "fmt": fmt, "axes": axes, "scale": size | dict.fromkeys(set(axes) - set("zyx"), 1.0),
                "axes_units": dict.fromkeys("zyx", unit), "scale_factors": [2, 4],
            }  # fmt: skip
            write_image(_with(image, axes), group, **told, storage_options={"chunks": _chunks(axes)})
            write_labels(_with(cells, axes, 1), group, name="cells", **told)
            write_labels(_with(cells.astype(np.uint16), axes, 1), group, name="small", **told)
            _keep(readings, path)


def _with(voxels: Any, axes: str, channels: int = 2) -> Any:
    """Return voxels with axes for channels and times."""
    if "c" in axes:
        voxels = np.stack([voxels, voxels // 2][:channels])
    return voxels[np.newaxis] if "t" in axes else voxels


def _chunks(axes: str) -> tuple[int, ...]:
    return tuple({"t": 1, "c": 1, "z": 16, "y": 24, "x": 20}[axis] for axis in axes)


def _keep(readings: OwnReadings, path: Path) -> None:
    """Keep what ome-zarr's reader finds: the image and its labels, where voxel 0 is at the origin."""
    for node in Reader(parse_url(str(path)))():
        if not node.data:  # the list of labels
            continue
        axes, at = node.metadata["axes"], Path(node.zarr.path)
        names = "".join(axis["name"] for axis in axes)
        for mip, (voxels, transforms) in enumerate(
            zip(node.data, node.metadata["coordinateTransformations"], strict=True)
        ):
            scale = {axis["name"]: size for axis, size in zip(axes, transforms[0]["scale"], strict=True)}
            unit = {axis["name"]: NM.get(axis.get("unit"), 1.0) for axis in axes}
            nm = [scale[axis] * unit[axis] for axis in "xyz"]
            voxels = voxels[0].compute() if "t" in names else voxels.compute()
            kind = "segmentation" if at.parent.name == "labels" else "image"
            name = f"{path.name} {at.name} {mip}"
            readings.keep(name, at, voxels, names.removeprefix("t"), mip=mip, resolution_nm=nm, kind=kind)


def read(store: Path, readings: OwnReadings) -> None:
    """Read an image and its labels."""
    _keep(readings, store)


if __name__ == "__main__":
    run(write, read)
