"""OME-Zarr metadata (https://ngff.openmicroscopy.org/0.5/ and /0.4/), made and validated by ome-zarr-models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from ome_zarr_models.common.omero import Omero
from ome_zarr_models.v04.axes import Axis as Axis04
from ome_zarr_models.v04.image import ImageAttrs as Image04
from ome_zarr_models.v04.image_label import ImageLabelAttrs as ImageLabel04
from ome_zarr_models.v04.labels import LabelsAttrs as Labels04
from ome_zarr_models.v04.multiscales import Dataset as Dataset04
from ome_zarr_models.v04.multiscales import Multiscale as Multiscale04
from ome_zarr_models.v05.axes import Axis as Axis05
from ome_zarr_models.v05.image import ImageAttrs as Image05
from ome_zarr_models.v05.image_label import ImageLabelAttrs as ImageLabel05
from ome_zarr_models.v05.labels import LabelsAttrs as Labels05
from ome_zarr_models.v05.multiscales import Dataset as Dataset05
from ome_zarr_models.v05.multiscales import Multiscale as Multiscale05

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import AccessRefusedError
from imagery_dask.export.core.inputs import Volume
from imagery_dask.export.core.provenance import PROGRAM
from imagery_dask.export.zarr.zarr_options import OmeVersion
from imagery_dask.geometry.grid import region_between
from imagery_dask.geometry.pyramid import Level
from imagery_dask.geometry.vec import Vec3

__all__ = ["Pyramid", "display", "image_attributes", "label_attributes", "labels_attributes", "omero"]

RGB = ("FF0000", "00FF00", "0000FF")
WHITE = "FFFFFF"
# Red, green, blue and opacity of no object, and of the object of a mask.
COLORS = ([0, 0, 0, 0], [255, 255, 255, 255])
Pyramid = Literal["mean", "mode", "source"]
PYRAMIDS: dict[Pyramid, str] = {
    "mean": "Each voxel is the mean of the voxels that it covers in the level before.",
    "mode": "Each voxel is the most frequent id of the voxels that it covers in the level before.",
    "source": "Each level is a copy of a mip of the source.",
}
# Shape x, y, z of the sample in the middle of a volume whose range is displayed, and the percentiles of that range.
SAMPLE = (256, 256, 1)
PERCENTILES = (0.1, 99.9)


def image_attributes(
    version: OmeVersion,
    name: str,
    axes: str,
    levels: Sequence[Level],
    shown: JsonObject | None,
    pyramid: Pyramid,
) -> JsonObject:
    """Return the attributes of an image group with levels ``0``, ``1``, ...

    Parameters
    ----------
    version : {"0.5", "0.4"}
        Version of the specification.
    name : str
        Name of the image.
    axes : str
        Axes of the arrays, a letter each: zyx or xyz, after t or c.
    levels : sequence of Level
        Their resolutions (None for an array that has no place in the world: axes without unit) and translations, the
        centre of the first voxel.
    shown : dict or None
        What `omero` says of the display.
    pyramid : {"mean", "mode", "source"}
        How coarser levels are made.

    Returns
    -------
    dict
        Attributes of the group.
    """
    described = _multiscale(version, name, axes, levels, pyramid)
    if version == "0.4":
        return _dump(Image04(multiscales=[described])) | ({} if shown is None else {"omero": shown})
    content = _dump(Image05(version="0.5", multiscales=[described]))
    return {"ome": content | ({} if shown is None else {"omero": shown})}


def label_attributes(
    version: OmeVersion,
    name: str,
    axes: str,
    levels: Sequence[Level],
    of_image: bool,
    is_mask: bool,
    pyramid: Pyramid,
) -> JsonObject:
    """Return the attributes of a labels group; `of_image` refers to an image two folders above."""
    label: JsonObject = {"source": {"image": "../../"}} if of_image else {}
    label["colors"] = [{"label-value": value, "rgba": color} for value, color in enumerate(COLORS[: 1 + is_mask])]
    content: JsonObject = {"multiscales": [_multiscale(version, name, axes, levels, pyramid)], "image-label": label}
    if version == "0.4":
        content["image-label"] = {"version": "0.4"} | label
        attributes = content = _dump(ImageLabel04.model_validate(content))
    else:
        content = _dump(ImageLabel05.model_validate({"version": "0.5"} | content))
        attributes = {"ome": content}
    if not is_mask:
        # A number for the schema, but not an integer: ome-zarr ignores it. napari, which takes the colors from there,
        # would draw nothing but the listed values, and the ids are not known yet.
        content["image-label"]["colors"][0]["label-value"] = 0.0
    return attributes


def labels_attributes(version: OmeVersion, names: Sequence[str]) -> JsonObject:
    """Return the attributes of the group that lists an image's labels."""
    if version == "0.4":
        return _dump(Labels04(labels=list(names)))
    return {"ome": _dump(Labels05(version="0.5", labels=list(names)))}


