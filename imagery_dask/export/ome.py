"""OME-Zarr 0.5 metadata (https://ngff.openmicroscopy.org/0.5/), made and validated by ome-zarr-models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.image_label import ImageLabelAttrs
from ome_zarr_models.v05.image_label_types import Label, Source
from ome_zarr_models.v05.labels import LabelsAttrs
from ome_zarr_models.v05.multiscales import Dataset, Multiscale

__all__ = ["image_attributes", "label_attributes", "labels_attributes"]

Triple = tuple[float, float, float]


def image_attributes(name: str, channels: bool, resolution_nm: Triple | None, translation_nm: Triple) -> dict[str, Any]:
    """Attributes of an image group with one level, ``0``.

    Parameters
    ----------
    name : str
        Name of the image.
    channels : bool
        Whether there is a leading channel axis.
    resolution_nm : tuple of 3 float or None
        Voxel size x, y, z; None for an array that has no place in the world (axes without unit, scale 1).
    translation_nm : tuple of 3 float
        Centre of the first voxel x, y, z.

    Returns
    -------
    dict
        ``{"ome": {...}}``; axes are (c,) z, y, x.
    """
    return _dump(ImageAttrs(version="0.5", multiscales=[_multiscale(name, channels, resolution_nm, translation_nm)]))


def label_attributes(name: str, resolution_nm: Triple | None, translation_nm: Triple, of_image: bool) -> dict[str, Any]:
    """Attributes of a group of labels, with the image that they label two folders above when there is one."""
    label = Label(source=Source(image="../../")) if of_image else Label()
    multiscale = _multiscale(name, False, resolution_nm, translation_nm)
    return _dump(ImageLabelAttrs.model_validate({"version": "0.5", "multiscales": [multiscale], "image-label": label}))


def labels_attributes(names: Sequence[str]) -> dict[str, Any]:
    """Attributes of the group that lists an image's labels."""
    return _dump(LabelsAttrs(version="0.5", labels=list(names)))


def _multiscale(name: str, channels: bool, resolution_nm: Triple | None, translation_nm: Triple) -> Multiscale:
    unit = None if resolution_nm is None else "nanometer"
    scale = list(reversed(resolution_nm or (1.0, 1.0, 1.0)))
    translation = list(reversed(translation_nm))
    axes = [Axis(name=axis, type="space", unit=unit) for axis in "zyx"]
    if channels:
        axes.insert(0, Axis(name="c", type="channel"))
        scale.insert(0, 1.0)
        translation.insert(0, 0.0)
    dataset = Dataset.build(path="0", scale=scale, translation=translation)
    return Multiscale(axes=axes, datasets=(dataset,), name=name)


def _dump(model: Any) -> dict[str, Any]:
    return {"ome": model.model_dump(mode="json", exclude_none=True, by_alias=True)}
