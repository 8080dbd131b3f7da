"""What a source or the target of an export holds, as layers of the viewer.

Precomputed volumes and dynamic segmentations are read here and served chunk by chunk. The files of OME-Zarr stores are
passed on as they are, on disk and from buckets: Neuroglancer reads them itself, at places that a precomputed volume
cannot have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import SourceNotFoundError
from imagery_dask.geometry.grid import AXES, VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.labels import Kind, are_ids
from imagery_dask.sources import normalize_path, open_volume
from imagery_dask.sources.volumes.addresses import is_zarr
from imagery_dask.storage.buckets import clear_errors, files_at
from imagery_dask.storage.store_files import KEY
from imagery_dask.urls import location_of, redacted
from imagery_dask.validate import expanded_path
from imagery_dask.viewer.served import Answer

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["ServedStore", "found_in", "stores_in"]

# Groups of an export's labels, below the image.
LABELS = "labels/segmentation"
#: nm in the units of OME-Zarr.
UNITS_NM = {"angstrom": 0.1, "nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6, "meter": 1e9}


@dataclass(frozen=True, slots=True)
class ServedStore:
    """An OME-Zarr image, whose files are passed on.

    Parameters
    ----------
    name : str
        Name of its layer in the viewer.
    kind : {"image", "segmentation"}
        What voxels are.
    grid : VoxelGrid
        Voxels of the first level, for the place to show; its start is rounded to whole voxels.
    coarsest_nm : tuple of 3 float
        Voxel size of the coarsest level.
    zarr_format : {2, 3}
        Version of zarr.
    files : fsspec.AbstractFileSystem
        Where the group is.
    folder : str
        Path of the group there.
    """

    name: str
    kind: Kind
    grid: VoxelGrid
    coarsest_nm: Vec3[float]
    zarr_format: int
    files: AbstractFileSystem = field(repr=False)
    folder: str

    def source(self, url: str) -> str:
        """Return the source of the viewer's layer, for files that are served at a URL."""
        return f"{url}/|zarr{self.zarr_format}:"

    def display(self) -> JsonObject:
        """Return nothing: the viewer reads what the store says of its display."""
        return {}

    def get(self, path: str, first: int | None = None, stop: int | None = None) -> Answer | None:
        """Return a file, or the bytes from `first` (from the end, if negative) to `stop`; None if there is no file."""
        if any(part in ("", "..") for part in path.split("/")) or "\\" in path:
            return None
        file = f"{self.folder}/{path}"
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError), clear_errors(self.folder):
            if first is None:
                return Answer(self.files.cat_file(file))
            total = int(self.files.size(file))
            first = max(0, first + total) if first < 0 else first
            return Answer(self.files.cat_file(file, first, min(stop or total, total)), first, total)
        return None


def stores_in(url: str | os.PathLike[str]) -> list[ServedStore]:
    """Return the image and labels of an OME-Zarr store; none if there is no such store.

    Parameters
    ----------
    url : str or path
        The store, on disk or in a bucket: one that was exported, or another with axes z, y, x.

    Raises
    ------
    ValueError
        If the store has no multiscale image, or axes that are not along x, y and z.
    """
    text = expanded_path(url)
    files, root = files_at(text)
    with clear_errors(text):
        found = _read_group(files, root)
    if found is None:
        return []
    image = _image(text, files, root, *found)
    with clear_errors(text):
        labels = _read_group(files, f"{root}/{LABELS}")
    if labels is None:
        return [image]
    return [image, _image(f"{text}/{LABELS}", files, f"{root}/{LABELS}", *labels, kind="segmentation")]


