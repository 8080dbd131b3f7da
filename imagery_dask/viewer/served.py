"""Volumes as Neuroglancer reads them: sources, cutouts and lazy arrays as precomputed volumes that are made on demand.

A chunk is read, mapped to root ids and encoded when the viewer asks for it, and nothing else is. Levels are the mips of
the source; an array without a source has one level, because coarser ones would need all of it.

Format: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import compressed_segmentation
import numpy as np

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.export.core.inputs import Volume, as_volumes, source_levels
from imagery_dask.geometry.grid import AXES, VoxelGrid, bounds_key, ratio, region_between
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout, whole_layer
from imagery_dask.model.labels import Kind, LabelRule
from imagery_dask.model.layer import Layer
from imagery_dask.sources import Missing
from imagery_dask.sources.precomputed.codecs import SEGMENTATION_BLOCK
from imagery_dask.validate import triple

__all__ = ["Answer", "Served", "ServedLevel", "ServedVolume", "volume_of_layer", "volumes_of_data"]

CHUNK_NAME = re.compile(r"(\d+)/(-?\d+)-(-?\d+)_(-?\d+)-(-?\d+)_(-?\d+)-(-?\d+)")
#: Most bytes of a chunk of an array, whose own chunks may be those of a cluster's tasks.
CHUNK_BYTES = 2**22
#: Percentiles that are shown black and white.
CONTRAST = (0.1, 99.9)
RGB = """#uicontrol invlerp normalized
void main() {
  emitRGB(vec3(normalized(getDataValue(0)), normalized(getDataValue(1)), normalized(getDataValue(2))));
}
"""
# What Neuroglancer shows of each data type that it does not have.
SHOWN_AS = {"bool": "uint8", "float16": "float32", "float64": "float32"}
SIGNED = {"int8": "uint8", "int16": "uint16", "int32": "uint32", "int64": "uint64"}
# Voxels. An edge so close to a voxel's is that: centers are computed in floats.
EDGE = Fraction(1, 1000)


@dataclass(frozen=True, slots=True)
class Answer:
    """A file, or a part of it.

    Parameters
    ----------
    content : bytes
        What was asked for.
    first : int
        Position of the first byte in the file.
    total : int or None
        Size of the file, if the content is a part of it.
    """

    content: bytes
    first: int = 0
    total: int | None = None


class Served(Protocol):
    """What the server gives to the viewer as one layer."""

    @property
    def name(self) -> str:
        """Name of the layer."""

    @property
    def kind(self) -> Kind:
        """What voxels are."""

    @property
    def grid(self) -> VoxelGrid:
        """Voxels of the finest level."""

    @property
    def coarsest_nm(self) -> Vec3[float]:
        """Voxel size of the coarsest level."""

    def source(self, url: str) -> str | JsonObject:
        """Return the source of the layer in the viewer's state, if its files are at a URL."""

    def display(self) -> JsonObject:
        """Return further settings of the layer, such as the range of its contrast."""

    def get(self, path: str, first: int | None = None, stop: int | None = None) -> Answer | None:
        """Return a file, or the bytes from `first` to `stop`, or None if there is no such file.

        A negative `first` counts from the end. The whole file may be returned instead of a part.
        """


@dataclass(frozen=True, slots=True)
class ServedLevel:
    """One level of a served volume.

    Parameters
    ----------
    grid : VoxelGrid
        Its voxels.
    chunk : tuple of 3 int
        Shape of the chunks, which begin at the first voxel.
    read : callable
        Returns the voxels of a part of the grid, as x, y, z or x, y, z, channel.
    """

    grid: VoxelGrid
    chunk: Vec3[int]
    read: Callable[[VoxelGrid], Array]

    def has(self, box: VoxelGrid) -> bool:
        """Return True if a box is one of the chunks."""
        offset = box.start - self.grid.start
        whole = box.size > 0 and min(offset) >= 0 and not any(offset % self.chunk)
        return whole and box.stop == (box.start + self.chunk).minimum(self.grid.stop)


