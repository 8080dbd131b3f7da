"""Inputs of writers in one form, `Volume`: cutouts, dask and numpy arrays, xarray objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from imagery_dask.annotations import Array
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.guards import no_limit
from imagery_dask.arrays.lazy import lazy_array
from imagery_dask.arrays.origins import source_of, sources_in
from imagery_dask.export.core.block_reads import ComputeBlock, HeldBlock, ReadCutout
from imagery_dask.geometry.block_plan import BlockPlan, SourceChunks, plan_blocks
from imagery_dask.geometry.grid import AXES, XYZ, Region, VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.labels import Kind, are_ids
from imagery_dask.sources import open_volume
from imagery_dask.urls import redacted
from imagery_dask.validate import choice, triple

__all__ = ["LABELS_GROUP", "Volume", "as_volumes", "source_levels"]

Triple = tuple[float, float, float]
LABELS_GROUP = "labels/segmentation/"


@dataclass(frozen=True)
class Volume:
    """An array to write, with axes x, y, z(, channel), and its position in the world.

    Parameters
    ----------
    name : str
        ``"image"`` or ``"segmentation"``, or the name of a DataArray.
    array : dask.array.Array
        Three axes, or four with channels last.
    group : str
        Group of the store that it goes to, "" for the root, ending in "/" otherwise.
    source : CutoutArray or None
        The cutout that the array is, unchanged; its blocks are read without a graph.
    resolution_nm : tuple of 3 float or None
        Voxel size; None when the array has no position in the world.
    translation_nm : tuple of 3 float
        Centre of the first voxel.
    labels : bool
        Whether voxels are ids, which have a most frequent one but no mean: those of a segmentation, and integers of 32
        bits and more unless the caller says that they are an image.
    held : numpy.ndarray or None
        The voxels, when the caller has them in memory; a graph would send all of them with every block.
    variable : bool
        Whether it is a variable of a dataset; some formats write these into folders.
    given_kind : {"image", "segmentation"} or None
        What the caller says that voxels are; `labels` follows it.
    relabel : bool
        Whether ids are written as compact ids of uint32 (`imagery_dask.export.multiscale.compact_ids`).
    """

    name: str
    array: da.Array
    group: str
    source: CutoutArray | None
    resolution_nm: Vec3[float] | None
    translation_nm: Vec3[float]
    labels: bool
    held: Array | None = None
    variable: bool = False
    given_kind: Kind | None = None
    relabel: bool = False

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Data type in which voxels are stored, before what a format changes."""
        return np.dtype(np.uint32) if self.relabel else np.dtype(self.array.dtype)

    @cached_property
    def shape(self) -> Vec3[int]:
        """Voxels along x, y, z."""
        return Vec3.of(self.array.shape[:3]).map(int)

    @cached_property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel with all its channels."""
        return int(self.array.dtype.itemsize * math.prod(self.array.shape[3:]))

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels."""
        return self.voxel_bytes * math.prod(self.shape)

    @cached_property
    def read_bytes(self) -> float:
        """Bytes that are held for a voxel of the result while it is read."""
        return self.voxel_bytes * (1.0 if self.source is None else _amplification(self.source))

    @property
    def is_assumed(self) -> bool:
        """Whether voxels of an image layer are taken for ids because of their data type alone."""
        cutout = None if self.source is None else self.source.cutout
        is_told = cutout is None or cutout.labels is not None or cutout.kind is not None
        return self.labels and self.given_kind is None and not is_told

    @property
    def chosen_kind(self) -> Kind | None:
        """What voxels are, where the first version of this package took them for something else, or the caller says so.

        It determines voxels of coarser levels; others follow from the other fields of a plan, as they always did.
        """
        before = _are_ids(self.array.dtype, self.name) if self.source is None else self.source.cutout.labels is not None
        return None if self.labels == before else "segmentation" if self.labels else "image"

    @property
    def channels(self) -> bool:
        """Whether there is a channel axis."""
        return bool(self.array.ndim == 4)

    @property
    def reads_parts(self) -> bool:
        """Whether a block can be read part by part, so that a task need not hold it."""
        return self.source is not None and self.source.reads_parts and not self.relabel

    @property
    def sources(self) -> list[CutoutArray]:
        """The cutouts that it is computed from."""
        return sources_in(self.array) if self.source is None else [self.source]

    def plan(self, output_chunks: XYZ, block_bytes: int, most_bytes: int | None = None) -> BlockPlan:
        """Blocks for an output of these chunks, of `block_bytes`, or of `most_bytes` where that reads chunks once."""
        chunks = self.shape.minimum(output_chunks)
        graph: Sequence[SourceChunks | None] = (None, None, None)
        if self.source is None:
            storage = [_dask_chunks(self.array.chunks[axis]) for axis in range(3)]
        else:
            cutout = self.source.cutout
            storage = _grids(self.source, cutout.mip.chunk_shape)
            if cutout.unit != cutout.mip.chunk_shape:
                graph = _grids(self.source, cutout.unit)
        voxels, most = _voxels(block_bytes, self.read_bytes), most_bytes and _voxels(most_bytes, self.read_bytes)
        return plan_blocks(self.shape, chunks, storage, voxels, graph, most)

    def held_bytes(self, plan: BlockPlan) -> int:
        """Return the most bytes that a task holds: a block, what it is computed from, and what it is encoded to."""
        voxels = plan.largest_piece.prod()
        block = voxels * self.voxel_bytes
        if self.source is not None:
            whole = int(voxels * self.read_bytes) + 2 * block
            if plan.part is None:
                return whole
            # Storage chunks are held until the last part that crosses them; what is written, or made of it, meanwhile.
            x, y, z = plan.largest_piece
            depth = min(z, plan.part.z + 2 * self.source.cutout.mip.chunk_shape[2])
            return min(whole, int(x * y * depth * self.read_bytes) + block)
        if self.held is not None:
            return 2 * block
        crossed = Vec3.of(self.array.chunks[:3]).map(_longest, plan.edges)
        return crossed.prod() * self.voxel_bytes + 2 * block

    def reader(self, region: Region) -> Callable[[], Array]:
        """Return a picklable function that reads the voxels of a region."""
        if self.source is not None:
            return ReadCutout(self.source, region)
        if self.held is not None:
            return HeldBlock(np.array(self.held[region]))
        with no_limit():
            (part,) = dask.optimize(self.array[region])
        return ComputeBlock(part)