def found_in(place: str | os.PathLike[str]) -> tuple[list[ServedStore], list[str]]:
    """Return what there is at a place: the images of an OME-Zarr store, or the paths of precomputed volumes.

    Parameters
    ----------
    place : str or path
        A precomputed volume, a dynamic segmentation, or an export to OME-Zarr or precomputed.

    Raises
    ------
    SourceNotFoundError
        If there is nothing that can be shown.
    """
    text = os.fspath(place)
    stores: list[ServedStore] = []
    if is_zarr(normalize_path(text)):
        with suppress(ValueError):  # no image of OME-Zarr, whose chunks are served one by one
            stores = stores_in(location_of(text).partition("|")[0].partition("#")[0])
    if stores:
        return stores, []
    # First, because it needs no package for buckets.
    found = _volumes(text)
    if found:
        return [], found
    stores = [] if text.startswith(("precomputed://", "graphene://")) else stores_in(text)
    folders = [] if stores else [f"{text.rstrip('/')}/{name}" for name in ("image", "segmentation")]
    found = [path for folder in folders for path in _volumes(folder)]
    if not stores and not found:
        raise SourceNotFoundError(
            f"{redacted(text)!r} is no precomputed volume, and no export as OME-Zarr or precomputed: it has no info, "
            "no image/info and no zarr.json. Pictures are opened with an image viewer."
        )
    return stores, found


def _volumes(path: str) -> list[str]:
    with suppress(SourceNotFoundError):
        return [open_volume(path).path]
    return []


def _read_group(files: AbstractFileSystem, folder: str) -> tuple[int, JsonObject] | None:
    """Return the zarr version and the OME attributes of a group."""
    for name, version in (("zarr.json", 3), (".zattrs", 2)):
        with suppress(FileNotFoundError, NotADirectoryError):
            content = json.loads(files.cat_file(f"{folder}/{name}"))
            attributes = content.get("attributes", {}) if version == 3 else content
            if regions := attributes.get(KEY, {}).get("regions"):
                names = ", ".join(regions)
                raise ValueError(f"{folder} has the regions {names}: name one, as in {folder}/{regions[0]}.")
            return version, (attributes.get("ome", {}) if version == 3 else attributes)
    return None


def _image(
    url: str, files: AbstractFileSystem, folder: str, version: int, attributes: JsonObject, kind: Kind | None = None
) -> ServedStore:
    try:
        multiscale = attributes["multiscales"][0]
        names = [axis["name"] for axis in multiscale["axes"]]
        unit = next((axis.get("unit") for axis in multiscale["axes"] if axis["name"] == "x"), None)
        level = multiscale["datasets"][0]
        shape, dtype = _array(files, f"{folder}/{level['path']}", version)
        scale = _transformed(level, "scale", names, 1.0)
        translation = _transformed(level, "translation", names, 0.0)
        coarsest = _transformed(multiscale["datasets"][-1], "scale", names, 1.0)
        size = Vec3.of(int(shape[names.index(axis)]) for axis in AXES)
    except (KeyError, IndexError, TypeError, ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{redacted(url)!r} is zarr, but no OME-Zarr image with axes x, y and z ({type(error).__name__}: {error}). "
            "Open an array of your own with xarray and pass it to client.view(layers={'name': array})."
        ) from error
    unit_nm = UNITS_NM.get(unit or "nanometer", 1.0)
    start = translation.map(lambda at, step: round(at / step - 0.5), scale)
    kind = kind or ("segmentation" if are_ids(dtype) else "image")
    return ServedStore(kind, kind, VoxelGrid(start, size, scale * unit_nm), coarsest * unit_nm, version, files, folder)


def _array(files: AbstractFileSystem, folder: str, version: int) -> tuple[Sequence[int], np.dtype[Any]]:
    metadata = json.loads(files.cat_file(f"{folder}/{'zarr.json' if version == 3 else '.zarray'}"))
    return metadata["shape"], np.dtype(metadata["data_type" if version == 3 else "dtype"])


def _transformed(level: JsonObject, kind: str, names: list[str], default: float) -> Vec3[float]:
    found = [step[kind] for step in level["coordinateTransformations"] if step["type"] == kind]
    return Vec3.of(float(found[0][names.index(axis)]) if found else default for axis in AXES)
