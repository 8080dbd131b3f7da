"""Neuroglancer states: the place and the layers that they show, read and written in both forms.

The *present* form has ``dimensions`` and ``position``
(https://github.com/google/neuroglancer/blob/master/python/neuroglancer/viewer_state.py); Spelunker uses it too. The
*old* form, of the viewers of FlyWire and of the Seung lab, has ``navigation.pose.position``. In both, voxel ``i`` spans
``[i, i + 1)``. Ids are strings, because numbers in JavaScript are exact only up to 2**53.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NoReturn

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.geometry.grid import AXES
from imagery_dask.geometry.vec import Vec3
from imagery_dask.render.palettes import colors_of
from imagery_dask.urls import FORMATS, redacted
from imagery_dask.validate import LARGEST, choice

__all__ = ["Form", "Place", "StateLayer", "read_layers", "read_place", "state_of"]

Form = Literal["present", "old"]
Kind = Literal["image", "segmentation"]
KINDS: dict[object, Kind] = {
    "image": "image",
    "segmentation": "segmentation",
    "segmentation_with_graph": "segmentation",
}
#: Powers of ten, in nm, of the units that a dimension may have.
UNITS = {"m": 9, "mm": 6, "µm": 3, "μm": 3, "um": 3, "nm": 0, "pm": -3}
#: Side of the cross section that a link shows, in pixels.
PIXELS = 512
# Timestamps from here on are milliseconds: as seconds it would be the year 5138.
MILLISECONDS = 10**11
GRAPHENE = "graphene://"
LARGEST_ID = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Place:
    """A position, and the voxels that it is given in.

    Parameters
    ----------
    position : tuple of 3 float
        x, y, z in voxels of `resolution_nm`; voxel ``i`` spans ``[i, i + 1)``.
    resolution_nm : tuple of 3 float
        Voxel size, nm.
    nm_per_pixel : float or None
        Scale of the cross sections; states that are read do not need one.
    """

    position: Vec3[float]
    resolution_nm: Vec3[float]
    nm_per_pixel: float | None = None

    @classmethod
    def of_bounds(cls, lower: Vec3[float], upper: Vec3[float], resolution_nm: Vec3[float]) -> Place:
        """Return the centre of the middle voxel of bounds (of the upper half for an even size), all of which is shown.

        Examples
        --------
        >>> Place.of_bounds(Vec3(0, 0, 10), Vec3(1024, 512, 11), Vec3(8, 8, 40))
        Place(position=(512.5, 256.5, 10.5), resolution_nm=(8, 8, 40), nm_per_pixel=16.0)
        """
        position = lower.map(lambda a, b: math.floor(a + (b - a) // 2) + 0.5, upper)
        x, y, _ = lower.map(lambda a, b, nm: float((b - a) * nm), upper, resolution_nm)
        return cls(position, resolution_nm, max(x, y) / PIXELS)


@dataclass(frozen=True, slots=True)
class StateLayer:
    """A layer with a volume.

    Parameters
    ----------
    name : str
        Name in the viewer.
    kind : {"image", "segmentation"}
        What it shows.
    source : str
        URL of the volume, such as ``precomputed://gs://bucket/em``.
    segments : tuple of int
        Selected ids that are visible.
    timestamp : float or None
        Moment of a dynamic segmentation, seconds since 1970.
    visible : bool
        Whether the layer is shown.
    moved : str, optional
        Part of the state that moves or scales the volume, which is not applied to what is read.
    """

    name: str
    kind: Kind
    source: str
    segments: tuple[int, ...] = ()
    timestamp: float | None = None
    visible: bool = True
    moved: str | None = None

    def to_json(self, form: Form) -> JsonObject:
        """Return the layer as a state has it, with this package's colors of its segments."""
        is_graph = self.source.startswith(GRAPHENE)
        kind = "segmentation_with_graph" if form == "old" and is_graph else self.kind
        layer: JsonObject = {"type": kind, "source": self.source, "name": self.name}
        if self.kind == "segmentation":
            layer["segments"] = [str(one) for one in self.segments]
            layer["segmentColors"] = segment_colors(self.segments)
        if self.timestamp is not None:
            layer["timestamp"] = self.timestamp
        return layer if self.visible else layer | {"visible": False}


