"""One image and one segmentation on disk, opened by the released imageryclient and by this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageryclient
import numpy as np
from numpy.typing import NDArray
from support.volumes import Xyz, coordinate_volume, downsample, random_labels, write_volume

import imagery_dask

#: Shape of the image in voxels. Its mips are 8, 16 and 32 nm; those of the segmentation are 16 and 32 nm.
SHAPE = (96, 80, 24)
IMAGE_NM = (8.0, 8.0, 40.0)
LABELS_NM = (16.0, 16.0, 40.0)


@dataclass(frozen=True)
class World:
    """The same two layers in both packages.

    Attributes
    ----------
    start, stop
        Box of the image at mip 0, in voxels; the segmentation's box is half as long along x and y.
    image, labels
        Voxels of mip 0.
    """

    start: Xyz
    stop: Xyz
    image: NDArray[np.uint8]
    labels: NDArray[np.uint64]
    sources: dict[str, str]
    released: imageryclient.ImageryClient
    ours: imagery_dask.ImageryClient

    @property
    def ids(self) -> list[int]:
        """All ids except 0; they exceed 2**53."""
        return [int(value) for value in np.unique(self.labels) if value]

    def both(self, **arguments: Any) -> tuple[imageryclient.ImageryClient, imagery_dask.ImageryClient]:
        """Make both clients with additional constructor arguments."""
        arguments = {**self.sources, **arguments}
        return imageryclient.ImageryClient(**arguments), imagery_dask.ImageryClient(**arguments, outside="fill")


def make_world(folder: Path, start: Xyz) -> World:
    """Write the layers into a folder, with the image at a voxel offset, and open them."""
    image = coordinate_volume(SHAPE, start, np.uint8)
    labels = downsample(random_labels(SHAPE, seed=7, n=12, block=7), 1)
    half = (start[0] // 2, start[1] // 2, start[2])
    sources = {
        "image_source": write_volume(folder / "image", image, resolution=IMAGE_NM, voxel_offset=start, mips=3),
        "segmentation_source": write_volume(
            folder / "segmentation",
            labels,
            resolution=LABELS_NM,
            voxel_offset=half,
            mips=2,
            layer_type="segmentation",
            encoding="compressed_segmentation",
        ),
    }
    x, y, z = (a + n for a, n in zip(start, SHAPE, strict=True))
    released, ours = imageryclient.ImageryClient(**sources), imagery_dask.ImageryClient(**sources, outside="fill")
    return World(start, (x, y, z), image, labels, sources, released, ours)
