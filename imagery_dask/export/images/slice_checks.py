"""What callers ask of a slice export, to exact values; an error names the argument before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from imagery_dask.export.core.inputs import Volume, as_volumes
from imagery_dask.geometry.grid import XYZ
from imagery_dask.model.labels import label_rule
from imagery_dask.render.pages import Window
from imagery_dask.render.save import mask_color
from imagery_dask.validate import root_id, whole_triple

__all__ = [
    "check_grey", "check_overlay", "colors_of_ids", "kept_ids", "start_of", "volumes_of",
    "window_of",
]  # fmt: skip

NEEDS = {
    "imagery": ("image",),
    "masks": ("segmentation",),
    "labels": ("segmentation",),
    "overlay": ("segmentation", "image"),
}


def volumes_of(data: Any, what: str) -> list[Volume]:
    """Volumes that pages are made of, in the order of `NEEDS`; an overlay may do without imagery."""
    if isinstance(data, xr.Dataset):
        present = [name for name in NEEDS[what] if name in data.data_vars]
        if not present or NEEDS[what][0] not in present:
            raise ValueError(
                f"what={what!r} needs the variable {NEEDS[what][0]!r}; the dataset has "
                f"{list(map(str, data.data_vars))}."
            )
        volumes = [replace(as_volumes(data[name])[0], name=name, variable=True) for name in present]
    else:
        volumes = as_volumes(data)
    if what != "imagery":
        labels = volumes[0]
        if labels.array.dtype.kind not in "iu" or labels.channels:
            raise TypeError(
                f"what={what!r} needs integer ids along x, y and z; got {labels.array.dtype} of shape "
                f"{labels.array.shape}. Write a single mask with what='imagery'."
            )
    if len({volume.shape for volume in volumes}) > 1:
        raise ValueError(f"Imagery and segmentation have different shapes: {[volume.shape for volume in volumes]}.")
    return volumes


def window_of(window: Any, bits: Any) -> Window | None:
    """Window from two numbers."""
    if window is None:
        if bits != 8:
            raise ValueError(f"bits={bits!r} is the depth of grey values that a window makes; give window=(low, high).")
        return None
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError):
        raise ValueError(f"window must be two numbers (low, high); got {window!r}.") from None
    return Window(low, high, bits)


def check_grey(image: Volume, window: Window | None) -> None:
    """Refuse imagery that a picture cannot hold as it is."""
    dtype, shape = image.array.dtype, image.array.shape
    if window is None and dtype not in (np.uint8, np.uint16, np.bool_):
        raise TypeError(
            f"Pictures hold 8 and 16 bit imagery; got {dtype}. Give window=(low, high) (--window LOW,HIGH): the voxel "
            "values that become black and white."
        )
    depth = dtype if window is None else window.dtype
    if image.channels and not (shape[3] in (3, 4) and depth == np.uint8):
        raise TypeError(f"Several channels are written as 8 bit RGB or RGBA; got shape {shape} of {depth}.")


def check_overlay(image: Volume, window: Window | None) -> None:
    """Refuse imagery that no overlay can be drawn on."""
    depth = image.array.dtype if window is None else window.dtype
    if image.channels or depth != np.uint8:
        raise TypeError(
            f"Overlays are drawn on 8 bit grey imagery; got {depth} of shape {image.array.shape}. Give "
            "window=(low, high) (--window LOW,HIGH): the voxel values that become black and white."
        )


def kept_ids(root_ids: Any, labels: Volume) -> tuple[int, ...] | None:
    """Return listed ids, ascending; None for all."""
    listed = label_rule(root_ids, as_int64=False).keep
    rule = None if labels.source is None else labels.source.cutout.labels
    own = rule.keep if rule is not None and (rule.query is None or rule.query.stop_layer is None) else None
    if own is None:
        return listed
    absent = sorted(set(listed or ()) - set(own))
    if absent:
        raise ValueError(f"root_ids: {_some(absent)} cannot be there: the data is a cutout of other root ids.")
    return tuple(value for value in own if value) if listed is None else listed


def colors_of_ids(
    colors: Any, keep: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> dict[int, tuple[int, int, int, int]]:
    """RGBA by id, for ids that may be there."""
    if colors is None:
        return {}
    if not isinstance(colors, Mapping):
        raise TypeError(f"colors must map root ids to RGB or RGBA; got a {type(colors).__name__}.")
    found = {root_id("root_ids", value): mask_color(color) for value, color in colors.items()}
    limit = int(np.iinfo(dtype).max)
    strange = sorted(
        value for value in found if value > limit or (value not in keep if keep is not None else value == 0)
    )
    if strange:
        why = f"ids of {dtype} do not reach it, and 0 is no object" if keep is None else "root_ids does not list them"
        raise ValueError(f"colors: {_some(strange)} cannot be there: {why}.")
    return found


def start_of(volume: Volume, voxel_offset: Any) -> XYZ:
    """Voxel index of a volume's first voxel in its grid."""
    if voxel_offset is not None:
        return whole_triple("voxel_offset", voxel_offset, least=None)
    if volume.source is not None:
        return volume.source.cutout.target.start
    remedy = "Give voxel_offset=(x, y, z), the voxel index of the first voxel."
    if volume.resolution_nm is None:
        raise ValueError(f"names='absolute' needs a place in the world, which this array does not have. {remedy}")
    first = [at / nm - 0.5 for at, nm in zip(volume.translation_nm, volume.resolution_nm, strict=True)]
    if not np.allclose(first, np.rint(first), rtol=0, atol=1e-3):
        raise ValueError(f"The array begins between voxels of its grid, at {tuple(first)}. {remedy}")
    x, y, z = (round(value) for value in first)
    return (x, y, z)


def _some(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