def as_volumes(
    data: Any,
    resolution_nm: Sequence[float] | None = None,
    translation_nm: Sequence[float] | None = None,
    kind: Kind | Mapping[str, Kind] | None = None,
) -> list[Volume]:
    """Bring anything that can be written to `Volume` form; `kind` says what voxels are, by name for a dataset.

    Raises
    ------
    TypeError, ValueError
        The data cannot be written; the message tells what is expected.
    """
    if isinstance(data, xr.Dataset):
        unknown = sorted(set(map(str, data.data_vars)) - {"image", "segmentation"})
        if unknown or not data.data_vars:
            raise ValueError(
                f"A dataset to write has the variables 'image' and 'segmentation'; got {list(data.data_vars)}. "
                "Write other variables one at a time."
            )
        groups = {"image": "", "segmentation": LABELS_GROUP if "image" in data.data_vars else ""}
        if kind is not None and not isinstance(kind, Mapping):
            if len(data.data_vars) > 1:
                raise ValueError(f"kind of a dataset names its variables: kind={{'image': {kind!r}}}.")
            kind = {str(name): kind for name in data.data_vars}
        if "segmentation" in data.data_vars:
            _check_labels(data["segmentation"])
        volumes = [
            replace(_volume(data[name], name, groups[name], resolution_nm, translation_nm), variable=True)
            for name in groups
            if name in data.data_vars
        ]
    else:
        volumes = [_volume(data, None, "", resolution_nm, translation_nm)]
    kinds = dict(kind) if isinstance(kind, Mapping) else {} if kind is None else {volumes[0].name: kind}
    unknown = sorted(set(kinds) - {"image", "segmentation", *(volume.name for volume in volumes)})
    if unknown:
        raise ValueError(f"kind names {unknown}; there is {' and '.join(volume.name for volume in volumes)}.")
    return [_of_kind(volume, kinds.get(volume.name)) for volume in volumes]


