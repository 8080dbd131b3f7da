"""Stores of the package webknossos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cluster_tools
import numpy as np
from own_reading import OwnReadings, ids, run
from webknossos import Dataset, LengthUnit, Mag, VoxelSize

OFFSET, SHAPE = (70, 45, 33), (71, 53, 37)


def write(folder: Path, readings: OwnReadings) -> None:
    """Write datasets of each format."""
    for data_format in ("zarr3", "zarr", "wkw"):
        size = VoxelSize((11.24, 11.24, 28.0), LengthUnit.NANOMETER)
        if data_format == "zarr":
            size = VoxelSize((0.01124, 0.01124, 0.028), LengthUnit.MICROMETER)
        dataset = Dataset(folder / data_format, voxel_size_with_unit=size)
        color = np.random.default_rng(1).integers(1, 255, SHAPE, np.uint8)
        _layer(dataset, "color", "color", data_format, color[np.newaxis])
        _layer(dataset, "rgb", "color", data_format, np.stack([color, color + 1, color // 2]))
        _layer(dataset, "cells", "segmentation", data_format, ids(SHAPE, np.uint64)[np.newaxis])
        _layer(dataset, "organelles", "segmentation", data_format, ids(SHAPE, np.uint16)[np.newaxis])
        if data_format != "wkw":
            _keep(readings, folder / data_format)
    dataset = Dataset(folder / "pair", voxel_size=(4, 4, 40))
    _layer(dataset, "em", "color", "zarr3", color[np.newaxis])
    _layer(dataset, "neurons", "segmentation", "zarr3", ids(SHAPE, np.uint64)[np.newaxis])
    _keep(readings, folder / "pair")


def _layer(dataset: Dataset, name: str, category: Any, data_format: str, voxels: Any) -> None:
    largest = {"largest_segment_id": int(voxels.max())} if category == "segmentation" else {}
    layer = dataset.add_layer(
        name, category, data_format=data_format, dtype=voxels.dtype, num_channels=len(voxels), **largest
    )
    # Shards of the default shape, 1024 x 1024 x 1024, take gigabytes when they are written.
    shapes = {"chunk_shape": 16, "shard_shape": 16 if data_format == "zarr" else 64}
    layer.add_mag(1, **shapes).write(voxels, absolute_offset=OFFSET, allow_resize=True, allow_unaligned=True)
    with cluster_tools.get_executor("sequential") as executor:
        for finer, coarser in (("1", "2-2-1"), ("2-2-1", "4-4-2")):
            layer.downsample_mag(Mag(finer), Mag(coarser), executor=executor, **shapes)


def _keep(readings: OwnReadings, path: Path) -> None:
    dataset = Dataset.open(path)
    nm = dataset.voxel_size_with_unit.to_nanometer()
    for name, layer in dataset.layers.items():
        kind = "segmentation" if layer.category == "segmentation" else "image"
        for mip, (mag, view) in enumerate(sorted(layer.mags.items())):
            box = view.bounding_box.in_mag(mag)
            size = [own * by for own, by in zip(nm, mag.to_list(), strict=True)]
            told = {"resolution_nm": size, "start": box.topleft.to_list(), "kind": kind}
            voxels = view.read()
            readings.keep(f"{name} {mag}", path / name, voxels, "cxyz", mip=mip, **told)
            readings.keep(f"mag {name} {mag}", path / name / str(mag), voxels, "cxyz", **told)


def read(store: Path, readings: OwnReadings) -> None:
    """Convert an image of OME-Zarr to a dataset."""
    with cluster_tools.get_executor("sequential") as executor:
        dataset = Dataset.from_images(store, readings.folder / store.name, (1, 1, 1), executor=executor)
    for name, layer in dataset.layers.items():
        view = layer.get_finest_mag()
        readings.keep(name, store, view.read(), "cxyz", start=view.bounding_box.topleft.to_list())


if __name__ == "__main__":
    run(write, read)