def segment_colors(segments: tuple[int, ...]) -> dict[str, str]:
    """Return the colors of ids, as ``#rrggbb``, that pictures of this package have."""
    colors = colors_of(np.array(segments, dtype=np.uint64))
    return {str(one): f"#{r:02x}{g:02x}{b:02x}" for one, (r, g, b) in zip(segments, colors.tolist(), strict=True)}


def state_of(
    layers: tuple[StateLayer, ...],
    place: Place | None,
    form: Form = "present",
    panels: Sequence[Sequence[str]] = (),
) -> JsonObject:
    """Return the state that shows layers at a place, in one of the two forms.

    With `panels`, names of layers, the present form shows these side by side, at one position.
    """
    choice("form", form, ("present", "old"))
    state: JsonObject = {}
    if place is not None and form == "present":
        meters = place.resolution_nm.map(lambda nm: float(Fraction(repr(float(nm))) / 10**9))
        state["dimensions"] = {axis: [scale, "m"] for axis, scale in zip(AXES, meters, strict=True)}
        state["position"] = list(place.position)
        if place.nm_per_pixel is not None:
            # In voxels of the finest axis.
            state["crossSectionScale"] = place.nm_per_pixel / min(place.resolution_nm)
    elif place is not None:
        pose = {"position": {"voxelSize": list(place.resolution_nm), "voxelCoordinates": list(place.position)}}
        zoom = {} if place.nm_per_pixel is None else {"zoomFactor": place.nm_per_pixel}
        state["navigation"] = {"pose": pose, **zoom}
    state["layers"] = [layer.to_json(form) for layer in layers]
    state["layout"] = "4panel"
    if panels:
        viewers = [{"type": "viewer", "layers": list(names), "layout": "xy"} for names in panels]
        state["layout"] = {"type": "row", "children": viewers}
    return state


# ---------------------------------------- reading: each error names the part of the state that is wrong


def read_place(state: Mapping[str, Any]) -> Place:
    """Return the position of a state in either form.

    Raises
    ------
    ValueError
        If a part is missing or malformed; the message names it.
    """
    if "navigation" in state:
        return _old_place(state)
    dimensions = _mapping("dimensions", state.get("dimensions"), "such as {'x': [8e-09, 'm'], ...}")
    absent = [axis for axis in AXES if axis not in dimensions]
    if absent:
        _wrong("dimensions", f"has no {', '.join(absent)}", dict(dimensions))
    position = _list("position", state.get("position"))
    if len(position) != len(dimensions):
        _wrong("position", f"must be {len(dimensions)} numbers, one for each of {', '.join(dimensions)}", position)
    at = dict(zip(dimensions, position, strict=True))
    return Place(
        Vec3.of(_number(f"position[{list(dimensions).index(axis)}] ({axis})", at[axis]) for axis in AXES),
        Vec3.of(_scale(f"dimensions.{axis}", dimensions[axis]) for axis in AXES),
    )


def read_layers(state: Mapping[str, Any]) -> tuple[StateLayer, ...]:
    """Return the image and segmentation layers of a state in either form, in its order; others are left out.

    Raises
    ------
    ValueError
        If a part is missing or malformed; the message names it.
    """
    layers = state.get("layers")
    if isinstance(layers, Mapping):  # before 2018
        layers = [{"name": name, **_mapping(f"layers.{name}", layer, "a layer")} for name, layer in layers.items()]
    read = (_layer(f"layers[{index}]", layer) for index, layer in enumerate(_list("layers", layers)))
    return tuple(layer for layer in read if layer is not None)


def _old_place(state: Mapping[str, Any]) -> Place:
    where, at = "navigation", state
    for key in ("navigation", "pose", "position"):
        where = key if key == "navigation" else f"{where}.{key}"
        at = _mapping(where, at.get(key), "an object")
    read = {}
    for key in ("voxelCoordinates", "voxelSize"):
        values = _list(f"{where}.{key}", at.get(key))
        if len(values) != 3:
            _wrong(f"{where}.{key}", "must be three numbers x, y, z", values)
        read[key] = Vec3.of(_number(f"{where}.{key}[{index}]", value) for index, value in enumerate(values))
    if min(read["voxelSize"]) <= 0:
        _wrong(f"{where}.voxelSize", "must be positive, in nm", at["voxelSize"])
    return Place(read["voxelCoordinates"], read["voxelSize"])


