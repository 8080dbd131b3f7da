"""Lazy arrays: a resolved cutout behind dask's and xarray's interfaces.

The only place that builds source graphs. Each is one symbolic layer over a small array-like (`CutoutArray`): opening
costs the same for ten blocks or ten billion, and dask pushes slices into the array-like, which reads what they cross
and no more.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from itertools import pairwise
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.array.core import slices_from_chunks
from dask.base import get_scheduler, tokenize
from dask.core import flatten
from distributed import Client, as_completed
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.arrays.chunking import block_edges
from imagery_dask.arrays.remap import read_objects
from imagery_dask.config import config
from imagery_dask.geometry.grid import AXES, VoxelGrid, nearest_index
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.moments import describe_moment
from imagery_dask.sources import Layout, SourceHandle

__all__ = ["CutoutArray", "described", "lazy_array", "lazy_block_edges", "lazy_dataarray", "source_of"]

# Large enough that a task is worth its scheduling (milliseconds), small enough to spread a cutout over workers.

Part = slice | int | NDArray[np.int64]

# The array-likes behind arrays made in this process, so that an export can read blocks without a graph.
_sources: weakref.WeakValueDictionary[str, CutoutArray] = weakref.WeakValueDictionary()


class CutoutArray:
    """Array-like whose slices are read from the volume: what a block of a lazy array computes.

    Parameters
    ----------
    cutout : Cutout
        What to read.
    squeeze : bool
        Drop axes of length 1, as the reference's cutouts do.
    layout : {"C", "F"}
        Memory order of what slices give. dask joins blocks in C order; decoders give Fortran order.
    """

    def __init__(self, cutout: Cutout, squeeze: bool = False, layout: Layout = "C") -> None:
        self.cutout, self.squeeze, self.layout = cutout, squeeze, layout
        full = (*cutout.target.shape, cutout.channels)
        # One channel is no axis; several are the last one, and stay.
        axes = [0, 1, 2, 3] if cutout.channels > 1 else [0, 1, 2]
        self.axes = tuple(axis for axis in axes if not (squeeze and full[axis] == 1))
        self.shape = tuple(full[axis] for axis in self.axes)
        self.dtype = cutout.dtype
        self.ndim = len(self.axes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cutout, self.squeeze, self.layout)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return ("imagery_dask.CutoutArray", repr(self.cutout), self.axes, self.layout)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        parts = self._parts(key)
        full = (*self.cutout.target.shape, self.cutout.channels)
        spans = [_span(parts.get(axis, slice(None)), full[axis]) for axis in range(4)]
        first = Vec3.of(first for first, _, _ in spans[:3])
        stop = Vec3.of(stop for _, stop, _ in spans[:3])
        # Chunks hold all channels, so that these are read whole.
        block = self.read(self.cutout.target.crop(first, stop - first), self.layout)[..., slice(*spans[3][:2])]
        # One axis at a time: dask's selections are orthogonal, numpy's index arrays are not.
        for axis in range(4):
            block = block[(slice(None),) * axis + (spans[axis][2],)]
        dropped = tuple(a for a in range(4) if a not in self.axes or not isinstance(parts[a], (slice, np.ndarray)))
        return block.squeeze(axis=dropped)

    def with_layout(self, layout: Layout) -> CutoutArray:
        """Return the same voxels in another memory order."""
        return CutoutArray(self.cutout, self.squeeze, layout)

    def read(self, target: VoxelGrid, layout: Layout = "F") -> NDArray[Any]:
        """Voxels of a box of the target grid as (x, y, z, channel), in Fortran or C order."""
        cutout = self.cutout
        source_nm = cutout.mip.grid.resolution_nm
        handle = SourceHandle(cutout.path, cutout.mip, cutout.missing)
        if target.resolution_nm == source_nm:
            return read_objects(handle, target, cutout.labels, layout)
        if cutout.order == 1:
            return _read_linear(handle, target, cutout.mip.grid, layout)
        box = target.at(source_nm)
        # Ids are masked and converted on source voxels, before there are more of them.
        block = read_objects(handle, box, cutout.labels, layout)
        steps = target.steps_from(source_nm)
        indices = [
            nearest_index(target.start[axis], target.shape[axis], steps[axis]) - box.start[axis] for axis in range(3)
        ]
        return kernels.gather(block, indices)

    def _parts(self, key: Any) -> dict[int, Part]:
        """Return what is selected along each axis of the volume: a slice, an index array or an integer."""
        given = list(key) if isinstance(key, tuple) else [key]
        for at, part in enumerate(given):
            if part is Ellipsis:
                given[at : at + 1] = [slice(None)] * (self.ndim - len(given) + 1)
                break
        if len(given) > self.ndim:
            raise IndexError(f"{len(given)} indices for an array of {self.ndim} axes.")
        given += [slice(None)] * (self.ndim - len(given))
        parts: dict[int, Part] = {}
        for axis, part, size in zip(self.axes, given, self.shape, strict=True):
            if not isinstance(part, slice):
                part = np.arange(size)[part]  # negative indices, lists and masks, with numpy's own checks
                part = part if part.ndim else int(part)
            parts[axis] = part
        return parts


class LazyCutout(da.Array):
    """The dask array of a cutout.

    Like any other, but when it is computed alone and whole, each block is put into the result as soon as it is there,
    in the decoders' order. dask's own way holds all blocks beside the result (on a cluster: on one worker) and joins
    them at the end, in C order, which takes as long as decoding where codecs are as fast as memory.
    """

    def compute(self, **kwargs: Any) -> NDArray[Any]:
        """Read the cutout; where it has several blocks, the result is in Fortran order."""
        source = source_of(self)
        scheduler = get_scheduler(collections=[self], scheduler=kwargs.get("scheduler"))
        if source is not None and self.npartitions > 1:
            if scheduler in (dask.threaded.get, dask.local.get_sync):
                name, filling = f"{self.name}-{uuid4().hex}", _Filling(source)
                return np.asarray(_from_source(_Filled, name, filling, self.chunks).compute(**kwargs))
            client = getattr(scheduler, "__self__", None)
            if isinstance(client, Client):
                return _gather(client, self, source)
        return np.asarray(super().compute(**kwargs))


class _Filling:
    """Array-like that puts what it reads into one array of its own."""

    def __init__(self, source: CutoutArray) -> None:
        self._source = source.with_layout("F")
        self.shape, self.dtype, self.ndim = source.shape, source.dtype, source.ndim
        self.voxels: NDArray[Any] = np.empty(self.shape, self.dtype, order="F")

    def __getitem__(self, key: Any) -> _Filling:
        self.voxels[key] = self._source[key]
        return self


class _Filled(da.Array):
    """Dask array over `_Filling`, whose result is there when its blocks have been computed."""

    def __dask_postcompute__(self) -> tuple[Any, tuple[Any, ...]]:
        return _filled_voxels, ()


def _gather(client: Client, array: da.Array, source: CutoutArray) -> NDArray[Any]:
    """Voxels of a cutout whose blocks a cluster reads, put in their places as they arrive."""
    decoded = _from_source(da.Array, f"{array.name}-decoded", source.with_layout("F"), array.chunks)
    blocks = client.compute(list(decoded.to_delayed().ravel()))
    places = {block.key: place for block, place in zip(blocks, slices_from_chunks(array.chunks), strict=True)}
    voxels = np.empty(array.shape, array.dtype, order="F")
    for block, part in as_completed(blocks, with_results=True, loop=client.loop):
        voxels[places[block.key]] = part
        block.release()
    return voxels


def _filled_voxels(blocks: Any) -> NDArray[Any]:
    first: _Filling = next(iter(flatten(blocks, container=list)))
    return first.voxels


def _from_source(kind: type[da.Array], name: str, source: CutoutArray | _Filling, chunks: Any) -> da.Array:
    """One symbolic layer over an array-like, as an array of a class."""
    meta = np.empty((0,) * source.ndim, dtype=source.dtype)
    plain = da.from_array(source, chunks=chunks, name=name, asarray=False, inline_array=True, meta=meta)
    return kind(plain.dask, plain.name, plain.chunks, meta=meta)


def lazy_array(cutout: Cutout, *, squeeze: bool = True) -> da.Array:
    """Dask array of a cutout.

    Parameters
    ----------
    cutout : Cutout
        What to read.
    squeeze : bool
        Drop axes of length 1.

    Returns
    -------
    dask.array.Array
        Axes x, y, z and, where there are several, channels. Its blocks begin and end on storage chunks.
    """
    # Copying root ids to C order takes as long as finding them; images are looked at more, and joined by dask.
    source = CutoutArray(cutout, squeeze, "C" if cutout.query is None else "F")
    edges = [*lazy_block_edges(cutout), [0, cutout.channels]]
    chunks = tuple(tuple(b - a for a, b in pairwise(edges[axis])) for axis in source.axes)
    kind = "image" if cutout.labels is None else "mask" if cutout.labels.mask_of is not None else "segmentation"
    moment = "" if cutout.query is None else f"-{describe_moment(cutout.query.timestamp)}"
    name = f"{kind}-mip{cutout.mip.level}{moment}-{tokenize(source)}"
    # Equal arrays share one array-like. Their graphs hold it, so that this entry lives as long as any of them.
    source = _sources.setdefault(name, source)
    return _from_source(LazyCutout, name, source, chunks)


def lazy_block_edges(cutout: Cutout) -> tuple[list[int], list[int], list[int]]:
    """Edges of the blocks of a lazy array along x, y, z, in voxels from its start."""
    return block_edges(cutout, config.get("lazy.block_bytes"))


def source_of(array: da.Array) -> CutoutArray | None:
    """Return the array-like behind an array, when it is a cutout as `lazy_array` made it."""
    return _sources.get(array.name)


def lazy_dataarray(cutout: Cutout, name: str) -> xr.DataArray:
    """Xarray view of a cutout: dims x, y, z (and channel), coordinates of voxel centres in nm."""
    target, array = cutout.target, lazy_array(cutout, squeeze=False)
    dims = (*AXES, "channel") if cutout.channels > 1 else AXES
    coords = {
        axis: (axis, target.centres_nm(index), {"units": "nm", "long_name": f"voxel centre, {axis}"})
        for index, axis in enumerate(AXES)
    }
    return xr.DataArray(array, dims=dims, coords=coords, attrs=described(cutout), name=name)


def described(cutout: Cutout) -> dict[str, Any]:
    """Where a cutout comes from, in plain values: attributes of arrays and stores."""
    target, query = cutout.target, cutout.query
    found = {
        "source": cutout.path,
        "mip": cutout.mip.level,
        "resolution_nm": list(target.resolution_nm),
        "voxel_offset": list(target.start),
    }
    if query is not None:
        found |= {"timestamp": describe_moment(query.timestamp), "timestamp_unix_s": query.timestamp}
        found |= {} if query.version is None else {"materialization_version": query.version}
    return found


def _span(part: Part, size: int) -> tuple[int, int, slice | NDArray[np.int64]]:
    """First voxel to read, one past the last, and what to take of the voxels between."""
    if isinstance(part, int):
        return part, part + 1, slice(None)
    picked = part if isinstance(part, np.ndarray) else range(*part.indices(size))
    if len(picked) == 0:
        return 0, 0, slice(None)
    if isinstance(picked, range):
        low, high = sorted((picked[0], picked[-1]))
        return low, high + 1, slice(None, None, picked.step)
    return int(picked.min()), int(picked.max()) + 1, picked - picked.min()


def _read_linear(handle: SourceHandle, target: VoxelGrid, volume: VoxelGrid, layout: Layout) -> NDArray[Any]:
    """Interpolate a block; it reads one voxel of halo, clamped to the volume, so that blocks equal the whole."""
    steps = target.steps_from(volume.resolution_nm)
    taps = [kernels.linear_taps(target.start[axis], target.shape[axis], steps[axis]) for axis in range(3)]
    start = [int(max(volume.start[axis], left[0])) if len(left) else 0 for axis, (left, _) in enumerate(taps)]
    stop = [int(min(volume.stop[axis], left[-1] + 2)) if len(left) else 0 for axis, (left, _) in enumerate(taps)]
    box = VoxelGrid.between(start, stop, volume.resolution_nm)
    block = handle.read(box, layout)
    if block.size == 0:
        return np.zeros((*target.shape, block.shape[3]), dtype=block.dtype, order=layout)
    local = [(left - box.start[axis], weight) for axis, (left, weight) in enumerate(taps)]
    out = kernels.interpolate(block, local)
    for axis in range(3):
        nearest = nearest_index(target.start[axis], target.shape[axis], steps[axis])
        outside = (nearest < volume.start[axis]) | (nearest >= volume.stop[axis])
        if outside.any():
            out[(slice(None),) * axis + (outside,)] = 0
    return out
