"""Exports as xarray objects: lazy variables, coordinates in nm, levels as nodes of a tree."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.config import config
from imagery_dask.geometry.grid import AXES, VoxelGrid
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.storage.store_files import KEY
from imagery_dask.storage.stored_array import StoredArray
from imagery_dask.storage.zarr_stores import open_store
from imagery_dask.urls import redacted, without_secrets
from imagery_dask.validate import expanded_path
from imagery_dask.viewer.served_stores import UNITS_NM

__all__ = ["open_export"]

# A start that is so near a whole number of voxels is one: it was computed in floats.
NEAR = 1e-6


def open_export(url: str | os.PathLike[str], level: int | None = None) -> xr.DataTree | xr.Dataset:
    """Open an export to OME-Zarr, or another OME-Zarr image, as lazy xarray objects in nm.

    Parameters
    ----------
    url : str or path
        The store: a local folder, or a URL such as ``s3://bucket/out.zarr``. OME-Zarr 0.5 and 0.4 are read.
    level : int, optional
        Return this level of the pyramid alone; 0 is the finest.

    Returns
    -------
    xarray.DataTree or xarray.Dataset
        A tree with a dataset for each level, named ``"0"``, ``"1"`` and so on; with `level`, that dataset. Variables
        are ``image`` and ``segmentation``, or what the store has of them, with dims x, y, z (and channel), as of
        `ImageryClient.dataset`: voxel centers in nm as coordinates, and the source, resolution and timestamp of the
        export in ``attrs``. A level of which the labels have other voxels than the image has nodes ``"1/image"`` and
        ``"1/segmentation"``. Of an export of named regions, a tree with such a tree for each region, or with `level`,
        such a dataset: ``tree["train"]``.

    Raises
    ------
    FileNotFoundError
        If there is no store at `url`.
    ValueError
        If the store is no OME-Zarr image with axes x, y and z, or has no such level.
    AccessRefusedError
        If the storage refuses access.
    """
    from imagery_dask.xarrays import accessor as accessor  # registers `em`

    text = expanded_path(url)
    with clear_errors(text):
        root = _root(text)
        regions = root.attrs.get(KEY, {}).get("regions")
        if regions is None:
            return _tree_of(text, list(_pyramids(text, root)), level)
        trees = {name: _tree_of(f"{text}/{name}", list(_pyramids(text, root[name])), level) for name in regions}
    return xr.DataTree(xr.Dataset(attrs={"url": without_secrets(text)}), children={
        name: xr.DataTree(tree) if isinstance(tree, xr.Dataset) else tree for name, tree in trees.items()
    })  # fmt: skip


def _tree_of(url: str, pyramids: list[_Pyramid], level: int | None) -> xr.DataTree | xr.Dataset:
    """Return the levels of an image with its labels, or one of them."""
    count = max(len(pyramid.levels) for pyramid in pyramids)
    if level is not None and not (type(level) is int and 0 <= level < count):
        raise ValueError(f"level must be one of the {count} levels of {redacted(url)!r}, from 0; got {level!r}.")
    attributes = {"url": without_secrets(url)}
    nodes: dict[str, xr.Dataset] = {}
    for index in range(count) if level is None else [level]:
        variables = {pyramid.name: pyramid.variable(index) for pyramid in pyramids if index < len(pyramid.levels)}
        first, *others = variables.values()
        if all(_same_voxels(first, other) for other in others):
            nodes[str(index)] = xr.Dataset(variables, attrs=attributes)
        else:
            nodes |= {f"{index}/{name}": xr.Dataset({name: array}) for name, array in variables.items()}
    if level is None:
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attributes), **nodes})
    if str(level) not in nodes:
        raise ValueError(f"Image and labels of level {level} have other voxels; open the tree, without level.")
    return nodes[str(level)]


@dataclass(frozen=True, slots=True)
class _Level:
    """An array of a pyramid, and where its voxels are."""

    path: str
    array: zarr.Array[Any]
    scale_nm: tuple[float, ...]
    translation_nm: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Pyramid:
    """An image or labels of a store."""

    url: str
    name: str
    #: Names of the axes as they are stored.
    axes: tuple[str, ...]
    #: Whether lengths are in nm, not in voxels.
    has_units: bool
    levels: list[_Level]
    attributes: JsonObject

    def variable(self, index: int) -> xr.DataArray:
        """Return a level with dims x, y, z(, channel)."""
        level = self.levels[index]
        array = _lazy(self.url, level, str(self.attributes.get("created", "")))
        order = tuple(range(array.ndim))
        dims = tuple("channel" if name == "c" else name for name in reversed(self.axes))
        own = dict(zip(reversed(self.axes), order, strict=True))
        data = xr.DataArray(array, dims=dims, name=self.name)
        units = {"units": "nm"} if self.has_units else {}
        coords = {
            axis: (axis, _centres(level, own[axis], array.shape[own[axis]]), {**units, "long_name": axis})
            for axis in AXES
        }
        nm = [level.scale_nm[own[axis]] for axis in AXES]
        data = data.assign_coords(coords).assign_attrs(self.attributes)
        if self.has_units:
            data.attrs["resolution_nm"] = nm
        return data.squeeze("t").transpose(*AXES, ...) if "t" in dims else data.transpose(*AXES, ...)


def _root(url: str) -> Any:
    """Return the group of a store."""
    try:
        return zarr.open_group(open_store(url), mode="r")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no zarr store at {redacted(url)!r}. A precomputed export is opened by "
            "ImageryClient(image_source=...) or segmentation_source=..."
        ) from None


def _pyramids(url: str, root: Any) -> Iterator[_Pyramid]:
    """Yield the image of a group, and its labels."""
    yield _pyramid(url, root)
    with_labels = _ome(root["labels"]).get("labels", []) if "labels" in root else []
    for name in with_labels:
        yield _pyramid(url, root[f"labels/{name}"])


def _pyramid(url: str, group: Any) -> _Pyramid:
    described = _ome(group)
    try:
        multiscale = described["multiscales"][0]
        axes = tuple(axis["name"] for axis in multiscale["axes"])
        if not set(AXES) <= set(axes) <= {*AXES, "c", "t"}:
            raise ValueError(f"axes {', '.join(axes)}")
        units = [axis.get("unit") for axis in multiscale["axes"] if axis["name"] in AXES]
        levels = [_level(group, dataset, axes, units) for dataset in multiscale["datasets"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{redacted(url)!r} is zarr, but no OME-Zarr image with axes x, y and z ({type(error).__name__}: {error}). "
            "Open it with xarray.open_zarr."
        ) from error
    is_labels = "image-label" in described
    name = "segmentation" if is_labels else str(multiscale.get("name") or "image")
    attributes = {"long_name": "segment id" if is_labels else "intensity", **group.attrs.get(KEY, {})}
    return _Pyramid(url, name, axes, all(unit is not None for unit in units), levels, attributes)


def _ome(group: Any) -> Mapping[str, Any]:
    """Return the OME attributes of a group: version 0.5 has a key of its own."""
    attributes: Mapping[str, Any] = group.attrs.asdict()
    return attributes["ome"] if isinstance(attributes.get("ome"), Mapping) else attributes


def _level(group: Any, dataset: Mapping[str, Any], axes: tuple[str, ...], units: list[str | None]) -> _Level:
    array = group[dataset["path"]]
    steps = {step["type"]: step.get(step["type"]) for step in dataset["coordinateTransformations"]}
    nm = dict(zip((axis for axis in axes if axis in AXES), units, strict=True))
    factors = [UNITS_NM[nm.get(axis) or "nanometer"] for axis in axes]
    scale, translation = steps.get("scale", [1.0] * len(axes)), steps.get("translation", [0.0] * len(axes))

    def in_nm(values: list[float]) -> tuple[float, ...]:
        return tuple(float(value) * factor for value, factor in zip(reversed(values), reversed(factors), strict=True))

    return _Level(array.path, array, in_nm(scale), in_nm(translation))


def _lazy(url: str, level: _Level, token: str) -> da.Array:
    stored = level.array
    shape = tuple(reversed(stored.shape))
    # Whole files, about as large as blocks of a cutout.
    unit = list(reversed(stored.shards or stored.chunks))
    size = math.prod(unit) * stored.dtype.itemsize
    while 2 * size <= config.get("lazy.block_bytes") and any(n < most for n, most in zip(unit, shape, strict=True)):
        axis = min((n, axis) for axis, n in enumerate(unit) if n < shape[axis])[1]
        unit[axis], size = 2 * unit[axis], 2 * size
    chunks = tuple(min(n, most) for n, most in zip(unit, shape, strict=True))
    source = StoredArray(url, level.path, shape, stored.dtype, token)
    meta = np.empty((0,) * len(shape), stored.dtype)
    return da.from_array(source, chunks=chunks, asarray=False, inline_array=True, meta=meta)


def _centres(level: _Level, axis: int, size: int) -> Array:
    """Return the centres of voxels along an axis, equal to those of a cutout where voxels begin at whole numbers."""
    step, first = level.scale_nm[axis], level.translation_nm[axis]
    start = first / step - 0.5
    if abs(start - round(start)) < NEAR:
        return VoxelGrid.between((round(start), 0, 0), (round(start) + size, 1, 1), (step, 1.0, 1.0)).centres_nm(0)
    return first + np.arange(size) * step


def _same_voxels(one: xr.DataArray, other: xr.DataArray) -> bool:
    return all(np.array_equal(one.coords[axis], other.coords[axis]) for axis in AXES)