def _scale(where: str, value: object) -> float:
    """Return the size of a dimension in nm."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        _wrong(where, "must be a number and a unit, such as [8e-09, 'm']", value)
    number, unit = _number(f"{where}[0]", value[0]), value[1]
    if not isinstance(unit, str) or unit not in UNITS:
        _wrong(f"{where}[1]", f"must be a unit of length ({', '.join(UNITS)})", unit)
    if number <= 0:
        _wrong(f"{where}[0]", "must be positive", value[0])
    return float(Fraction(repr(number)) * Fraction(10) ** UNITS[unit])


def _layer(where: str, value: object) -> StateLayer | None:
    layer = _mapping(where, value, "a layer")
    kind = KINDS.get(layer.get("type"))
    if kind is None:
        return None
    name = layer.get("name", kind)
    if not isinstance(name, str):
        _wrong(f"{where}.name", "must be text", name)
    url, moment, moved = _source(f"{where}.source", layer.get("source"))
    moved = _moved(f"{where}.transform", layer.get("transform")) or moved  # the old form
    segments = tuple(
        one
        for index, segment in enumerate(_list(f"{where}.segments", layer.get("segments", [])))
        if (one := _segment(f"{where}.segments[{index}]", segment)) is not None
    )
    moment = layer.get("timestamp") if moment is None else moment
    visible = layer.get("visible", True) is not False and layer.get("archived") is not True
    return StateLayer(name, kind, url, segments, _timestamp(f"{where}.timestamp", moment), visible, moved)


def _source(where: str, value: object) -> tuple[str, object, str | None]:
    """Return the URL of a layer's volume, the timestamp in the state of the source, and what moves the volume."""
    if isinstance(value, list):  # a volume, then meshes and skeletons
        if not value:
            _wrong(where, "has no URL", value)
        where, value = f"{where}[0]", value[0]
    moment: object = None
    moved = None
    if isinstance(value, Mapping):
        own, moved = value.get("state"), _moved(f"{where}.transform", value.get("transform"))
        moment = own.get("timestamp") if isinstance(own, Mapping) else None
        where, value = f"{where}.url", value.get("url")
    if not isinstance(value, str) or not value.strip():
        _wrong(where, "must be the URL of a volume, such as 'precomputed://gs://bucket/em'", value)
    url, _, adapter = value.strip().partition("|")  # both forms of URLs
    format_, _, inside = adapter.partition(":")
    if format_ == "neuroglancer-precomputed":
        url = f"precomputed://{url}"
    elif format_ in FORMATS:
        url = "/".join(filter(None, [f"{format_}://{url.rstrip('/')}", inside.strip("/")]))
    elif adapter:
        url = value.strip()
    return url, moment, moved


def _moved(where: str, value: object) -> str | None:
    """Return the place of the matrix of a transform, or None if it leaves the volume where it is."""
    matrix = value.get("matrix") if isinstance(value, Mapping) else value
    where = f"{where}.matrix" if isinstance(value, Mapping) else where
    if matrix is None:
        return None
    rows = _list(where, matrix)
    for row, values in enumerate(rows):
        for column, one in enumerate(_list(f"{where}[{row}]", values)):
            if _number(f"{where}[{row}][{column}]", one) != (row == column):
                return where
    return None


def _segment(where: str, value: object) -> int | None:
    """Return a selected id, or None if it is marked as not visible."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.removeprefix("!").isdecimal():
        _wrong(where, "must be an id in decimal digits; a float has already rounded it", value)
    number = int(text.removeprefix("!"))
    if number > LARGEST_ID:
        _wrong(where, "must be at most 2**64 - 1", value)
    return None if text.startswith("!") else number


def _timestamp(where: str, value: object) -> float | None:
    if value in (None, "", 0, "0"):  # which stand for now
        return None
    number = _number(where, float(value) if isinstance(value, str) and value.isdecimal() else value)
    return number / 1000 if number >= MILLISECONDS else number


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        _wrong(where, "must be a number below 2**53", value)
    return float(value)


def _list(where: str, value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        _wrong(where, "must be a list", value)
    return list(value)


def _mapping(where: str, value: object, expected: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        _wrong(where, f"must be {expected}", value)
    return value


def _wrong(where: str, problem: str, value: object) -> NoReturn:
    found = "it is missing" if value is None else f"got {redacted(repr(value)):.200}"
    raise ValueError(f"In the Neuroglancer state, {where} {problem}; {found}.")