def display(volume: Volume) -> JsonObject:
    """Return the display range of a volume: 0 to 255 for 8 bit, else the range of a sample in its middle."""
    channels = int(volume.array.shape[3]) if volume.channels else 1
    names = [volume.name] if channels == 1 else [str(index) for index in range(channels)]
    dtype = np.dtype(volume.array.dtype)
    if dtype == np.uint8:
        return omero(names, (0, 255), (0, 255))
    sample = _sample(volume)
    low, high = (0.0, 0.0) if sample.size == 0 else (float(sample.min()), float(sample.max()))
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        limits = (float(info.min), float(info.max))
    elif low < high:
        limits = (low, high)
    else:  # viewers divide by the width of a window
        limits = (low, low + max(1.0, abs(low)))
    if low == high:
        return omero(names, limits, limits)
    first, last = (float(value) for value in np.percentile(sample, PERCENTILES))
    # Percentiles are equal if few voxels differ from the others.
    return omero(names, limits, (first, last) if first < last else (low, high))


def omero(names: Sequence[str], limits: tuple[float, float], window: tuple[float, float]) -> JsonObject:
    """Return the display settings of an image's channels.

    Parameters
    ----------
    names : sequence of str
        Names of the channels.
    limits : tuple of 2 float
        Smallest and largest value of the data type.
    window : tuple of 2 float
        Values that are shown black and white.
    """
    colors = RGB if len(names) == len(RGB) else (WHITE,) * len(names)
    values = {"min": limits[0], "max": limits[1], "start": window[0], "end": window[1]}
    channels = [
        {"label": name, "color": color, "window": values, "active": True}
        for name, color in zip(names, colors, strict=True)
    ]
    content = {"channels": channels}
    Omero.model_validate(content)
    return content


def _multiscale(version: OmeVersion, name: str, axes: str, levels: Sequence[Level], pyramid: Pyramid) -> Any:
    old: JsonObject = {"version": "0.4"} if version == "0.4" else {}
    axis: Any = Axis04 if old else Axis05
    dataset: Any = Dataset04 if old else Dataset05
    multiscale: Any = Multiscale04 if old else Multiscale05
    unit = None if levels[0].resolution_nm is None else "nanometer"
    ahead, space = axes[:-3], axes[-3:]
    described = [axis(name=letter, type={"t": "time", "c": "channel"}[letter]) for letter in ahead]
    described += [axis(name=letter, type="space", unit=unit) for letter in space]
    sizes = _sizes(levels)
    datasets = tuple(
        dataset.build(
            path=str(index),
            scale=[*(1.0 for _ in ahead), *(size["xyz".index(letter)] for letter in space)],
            translation=[*(0.0 for _ in ahead), *(level.translation_nm["xyz".index(letter)] for letter in space)],
        )
        for index, (level, size) in enumerate(zip(levels, sizes, strict=True))
    )
    made = {"description": PYRAMIDS[pyramid], "method": "imagery_dask.to_zarr", "version": PROGRAM}
    return multiscale(axes=described, datasets=datasets, name=name, type=pyramid, metadata=made, **old)


def _sizes(levels: Sequence[Level]) -> list[Vec3[float]]:
    """Return the voxel sizes of levels, in voxels of the first level if the resolution is unknown."""
    sizes, last = [], Vec3(1.0, 1.0, 1.0)
    for level in levels:
        last = last * level.step if level.resolution_nm is None else level.resolution_nm
        sizes.append(last)
    return sizes


def _dump(model: Any) -> JsonObject:
    content: JsonObject = model.model_dump(mode="json", exclude_none=True, by_alias=True)
    return content


def _sample(volume: Volume) -> Any:
    """Return finite values of part of the middle slice; none if it cannot be read, which its block will report."""
    start = ((volume.shape - SAMPLE) // 2).maximum(0)
    try:
        voxels = volume.reader(region_between(start, start + volume.shape.minimum(SAMPLE)))()
    except AccessRefusedError:
        raise
    except Exception:
        return np.empty(0, volume.array.dtype)
    return voxels[np.isfinite(voxels)]
