"""Datasets of webknossos: what their properties say of layers, whose arrays do not say it themselves.

A dataset is a folder with ``datasource-properties.json``. Each layer is a folder in it, and each of its magnifications
("mags") an array below that, which begins at voxel 0 and is larger than the layer's bounding box.

Format: https://docs.webknossos.org/webknossos/data/concepts.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import AccessRefusedError
from imagery_dask.geometry.vec import Vec3
from imagery_dask.serialization import json_object
from imagery_dask.sources.requests.transport import Request, Transport
from imagery_dask.sources.zarr.multiscales import LevelPlace, axes_named, exact, unit_nm
from imagery_dask.urls import split_name

__all__ = ["AXES", "PROPERTIES", "WebknossosLayer", "find_layer", "layers_of_dataset", "unreadable_layers"]

PROPERTIES, WKW_HEADER = "datasource-properties.json", "header.wkw"
LARGEST_PROPERTIES = 2**26
# Axes of arrays, where the properties do not say them.
AXES = ("c", "x", "y", "z")
WKW = (
    "webknossos stored it as WKW, which is no zarr. Copy it with the package webknossos: "
    "Dataset.open(PATH).copy_dataset(COPY, data_format='zarr3')"
)


@dataclass(frozen=True)
class WebknossosLayer:
    """A layer of a dataset, or one magnification of it.

    Parameters
    ----------
    places : tuple of LevelPlace
        Its arrays, the finest first; their paths are below what was opened.
    boxes : tuple
        First voxel, and one past the last, of the bounding box in voxels of each array.
    is_segmentation : bool
        Whether its voxels are ids.
    """

    places: tuple[LevelPlace, ...]
    boxes: tuple[tuple[Vec3[int], Vec3[int]], ...]
    is_segmentation: bool


def find_layer(location: str, metadata_name: str, is_array: bool) -> WebknossosLayer | None:
    """Return what the dataset above a folder says of it; None if it is not in one.

    Parameters
    ----------
    location : str
        Cloud path of a layer or of a magnification.
    metadata_name : str
        A file in it, which was readable.
    is_array : bool
        Whether it is a magnification.

    Raises
    ------
    ValueError, KeyError, TypeError, IndexError
        If its properties are not understood.
    """
    dataset, folder = split_name(location)
    if is_array:
        dataset, above = split_name(dataset)
        folder = f"{above}/{folder}"
    properties = _read(dataset, f"{folder}/{metadata_name}") if dataset else None
    if properties is None:
        return None
    below = "" if is_array else f"{folder}/"
    for layer in _layers(properties):
        mags = {path: mag for path, mag in _mags(layer) if path == folder or (below and path.startswith(below))}
        if mags:
            return _layer(properties, layer, {path.removeprefix(below or folder): mag for path, mag in mags.items()})
    return None


def layers_of_dataset(location: str, beside: str | None = None) -> dict[str, bool]:
    """Return the names of the zarr layers of the dataset in a folder, and whether they are segmentations.

    Parameters
    ----------
    location : str
        Cloud path of the folder.
    beside : str, optional
        A file in it that was readable.
    """
    return {
        str(layer["name"]): layer.get("category") == "segmentation"
        for layer in _layers(_read(location, beside))
        if str(layer.get("dataFormat")).startswith("zarr")
    }


def unreadable_layers(location: str) -> str:
    """Return why a folder of webknossos is no volume; "" if it is not one of webknossos."""
    parent, folder = split_name(location)
    names = [str(layer["name"]) for layer in _layers(_read(location)) if layer.get("dataFormat") == "wkw"]
    of_parent = _layers(_read(parent)) if parent and not names else []
    if any(layer.get("dataFormat") == "wkw" and layer["name"] == folder for layer in of_parent):
        names = [folder]
    if names:
        return f"There is a dataset of webknossos, with {', '.join(map(repr, names))}: {WKW}."
    with suppress(AccessRefusedError):
        return f"There is a magnification of webknossos: {WKW}." if _is_wkw(location) else ""
    return ""


def _read(location: str, beside: str | None = None) -> JsonObject | None:
    """Return the properties of the dataset in a folder; None if there are none that are readable."""
    try:
        blob = Transport(location).get(Request(PROPERTIES, most=LARGEST_PROPERTIES, beside=beside))
    except AccessRefusedError:
        return None
    if blob is None or blob.refused_or_absent:
        return None
    return json_object(bytes(blob.decompressed(LARGEST_PROPERTIES)))


def _layers(properties: JsonObject | None) -> list[JsonObject]:
    """Return the layers of a dataset that have a name."""
    layers = (properties or {}).get("dataLayers")
    found = layers if isinstance(layers, list) else []
    return [layer for layer in found if isinstance(layer, dict) and layer.get("name")]


def _is_wkw(location: str) -> bool:
    return Transport(location).get(Request(WKW_HEADER)) is not None


def _mags(layer: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Yield the magnifications of a layer by their path below the dataset, which older properties do not name."""
    for mag in layer.get("mags") or ():
        by = _factors(mag)
        short = str(by.x) if len(set(by)) == 1 else "-".join(map(str, by))
        yield str(mag.get("path") or f"{layer['name']}/{short}").removeprefix("./").strip("/"), mag


def _factors(mag: JsonObject) -> Vec3[int]:
    by = mag["mag"]
    return Vec3.of([int(by)] * 3 if isinstance(by, int) else map(int, by))


def _layer(properties: JsonObject, layer: JsonObject, mags: dict[str, JsonObject]) -> WebknossosLayer:
    scale: Any = properties["scale"]
    factor, unit = (scale["factor"], scale.get("unit")) if isinstance(scale, dict) else (scale, None)
    size = Vec3.of(exact(n) for n in factor) * unit_nm(unit)
    box = layer["boundingBox"]
    start = Vec3.of(map(int, box["topLeft"]))
    stop = start + Vec3.of(int(box[name]) for name in ("width", "height", "depth"))
    places, boxes = [], []
    for path, mag in sorted(mags.items(), key=lambda item: _factors(item[1]).prod()):
        by, order = _factors(mag), mag.get("axisOrder") or {name: number for number, name in enumerate(AXES)}
        axes = axes_named(sorted(order, key=lambda name: int(order[name])))
        places.append(LevelPlace(path, axes, size * by.map(Fraction), Vec3(Fraction(0), Fraction(0), Fraction(0))))
        boxes.append((start // by, stop.ceil_div(by)))
    return WebknossosLayer(tuple(places), tuple(boxes), layer.get("category") == "segmentation")