def source_levels(volume: Volume) -> tuple[Volume, ...]:
    """Return a volume, and the same region of every coarser mip of its source.

    Raises
    ------
    ValueError
        The volume is not a cutout, or its source has no coarser mip.
    """
    if volume.source is None:
        raise ValueError(
            f"levels='source' copies mips of a volume, and the {volume.name} is not a cutout as it was made; pass a "
            "number of levels, or 'auto'."
        )
    cutout = volume.source.cutout
    if cutout.labels is not None:  # leaves were to be asked for within the region as it is at the first level
        cutout = replace(cutout, labels=replace(cutout.labels, leaves_within=None))
    fine = cutout.target.resolution_nm
    volumes = [volume]
    for mip in open_volume(cutout.path).layer.mips:
        coarse = mip.grid.resolution_nm
        if mip.is_placeholder:  # has no data
            continue
        if mip.level >= cutout.mip.level and coarse != fine and fine.all_le(coarse):
            target = cutout.target.at(coarse)
            array = lazy_array(replace(cutout, mip=mip, target=target), squeeze=False)
            source = source_of(array)
            volumes.append(
                replace(
                    volume, array=_three_axes(array), source=source, resolution_nm=target.resolution_nm,
                    translation_nm=target.translation_nm,
                )
            )  # fmt: skip
    if len(volumes) == 1:
        raise ValueError(f"levels='source': {redacted(cutout.path)!r} has no mip coarser than {fine} nm; pass 'auto'.")
    return tuple(volumes)


def _volume(data: Any, name: str | None, group: str, resolution: object, translation: object) -> Volume:
    own: tuple[Triple | None, Triple] = (None, (0.0, 0.0, 0.0))
    if isinstance(data, xr.DataArray):
        data = _ordered(data)
        name, own = name or str(data.name or "image"), _place(data)
        data = data.data
    if isinstance(data, (np.ndarray, np.generic, da.Array)) and not data.dtype.isnative:
        data = data.astype(data.dtype.newbyteorder("="))  # codecs take no other
    held = None
    if isinstance(data, (np.ndarray, np.generic)):
        held = np.atleast_1d(data)
        held = held.reshape(held.shape + (1,) * (3 - held.ndim))
        data = da.from_array(held)
    if not isinstance(data, da.Array):
        raise TypeError(f"Expected a dask or numpy array, a DataArray or a Dataset; got {type(data).__name__}.")
    source = source_of(data)
    if source is not None:
        data = lazy_array(source.cutout, squeeze=False)
        source = source_of(data)
        if source is not None:
            own = _exact_place(own, source.cutout.target)
    array = _three_axes(data)
    _check(array)
    resolution_nm = own[0] if resolution is None else triple("resolution_nm", resolution, positive=True)
    translation_nm = Vec3.of(own[1] if translation is None else triple("translation_nm", translation))
    labels = _are_ids(array.dtype, name) if source is None else source.cutout.holds_ids
    default = "segmentation" if source is not None and source.cutout.labels is not None else "image"
    voxel_nm = None if resolution_nm is None else Vec3.of(resolution_nm)
    return Volume(name or default, array, group, source, voxel_nm, translation_nm, labels, held)


def _are_ids(dtype: np.dtype[Any], name: str | None) -> bool:
    """Whether voxels of an array that is no cutout are ids."""
    return are_ids(dtype) or (dtype.kind in "iu" and name == "segmentation")


def _of_kind(volume: Volume, kind: Kind | None) -> Volume:
    """Return a volume whose voxels are what the caller says that they are."""
    if kind is None:
        return volume
    dtype, is_image = volume.array.dtype, choice("kind", kind, ("image", "segmentation")) == "image"
    segmented = volume.group == LABELS_GROUP or (volume.source is not None and volume.source.cutout.labels is not None)
    if is_image and (segmented or dtype.kind == "b"):
        raise ValueError(
            f"kind='image': the {volume.name} ({dtype}) is {'a mask' if dtype.kind == 'b' else 'a segmentation'}, and "
            "ids have no mean. Pass a layer of intensities as image_source."
        )
    if not is_image and dtype.kind not in "iub":
        raise ValueError(f"kind='segmentation': ids are integers; the {volume.name} is {dtype}.")
    return replace(volume, labels=not is_image, given_kind=kind)


def _voxels(block_bytes: float, voxel_bytes: float) -> int:
    return max(1, int(block_bytes / voxel_bytes))


def _exact_place(own: tuple[Triple | None, Triple], target: VoxelGrid) -> tuple[Triple | None, Triple]:
    """Position of a cutout: its own, which is exact, unless the caller's coordinates differ."""
    is_given = own[0] is not None and not (
        np.allclose(own[0], target.resolution_nm)
        # Of a voxel, however far from the origin.
        and np.allclose(np.divide(np.subtract(own[1], target.translation_nm), target.resolution_nm), 0, atol=1e-3)
    )
    return own if is_given else (target.resolution_nm, target.translation_nm)


