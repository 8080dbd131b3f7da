"""Levels to add to an OME-Zarr image: arrays in a group of its own, which its multiscales then name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast, get_args

from imagery_dask.annotations import JsonObject
from imagery_dask.arrays.lazy import lazy_dataarray
from imagery_dask.errors import SourceError
from imagery_dask.export.downsampling.additions import (
    Additions,
    Change,
    NothingLeft,
    folder_for,
    new_levels,
    writable_location,
)
from imagery_dask.export.downsampling.codec_names import codec_of
from imagery_dask.export.downsampling.downsample_options import DownsampleOptions
from imagery_dask.export.downsampling.metadata_files import MetadataFile
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import Axes, ZarrOptions
from imagery_dask.geometry.pyramid import Level
from imagery_dask.model.cutout import whole_layer
from imagery_dask.model.labels import Kind
from imagery_dask.sources import open_volume
from imagery_dask.sources.volumes.addresses import ZarrAddress
from imagery_dask.sources.zarr.multiscales import LevelPlace, levels_of_ome, own_transformation
from imagery_dask.sources.zarr.zarr_volume import ZarrVolume
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.targets import StoreTarget
from imagery_dask.urls import redacted

__all__ = ["zarr_additions"]

EXPORT = "Export it with levels to another volume (imagery-dask export zarr OUT --levels auto)."


@dataclass(frozen=True)
class _Group:
    """The group of an image.

    Parameters
    ----------
    files : Files
        Its folder.
    file : MetadataFile
        The file with its attributes.
    """

    files: Files
    file: MetadataFile

    @property
    def is_v3(self) -> bool:
        return self.file.name == "zarr.json"

    def ome(self, content: JsonObject) -> JsonObject:
        """Return the attributes of OME-Zarr in the content of the file."""
        attributes: JsonObject = content["attributes"] if self.is_v3 else content
        ome: JsonObject = attributes["ome"] if isinstance(attributes.get("ome"), dict) else attributes
        return ome

    def array(self, path: str) -> JsonObject:
        """Return the metadata of an array."""
        file = MetadataFile.read(self.files, f"{path}/{'zarr.json' if self.is_v3 else '.zarray'}")
        return {} if file is None else file.value


def zarr_additions(path: str, options: DownsampleOptions) -> Additions | NothingLeft:
    """Return the levels that an OME-Zarr image lacks.

    Raises
    ------
    SourceError, ValueError, TypeError
        The volume cannot be read or written, or has metadata or axes to which levels cannot be added.
    """
    location = writable_location(path)
    options.refuse_others(is_zarr=True)
    group = _group_at(path, location)
    ome = group.ome(group.file.value)
    places = levels_of_ome(ome)
    number = max(range(len(places)), key=lambda at: (math.prod(places[at].scale_nm), at))
    coarsest = places[number]
    axes = _axes_of(path, coarsest)
    # As an array in voxels from its start, wherever it is: levels of OME-Zarr begin anywhere.
    nm = ",".join(repr(float(size)) for size in coarsest.scale_nm)
    array = f"{location}/{coarsest.path}" if "://" in location else f"file://{location}/{coarsest.path}"
    scheme = "zarr3" if group.is_v3 else "zarr2"
    layer = open_volume(f"{scheme}://{array}#resolution={nm}&voxel_offset=0,0,0&axes={axes}", fresh=True).layer
    mip = layer.mips[0]
    if layer.dtype == "bool":  # which exports write as integers
        raise ValueError(f"{redacted(path)!r} is an array of bool. {EXPORT}")
    levels = new_levels(path, mip.grid.shape, mip.grid.resolution_nm, len(places), options.levels)
    if isinstance(levels, NothingLeft):
        return levels
    are_ids = layer.holds_ids or ("image-label" in ome and layer.channels == 1)
    kind: Kind = options.kind or ("segmentation" if are_ids else "image")
    folder = folder_for([place.path for place in places], lambda name: StoreTarget(f"{location}/{name}"))
    datasets = _datasets(ome["multiscales"][0]["datasets"][number], levels, axes, folder, _are_moved(places))
    cutout = replace(whole_layer(layer, 0), kind=kind).coarser(levels[0].step)
    centre = coarsest.translation_nm + coarsest.scale_nm * levels[0].step.map(lambda step: Fraction(step - 1, 2))
    shards = "auto" if options.shards == "auto" and mip.is_sharded else options.shards
    own = ZarrOptions(
        chunks=options.chunks or mip.chunk_shape,
        shards=None if options.shards == "auto" and not mip.is_sharded else shards,
        levels=len(levels), codec=options.codec or codec_of(group.array(coarsest.path)) or "auto",
        ome_version="0.5" if group.is_v3 else "0.4", axes=axes, kind=kind,
        resolution_nm=levels[0].resolution_nm, translation_nm=centre.map(float),
    )  # fmt: skip
    export = ZarrExport(lazy_dataarray(cutout, kind), f"{location}/{folder}", own)

    def changes() -> list[Change]:
        return _changes(group, datasets, folder, [folder, *(f"{folder}/{at}" for at in range(len(levels)))])

    return Additions(path, export, changes)


def _group_at(path: str, location: str) -> _Group:
    """Return the group of an image; raise for anything else that may be there."""
    address = ZarrAddress.parse(path)
    volume = open_volume(path)  # which says what is wrong with its metadata
    assert isinstance(volume, ZarrVolume)
    if volume.dataset_layer is not None:
        raise SourceError(
            f"{redacted(path)!r} is in a dataset of webknossos, whose properties would not name new levels. Add them "
            "with the package webknossos (Layer.downsample), or export it with levels to another volume."
        )
    if volume.metadata_name == "attributes.json":
        raise SourceError(f"{redacted(path)!r} is N5, which is read and not written. {EXPORT}")
    name = {"zarr.json": "zarr.json", ".zgroup": ".zattrs"}.get(volume.metadata_name)
    files = Files.at(location)
    file = None if name is None else MetadataFile.read(files, name)
    if (
        file is None
        or (name == "zarr.json" and file.value.get("node_type") != "group")
        or address.resolution_nm
        or address.voxel_offset
        or address.axes
    ):
        raise SourceError(
            f"{redacted(path)!r} is no image of OME-Zarr 0.4 or 0.5: levels can be added to a group with multiscales. "
            f"{EXPORT}"
        )
    return _Group(files, file)


def _axes_of(path: str, place: LevelPlace) -> Axes:
    """Return the axes of a level, of which t is one of one position, whatever its name."""
    names = () if place.axes is None else place.axes.names
    letters = "".join(name if name in ("x", "y", "z", "c") else "t" for name in names)
    if letters not in get_args(Axes):
        raise ValueError(
            f"{redacted(path)!r} has the axes {', '.join(names)}; levels can be added to images with z, y, x, or "
            f"x, y, z, after others (t, c). {EXPORT}"
        )
    return cast(Axes, letters)


def _are_moved(places: Sequence[LevelPlace]) -> bool:
    """Return True if the centre of the first voxel of a coarser level is elsewhere, as the specification says.

    Some writers give all levels one translation, or none; new levels follow what is there, so that all agree.
    """
    first = places[0]
    return not any(
        place.scale_nm != first.scale_nm and place.translation_nm == first.translation_nm for place in places[1:]
    )


def _datasets(above: JsonObject, levels: Sequence[Level], axes: str, folder: str, moves: bool) -> list[JsonObject]:
    """Return the datasets of new levels, which follow that of the coarsest level.

    What all levels have in common, in transformations of their multiscale, is no part of them.
    """
    scale, translation = own_transformation(above, len(axes))
    datasets: list[JsonObject] = []
    for number, level in enumerate(levels):
        steps = [level.step["xyz".index(axis)] if axis in "xyz" else 1 for axis in axes]
        if moves:
            translation = [
                at + Fraction(step - 1, 2) * size for at, size, step in zip(translation, scale, steps, strict=True)
            ]
        scale = [size * step for size, step in zip(scale, steps, strict=True)]
        transformations: list[JsonObject] = [{"type": "scale", "scale": [float(size) for size in scale]}]
        if any(translation):
            transformations.append({"type": "translation", "translation": [float(at) for at in translation]})
        datasets.append({"path": f"{folder}/{number}", "coordinateTransformations": transformations})
    return datasets


def _changes(group: _Group, datasets: list[JsonObject], folder: str, nodes: Sequence[str]) -> list[Change]:
    """Return the changes of the files of a group: its attributes, and copies of all metadata ("consolidated")."""

    def name_levels(content: JsonObject) -> None:
        group.ome(content)["multiscales"][0]["datasets"] += datasets

    if group.is_v3:

        def add(content: JsonObject) -> None:
            name_levels(content)
            consolidated: Any = content.get("consolidated_metadata")
            if isinstance(consolidated, dict):
                consolidated["metadata"] |= _copies(group.files, [f"{node}/zarr.json" for node in nodes], "/zarr.json")

        return [(group.file, add)]
    changes: list[Change] = [(group.file, name_levels)]
    consolidated = MetadataFile.read(group.files, ".zmetadata")
    if consolidated is not None:
        of_nodes = [f"{node}/{name}" for node in nodes for name in (".zgroup", ".zarray", ".zattrs")]

        def copy(content: JsonObject) -> None:
            attributes = group.file.value
            name_levels(attributes)
            content["metadata"] |= {".zattrs": attributes} | _copies(group.files, of_nodes, "")

        changes.insert(0, (consolidated, copy))
    return changes


def _copies(files: Files, names: Sequence[str], suffix: str) -> JsonObject:
    """Return the contents of the metadata files that exist, by their name without a suffix."""
    found = {name: MetadataFile.read(files, name) for name in names}
    return {name.removesuffix(suffix): file.value for name, file in found.items() if file is not None}
