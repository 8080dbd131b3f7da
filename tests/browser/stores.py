"""Pyramids in every format that an export may have, made with plain zarr and CloudVolume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tinybrain
import zarr
from numpy.typing import NDArray
from ome_zarr_models import v04, v05
from support.volumes import write_volume
from zarr.codecs import BloscCodec

#: Voxel size x, y, z; slices are so thick that pyramids do not downsample z.
RESOLUTION_NM = (8, 8, 40)
FACTOR = (2, 2, 1)
CHUNKS = (32, 32, 16)


def pyramid_of(data: NDArray[Any], levels: int) -> list[NDArray[Any]]:
    """Return the levels that tinybrain makes of a whole array, with the last voxel of odd axes repeated."""
    downsample = tinybrain.downsample_segmentation if data.dtype == np.uint64 else tinybrain.downsample_with_averaging
    pyramid = [data]
    for _ in range(levels - 1):
        odd = [(0, -size % step) for size, step in zip(pyramid[-1].shape, FACTOR, strict=True)]
        pyramid.append(downsample(np.asfortranarray(np.pad(pyramid[-1], odd, mode="edge")), FACTOR, num_mips=1)[0])
    return pyramid


def write_precomputed(
    folder: Path, data: NDArray[Any], voxel_offset: Sequence[int], levels: int, **options: Any
) -> None:
    """Write a pyramid as a precomputed volume; the offset must be a multiple of the coarsest level's voxels."""
    if any(start % step ** (levels - 1) for start, step in zip(voxel_offset, FACTOR, strict=True)):
        raise ValueError(f"CloudVolume would round the offset {tuple(voxel_offset)} down and move the data")
    if data.dtype == np.uint64:
        options |= {"layer_type": "segmentation", "encoding": "compressed_segmentation"}
    write_volume(
        folder, data, voxel_offset=voxel_offset, resolution=RESOLUTION_NM, chunk_size=CHUNKS, factor=FACTOR,
        mips=levels, levels=pyramid_of(data, levels)[1:], **options,
    )  # fmt: skip


def write_ome_zarr(
    folder: Path,
    data: NDArray[Any],
    voxel_offset: Sequence[float],
    levels: int,
    *,
    version: str = "0.5",
    shards: Sequence[int] | None = None,
    centred: bool = True,
) -> None:
    """Write a pyramid as OME-Zarr.

    Parameters
    ----------
    version
        ``"0.5"`` is zarr 3, ``"0.4"`` zarr 2.
    shards
        Shape x, y, z of the shards of zarr 3, in voxels.
    centred
        ``False`` gives every level the translation of the first, as if translations were those of voxel edges.
    """
    placed = []
    for number in range(levels):
        scale = [float(nm * step**number) for nm, step in zip(RESOLUTION_NM, FACTOR, strict=True)]
        sides = scale if centred else RESOLUTION_NM
        centre = [first * nm + side / 2 for first, nm, side in zip(voxel_offset, RESOLUTION_NM, sides, strict=True)]
        placed.append((scale, centre))
    zarr_format: Any = {"0.4": 2, "0.5": 3}[version]
    group = zarr.create_group(folder, zarr_format=zarr_format, attributes=_attributes(version, placed))
    for number, level in enumerate(pyramid_of(data, levels)):
        array = group.create_array(
            str(number), shape=level.shape[::-1], dtype=level.dtype, fill_value=0, chunks=CHUNKS[::-1],
            **_storage(version, shards),
        )  # fmt: skip
        array[...] = level.T


def _storage(version: str, shards: Sequence[int] | None) -> dict[str, Any]:
    if version == "0.4":
        return {"chunk_key_encoding": {"name": "v2", "separator": "/"}}  # zarr 2 has neither shards nor dimension names
    return {
        "shards": None if shards is None else tuple(reversed(shards)),
        "compressors": BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
        "dimension_names": ("z", "y", "x"),
    }


def _attributes(version: str, placed: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": list(reversed(scale))},
                {"type": "translation", "translation": list(reversed(centre))},
            ],
        }
        for number, (scale, centre) in enumerate(placed)
    ]
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    multiscale = {"axes": axes, "datasets": datasets, "name": "pyramid"}
    if version == "0.4":
        attributes: dict[str, Any] = {"multiscales": [{**multiscale, "version": "0.4"}]}
        v04.image.ImageAttrs.model_validate(attributes)
        return attributes
    attributes = {"version": "0.5", "multiscales": [multiscale]}
    v05.image.ImageAttrs.model_validate(attributes)
    return {"ome": attributes}