def _ordered(data: xr.DataArray) -> xr.DataArray:
    missing = [axis for axis in AXES if axis not in data.dims]
    if missing:
        data = data.expand_dims(missing)
    others = [dim for dim in data.dims if dim not in AXES]
    if len(others) > 1:
        raise ValueError(f"A DataArray to write has dims x, y, z and at most one more; got {data.dims}.")
    return data.transpose(*AXES, *others)


def _place(data: xr.DataArray) -> tuple[Triple | None, Triple]:
    """Resolution and translation from a DataArray's coordinates (voxel centres, evenly spaced) and attributes."""
    listed = data.attrs.get("resolution_nm")
    resolution: list[float] = []
    translation: list[float] = []
    for axis, name in enumerate(AXES):
        values = np.atleast_1d(data.coords[name].values) if name in data.coords else np.array([])
        step = None if listed is None else float(listed[axis])
        if len(values) > 1:
            steps = np.diff(values.astype(np.float64))
            if not np.allclose(steps, steps[0]) or steps[0] <= 0:
                raise ValueError(f"Coordinate {name!r} is not evenly spaced upwards: it cannot be written as OME-Zarr.")
            # The attribute is exact; coordinates of a strided or coarsened array tell another step, and win.
            step = step if step is not None and np.isclose(steps[0], step) else float(steps[0])
        if step is None:
            return None, (0.0, 0.0, 0.0)
        resolution.append(step)
        translation.append(float(values[0]) if len(values) else 0.0)
    return (resolution[0], resolution[1], resolution[2]), (translation[0], translation[1], translation[2])


def _three_axes(array: da.Array) -> da.Array:
    if not 1 <= array.ndim <= 4:
        raise ValueError(f"An array to write has axes x, y, z and optionally channels; got shape {array.shape}.")
    return array[(..., *[None] * (3 - array.ndim))] if array.ndim < 3 else array


def _check_labels(labels: xr.DataArray) -> None:
    if labels.dtype.kind not in "iu" or set(labels.dims) - set(AXES):
        raise ValueError(
            f"The variable 'segmentation' holds integer ids along x, y and z; got {labels.dtype} along "
            f"{', '.join(map(str, labels.dims))}."
        )


def _check(array: da.Array) -> None:
    if any(math.isnan(size) for size in array.shape):
        raise ValueError("The array's shape is not known; call compute_chunk_sizes() first.")
    if array.size == 0:
        raise ValueError(f"The array is empty (shape {array.shape}); there is nothing to write.")
    if isinstance(array._meta, np.ma.MaskedArray):
        raise TypeError("The array is masked; say what is written under the mask: da.ma.filled(array, 0).")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Voxels are numbers; got dtype {array.dtype}.")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise TypeError(f"No format holds {array.dtype}; convert it first: array.astype('float64').")


def _grids(source: CutoutArray, chunk: XYZ) -> list[SourceChunks | None]:
    """Grid of chunks of a cutout's source along each axis, where their edges fall on voxels of the target."""
    grid, target = source.cutout.mip.grid, source.cutout.target
    grids: list[SourceChunks | None] = []
    for axis, step in enumerate(target.steps_from(grid.resolution_nm)):
        size, origin = chunk[axis] / step, grid.start[axis] / step
        if size.denominator != 1 or origin.denominator != 1:
            grids.append(None)
        else:
            grids.append(SourceChunks(int(size), int(origin - target.start[axis]) % int(size)))
    return grids


def _longest(chunks: tuple[int, ...], edges: tuple[int, ...]) -> int:
    """Most voxels along an axis of the chunks that a block crosses."""
    stops = np.cumsum(chunks)
    starts = stops - chunks
    first = np.searchsorted(stops, edges[:-1], side="right")
    last = np.searchsorted(starts, edges[1:], side="left") - 1
    return int((stops[last] - starts[first]).max())


def _dask_chunks(chunks: tuple[int, ...]) -> SourceChunks | None:
    """Chunks of a dask array along an axis, where all but the first and the last (which may be cut) are equal."""
    size = max(chunks)
    if any(chunk != size for chunk in chunks[1:-1]) or len(chunks) == 1:
        return SourceChunks(int(size)) if len(chunks) == 1 else None
    return SourceChunks(int(size), int(chunks[0] % size))


def _amplification(source: CutoutArray) -> float:
    """Source bytes that are held for a byte of the result, at least 1."""
    cutout = source.cutout
    steps = cutout.target.steps_from(cutout.mip.grid.resolution_nm)
    stored = np.dtype(cutout.stored_dtype).itemsize / source.dtype.itemsize
    return max(1.0, stored * float(math.prod(steps)))
