"""Options of exports of slices as picture files: what pictures show, how they are drawn, named and cut into tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.export.core.writer_arguments import option
from imagery_dask.geometry.grid import XYZ
from imagery_dask.model.labels import RootIds, label_rule
from imagery_dask.render.pages import Format, Window
from imagery_dask.render.palettes import mask_color
from imagery_dask.validate import axis, choice, number, root_id, whole_number, whole_triple

if TYPE_CHECKING:
    from imagery_dask.export.core.inputs import Volume

__all__ = ["MAX_FILES", "ImageOptions", "What"]

What = Literal["imagery", "masks", "labels", "overlay"]
Names = Literal["reference", "padded", "absolute"]
MAX_FILES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of `imagery_dask.to_png` that say what is written.

    Raises
    ------
    ValueError, TypeError
        An option is not valid, whatever the data, or two options exclude each other.
    """

    what: What = option(
        "imagery", "Grey values; a picture of each object; ids as values, with a table; objects over imagery."
    )
    slice_axis: int | Literal["x", "y", "z"] = option(
        2, "Axis along which the region is cut.", choices=("x", "y", "z"), default="z"
    )
    names: Names = option(
        "reference",
        "padded: PREFIX_slice_007_imagery.png, which sorts; reference: PREFIX_slice_7_imagery.png, as imageryclient "
        "names it; absolute: PREFIX_imagery_z021360.png with the slice's voxel index.",
        default="padded",
    )
    format: Format = option("png", "Kind of the files.")
    root_ids: RootIds = "all"
    colors: Mapping[int, Sequence[int]] | None = option(
        None, "Colors of masks and overlays: lines id,r,g,b.", syntax="colors"
    )
    window: Sequence[float] | None = option(None, "Voxel values that become black and white.", syntax="window")
    bits: Literal[8, 16] = option(8, "Depth of the grey values that --window makes.")
    tile: int | None = option(None, "Write tiles of at most N rows and columns.  [default: whole planes]", minimum=1)
    alpha: float = option(0.2, "Strength of an overlay's colors.")
    outline: bool = option(False, "Draw outlines of objects.")
    merge_outline: bool = option(True, "Draw no outline between objects that touch.")
    width: int = option(10, "Width of outlines in pixels.", minimum=1)
    voxel_offset: Sequence[int] | None = None
    max_files: int = option(MAX_FILES, "Refuse to write more files.", minimum=1)

    def __post_init__(self) -> None:
        choice("what", self.what, get_args(What))
        self._set("slice_axis", axis("slice_axis", self.slice_axis))
        choice("names", self.names, get_args(Names))
        choice("format", self.format, get_args(Format))
        self._check_what()
        keep = label_rule(self.root_ids, as_int64=False).keep
        self._set("root_ids", "all" if keep is None else keep)
        self._set("colors", _rgba_by_id(self.colors) or None)
        self._set("window", _two_numbers(self.window, self.bits))
        _ = self.grey  # raises if the window or the bits are not valid
        for name in ("tile", "max_files"):
            if getattr(self, name) is not None:
                self._set(name, whole_number(name, getattr(self, name)))
        number("alpha", self.alpha, 0, 1)
        whole_number("width", self.width)
        if self.voxel_offset is not None:
            self._set("voxel_offset", whole_triple("voxel_offset", self.voxel_offset, None))

    @classmethod
    def from_json(cls, options: JsonObject) -> ImageOptions:
        """Return the options that a plan's JSON holds, in which ids are text where they exceed 2**53."""
        ids, colors = options["root_ids"], options["colors"]
        return cls(**{
            **options,
            "root_ids": ids if ids == "all" else [int(value) for value in ids],
            "colors": None if colors is None else {int(value): color for value, color in colors.items()},
        })  # fmt: skip

    @property
    def axis(self) -> int:
        """Number of the slice axis."""
        return cast(int, self.slice_axis)

    @property
    def keep(self) -> tuple[int, ...] | None:
        """Ids to show, ascending; None shows all."""
        return None if self.root_ids == "all" else cast(tuple[int, ...], self.root_ids)

    @property
    def rgba(self) -> dict[int, tuple[int, int, int, int]]:
        """RGBA (0 to 255) of the ids that were given a color."""
        return cast(dict[int, tuple[int, int, int, int]], self.colors or {})

    @property
    def grey(self) -> Window | None:
        """Scale from voxels to grey values; None takes voxels as they are."""
        if self.window is None:
            return None
        low, high = self.window
        return Window(low, high, self.bits)

    @property
    def start(self) -> XYZ | None:
        """Voxel index of the first voxel, where names contain it."""
        return cast(XYZ | None, self.voxel_offset)

    def for_volumes(self, volumes: Sequence[Volume]) -> ImageOptions:
        """Return the options with the ids and the voxel index that the data imply.

        Parameters
        ----------
        volumes : sequence of Volume
            The imagery for ``what="imagery"``; else the labels, and for overlays the imagery, if any.

        Raises
        ------
        ValueError, TypeError
            The options do not fit the data.
        """
        keep, image = None, volumes[0]
        if self.what != "imagery":
            labels, *images = volumes
            if self.window is not None and not (self.what == "overlay" and images):
                raise ValueError(f"window is for grey values of imagery, which what={self.what!r} does not show here.")
            keep = _ids_of_cutout(self.keep, labels)
            _check_colors(self.rgba, keep, labels.array.dtype)
            if self.what == "overlay" and images:
                _check_overlay(images[0], self.grey)
        else:
            _check_grey(image, self.grey)
        start = None
        if self.names == "absolute":
            start = _first_voxel(volumes[0]) if self.start is None else self.start
        return replace(self, root_ids="all" if keep is None else keep, voxel_offset=start)

    def _check_what(self) -> None:
        """Raise if options are given that do not apply to `what`."""
        every_id = isinstance(self.root_ids, str) and self.root_ids == "all"
        if self.what == "imagery" and (self.colors is not None or not every_id):
            raise ValueError("root_ids and colors are for masks, labels and overlays; what='imagery' has none.")
        if self.what == "labels" and self.colors is not None:
            raise ValueError("what='labels' writes a value for each id, and no colors; use what='overlay' or 'masks'.")

    def _set(self, name: str, value: object) -> None:
        """Set a field to its normal form, while the value is made."""
        object.__setattr__(self, name, value)