@dataclass(frozen=True, slots=True)
class ServedVolume:
    """A precomputed volume whose files are made on demand.

    Parameters
    ----------
    name : str
        Name of its layer in the viewer.
    kind : {"image", "segmentation"}
        What voxels are.
    dtype : str
        Data type of the voxels that are read.
    channels : int
        Values per voxel.
    levels : tuple of ServedLevel
        Finest first.
    shift : tuple of 3 float
        Part of a voxel of the first level by which the volume lies beyond its grid.
    """

    name: str
    kind: Kind
    dtype: str
    channels: int
    levels: tuple[ServedLevel, ...]
    shift: Vec3[float] = Vec3(0.0, 0.0, 0.0)

    @property
    def grid(self) -> VoxelGrid:
        """Voxels of the finest level."""
        return self.levels[0].grid

    @property
    def coarsest_nm(self) -> Vec3[float]:
        """Voxel size of the coarsest level."""
        return self.levels[-1].grid.resolution_nm

    @property
    def served_dtype(self) -> str:
        """Data type of the chunks: one that Neuroglancer has; ids are unsigned."""
        if self.kind == "segmentation":
            return SIGNED.get(self.dtype, SHOWN_AS.get(self.dtype, self.dtype))
        return "float32" if self.dtype == "int64" else SHOWN_AS.get(self.dtype, self.dtype)

    @property
    def encoding(self) -> str:
        """Encoding of the chunks: ids stay compressed in the viewer's memory."""
        is_large = self.kind == "segmentation" and self.served_dtype in ("uint32", "uint64")
        return "compressed_segmentation" if is_large else "raw"

    def source(self, url: str) -> str | JsonObject:
        """Return the source of the viewer's layer, for a volume that is served at a URL."""
        address = f"precomputed://{url}"
        if self.shift == (0, 0, 0):
            return address
        scale = [[nm * 1e-9, "m"] for nm in self.grid.resolution_nm]
        matrix = [[*(float(row == column) for column in range(3)), self.shift[row]] for row in range(3)]
        transform = {"matrix": matrix, "outputDimensions": dict(zip(AXES, scale, strict=True))}
        return {"url": address, "transform": transform}

    def display(self) -> JsonObject:
        """Return the shader of three channels, and the range of an image that is not of 8 bits.

        The viewer shows the whole range of the data type by default, in which most 16-bit images are black. The range
        is that of the chunk in the middle of the coarsest level, the only one that is read for it.
        """
        if self.kind == "segmentation":
            return {}
        shader = {"shader": RGB} if self.channels == 3 else {}
        if self.dtype == "uint8":
            return shader
        level = self.levels[-1]
        cell = (level.grid.shape // 2) // level.chunk * level.chunk
        try:
            voxels = level.read(level.grid.crop(cell, level.chunk.minimum(level.grid.shape - cell)))
        except Exception:  # which the viewer meets when it asks for the chunk
            return shader
        finite = voxels[np.isfinite(voxels)]
        low, high = np.percentile(finite, CONTRAST).tolist() if finite.size else (0.0, 0.0)
        return shader | ({"shaderControls": {"normalized": {"range": [low, high]}}} if low < high else {})

    def info(self) -> JsonObject:
        """Return the volume's info."""
        scales: list[JsonObject] = [
            {
                "key": str(number),
                "size": list(level.grid.shape),
                "voxel_offset": list(level.grid.start),
                "resolution": list(level.grid.resolution_nm),
                "chunk_sizes": [list(level.chunk)],
                "encoding": self.encoding,
            }
            for number, level in enumerate(self.levels)
        ]
        if self.encoding == "compressed_segmentation":
            scales = [scale | {"compressed_segmentation_block_size": list(SEGMENTATION_BLOCK)} for scale in scales]
        kind = {"@type": "neuroglancer_multiscale_volume", "type": self.kind}
        return {**kind, "data_type": self.served_dtype, "num_channels": self.channels, "scales": scales}

    def get(self, path: str, first: int | None = None, stop: int | None = None) -> Answer | None:
        """Return a file of the volume, always whole, or None if it has no such file; this reads one chunk at most.

        Raises
        ------
        SourceError, OverflowError
            If the chunk cannot be read, or holds ids that cannot be shown.
        """
        del first, stop
        if path == "info":
            return Answer(json.dumps(self.info()).encode())
        match = CHUNK_NAME.fullmatch(path)
        if match is None or int(match[1]) >= len(self.levels):
            return None
        level = self.levels[int(match[1])]
        x0, x1, y0, y1, z0, z1 = (int(edge) for edge in match.groups()[1:])
        box = VoxelGrid.between((x0, y0, z0), (x1, y1, z1), level.grid.resolution_nm)
        if path != f"{match[1]}/{bounds_key(box.start, box.stop)}" or not level.has(box):
            return None
        voxels = level.read(box).reshape((*box.shape, self.channels), order="A")
        return Answer(self._encoded(voxels))

    def _encoded(self, voxels: Array) -> bytes:
        if voxels.dtype.kind == "i" and self.served_dtype.startswith("u"):
            if int(voxels.min(initial=0)) < 0:
                raise OverflowError(
                    f"Id {int(voxels.min())} of {self.name!r} is negative: Neuroglancer cannot show it."
                )
            voxels = voxels.view(self.served_dtype)
        voxels = np.asfortranarray(voxels.astype(self.served_dtype, copy=False))
        if self.encoding == "raw":
            return voxels.tobytes("F")
        return bytes(compressed_segmentation.compress(voxels, block_size=SEGMENTATION_BLOCK, order="F"))


def volume_of_layer(
    name: str, layer: Layer, labels: LabelRule | None = None, missing: Missing = "fill"
) -> ServedVolume:
    """Return the volume that serves all mips of a layer, with the ids that a rule maps them to."""
    mips = [mip.level for mip in layer.mips if not mip.is_placeholder]
    cutouts = [whole_layer(layer, level, labels=labels, missing=missing) for level in mips]
    kind: Kind = "segmentation" if labels is not None or layer.told_kind == "segmentation" else "image"
    return _of_cutouts(name, kind, cutouts)


def volumes_of_data(data: Any, resolution_nm: Sequence[float] | None = None, name: str = "") -> list[ServedVolume]:
    """Return the volumes that serve a dask or numpy array, a DataArray, or a dataset of image and segmentation.

    Parameters
    ----------
    data
        As for `to_zarr`. The cutout of a volume has also the volume's coarser mips.
    resolution_nm : sequence of 3 float, optional
        Voxel size of an array that does not know it; its voxel 0 is that of the world.
    name : str
        Name of the layer; by default that of the array.

    Raises
    ------
    ValueError, TypeError
        If the array has no place in the world, or is none.
    """
    given = None if resolution_nm is None else Vec3.of(triple("resolution_nm", resolution_nm, positive=True))
    return [_of_array(volume, name or volume.name, given) for volume in as_volumes(data)]


def _of_array(volume: Volume, name: str, given: Vec3[float] | None) -> ServedVolume:
    kind: Kind = "segmentation" if volume.labels else "image"
    if volume.source is not None:
        try:
            levels = source_levels(volume)
        except ValueError:  # has no coarser mip
            levels = (volume,)
        return _of_cutouts(name, kind, [level.source.cutout for level in levels if level.source is not None])
    if volume.resolution_nm is None and given is not None:
        volume = replace(volume, resolution_nm=given, translation_nm=given * 0.5)
    if volume.resolution_nm is None:
        raise ValueError(
            f"The array {name!r} has no place in the world: pass a DataArray with coordinates x, y, z in nm, or "
            "resolution_nm=(x, y, z)."
        )
    # Coordinates are of voxel centers; of a coarsened array the first edge may be within a voxel.
    first = volume.translation_nm.map(_first_edge, volume.resolution_nm)
    start = first.map(lambda edge: math.floor(edge + EDGE))
    shift = first.map(lambda edge, whole: 0.0 if edge - whole <= EDGE else float(edge - whole), start)
    grid = VoxelGrid(start, volume.shape, volume.resolution_nm)
    most = max(1, CHUNK_BYTES // volume.voxel_bytes)
    chunk = [max(axis) for axis in volume.array.chunks[:3]]
    while math.prod(chunk) > most:
        longest = chunk.index(max(chunk))
        chunk[longest] = -(-chunk[longest] // 2)

    def read(box: VoxelGrid) -> Array:
        region = region_between(box.start - start, box.stop - start)
        return np.asarray(volume.held[region] if volume.held is not None else volume.array[region].compute())

    channels = math.prod(volume.array.shape[3:])
    level = ServedLevel(grid, Vec3.of(chunk), read)
    return ServedVolume(name, kind, volume.array.dtype.name, channels, (level,), shift)


def _first_edge(center_nm: float, voxel_nm: float) -> Fraction:
    """Return the lower edge of the voxel with a center, in voxels."""
    return Fraction(repr(float(center_nm))) * ratio(1.0, voxel_nm) - Fraction(1, 2)


def _of_cutouts(name: str, kind: Kind, cutouts: Sequence[Cutout]) -> ServedVolume:
    levels = []
    for cutout in cutouts:
        rule = cutout.labels
        if rule is not None and rule.leaves_within is not None:
            cutout = replace(cutout, labels=replace(rule, leaves_within=None))
        levels.append(ServedLevel(cutout.target, cutout.mip.chunk_shape, CutoutArray(cutout).read))
    return ServedVolume(name, kind, cutouts[0].dtype.name, cutouts[0].channels, tuple(levels))