def _two_numbers(window: Any, bits: Any) -> tuple[float, float] | None:
    if window is None:
        if bits != 8:
            raise ValueError(f"bits={bits!r} is the depth of grey values that a window makes; give window=(low, high).")
        return None
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError):
        raise ValueError(f"window must be two numbers (low, high); got {window!r}.") from None
    return (low, high)


def _rgba_by_id(colors: object) -> dict[int, tuple[int, int, int, int]]:
    if colors is None:
        return {}
    if not isinstance(colors, Mapping):
        raise TypeError(f"colors must map root ids to RGB or RGBA; got a {type(colors).__name__}.")
    return {root_id("colors", value): mask_color(color) for value, color in colors.items()}


def _check_grey(image: Volume, window: Window | None) -> None:
    """Raise if a picture cannot hold the imagery."""
    dtype, shape = image.array.dtype, image.array.shape
    if window is None and dtype not in (np.uint8, np.uint16, np.bool_):
        raise TypeError(
            f"Pictures hold 8 and 16 bit imagery; got {dtype}. Give window=(low, high) (--window LOW,HIGH): the voxel "
            "values that become black and white."
        )
    depth = dtype if window is None else window.dtype
    if image.channels and not (shape[3] in (3, 4) and depth == np.uint8):
        raise TypeError(f"Several channels are written as 8 bit RGB or RGBA; got shape {shape} of {depth}.")


def _check_overlay(image: Volume, window: Window | None) -> None:
    """Raise if no overlay can be drawn on the imagery."""
    depth = image.array.dtype if window is None else window.dtype
    if image.channels or depth != np.uint8:
        raise TypeError(
            f"Overlays are drawn on 8 bit grey imagery; got {depth} of shape {image.array.shape}. Give "
            "window=(low, high) (--window LOW,HIGH): the voxel values that become black and white."
        )


def _ids_of_cutout(listed: tuple[int, ...] | None, labels: Volume) -> tuple[int, ...] | None:
    """Return the ids to show: the listed ones, else those that the cutout keeps, else None for all."""
    rule = None if labels.source is None else labels.source.cutout.labels
    own = rule.keep if rule is not None and (rule.query is None or rule.query.stop_layer is None) else None
    if own is None:
        return listed
    absent = sorted(set(listed or ()) - set(own))
    if absent:
        raise ValueError(f"root_ids: {_some(absent)} cannot be there: the data is a cutout of other root ids.")
    return tuple(value for value in own if value) if listed is None else listed


def _check_colors(colors: Mapping[int, object], keep: tuple[int, ...] | None, dtype: np.dtype[Any]) -> None:
    """Raise if colors are given for ids that cannot occur."""
    limit = int(np.iinfo(dtype).max)
    absent = sorted(
        value for value in colors if value > limit or (value not in keep if keep is not None else value == 0)
    )
    if absent:
        why = f"ids of {dtype} do not reach it, and 0 is no object" if keep is None else "root_ids does not list them"
        raise ValueError(f"colors: {_some(absent)} cannot be there: {why}.")


def _first_voxel(volume: Volume) -> XYZ:
    """Return the voxel index of a volume's first voxel in its grid."""
    if volume.source is not None:
        return volume.source.cutout.target.start
    remedy = "Give voxel_offset=(x, y, z), the voxel index of the first voxel."
    if volume.resolution_nm is None:
        raise ValueError(f"names='absolute' needs a place in the world, which this array does not have. {remedy}")
    first = volume.translation_nm.map(lambda centre, size: centre / size - 0.5, volume.resolution_nm)
    if not np.allclose(first, np.rint(first), rtol=0, atol=1e-3):
        raise ValueError(f"The array begins between voxels of its grid, at {first}. {remedy}")
    return first.map(round)


def _some(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
