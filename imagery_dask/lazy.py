"""Lazy arrays: a resolved cutout behind dask's and xarray's interfaces.

The only place that builds source graphs. Each is one symbolic layer over a small array-like (`CutoutArray`): opening
costs the same for ten blocks or ten billion, and dask pushes slices into the array-like, which reads what they cross
and no more.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Hashable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.grid import AXES, XYZ, VoxelGrid, edge_at_or_after, nearest_index
from imagery_dask.request import Cutout
from imagery_dask.sources import SourceHandle

__all__ = ["CutoutArray", "block_edges", "lazy_array", "lazy_dataarray", "source_of"]

# Large enough that a task is worth its scheduling (milliseconds), small enough to spread a cutout over workers.
BLOCK_BYTES = 16 * 2**20

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
    """

    def __init__(self, cutout: Cutout, squeeze: bool = False) -> None:
        self.cutout = cutout
        full = (*cutout.target.shape, cutout.channels)
        # One channel is no axis; several are the last one, and stay.
        axes = [0, 1, 2, 3] if cutout.channels > 1 else [0, 1, 2]
        self.axes = tuple(axis for axis in axes if not (squeeze and full[axis] == 1))
        self.shape = tuple(full[axis] for axis in self.axes)
        self.dtype = cutout.dtype
        self.ndim = len(self.axes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.cutout, self.axes)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return ("imagery_dask.CutoutArray", repr(self.cutout), self.axes)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        selection = self._selection(key)
        offset, shape, steps, channels = [0, 0, 0], list(self.cutout.target.shape), [1, 1, 1], slice(None)
        for axis, part in zip(self.axes, selection, strict=True):
            if axis == 3:
                channels = part if isinstance(part, slice) else slice(part, part + 1)
                continue
            first, last, steps[axis] = _span(part, self.cutout.target.shape[axis])
            offset[axis], shape[axis] = first, last - first
        block = self.read(self.cutout.target.crop(offset, shape))
        block = block[:: steps[0], :: steps[1], :: steps[2], channels]
        drop = tuple(
            axis
            for axis in range(4)
            if axis not in self.axes or not isinstance(selection[self.axes.index(axis)], slice)
        )
        return block.squeeze(axis=drop)

    def read(self, target: VoxelGrid) -> NDArray[Any]:
        """Voxels of a box of the target grid as (x, y, z, channel), Fortran order."""
        cutout = self.cutout
        source_nm = cutout.mip.grid.resolution_nm
        handle = SourceHandle(cutout.path, cutout.mip.level, cutout.missing)
        if target.resolution_nm == source_nm:
            return self._apply_labels(handle.read(target))
        if cutout.order == 1:
            return _read_linear(handle, target, cutout.mip.grid)
        box = target.at(source_nm)
        # Ids are masked and converted on source voxels, before there are more of them.
        block = self._apply_labels(handle.read(box))
        steps = target.steps_from(source_nm)
        indices = [
            nearest_index(target.start[axis], target.shape[axis], steps[axis]) - box.start[axis] for axis in range(3)
        ]
        return kernels.gather(block, indices)

    def _apply_labels(self, block: NDArray[Any]) -> NDArray[Any]:
        rule = self.cutout.labels
        if rule is None:
            return block
        if rule.keep is not None:
            block = kernels.keep_ids(block, rule.keep)
        if rule.mask_of is not None:
            return kernels.is_id(block, rule.mask_of)
        return kernels.to_int64(block) if rule.as_int64 else block

    def _selection(self, key: Any) -> list[slice | int]:
        parts = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            parts[at : at + 1] = [slice(None)] * (self.ndim - len(parts) + 1)
        parts += [slice(None)] * (self.ndim - len(parts))
        selection: list[slice | int] = []
        for part, size in zip(parts, self.shape, strict=True):
            if isinstance(part, slice):
                selection.append(part)
                continue
            index = operator.index(part)
            if not -size <= index < size:
                raise IndexError(f"Index {index} is out of bounds for an axis of {size} voxels.")
            selection.append(index % size)
        return selection


def _rebuild(cutout: Cutout, axes: tuple[int, ...]) -> CutoutArray:
    array = CutoutArray(cutout, squeeze=False)
    if axes != array.axes:
        array = CutoutArray(cutout, squeeze=True)
    return array


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
    source = CutoutArray(cutout, squeeze)
    edges = [*block_edges(cutout, BLOCK_BYTES), [0, cutout.channels]]
    chunks = tuple(tuple(b - a for a, b in pairwise(edges[axis])) for axis in source.axes)
    kind = "image" if cutout.labels is None else "mask" if cutout.labels.mask_of is not None else "segmentation"
    array = da.from_array(
        source,
        chunks=chunks,
        name=f"{kind}-mip{cutout.mip.level}-{tokenize(source)}",
        asarray=False,
        fancy=False,
        inline_array=True,
        meta=np.empty((0,) * source.ndim, dtype=source.dtype),
    )
    # The graph holds the array-like itself, so that this entry lives as long as the array.
    _sources[array.name] = source
    return array


def source_of(array: da.Array) -> CutoutArray | None:
    """Return the array-like behind an array, when it is a cutout as `lazy_array` made it."""
    return _sources.get(array.name)


def lazy_dataarray(cutout: Cutout, name: str) -> xr.DataArray:
    """Xarray view of a cutout: dims x, y, z (and channel), coordinates of voxel centres in nm."""
    target = cutout.target
    dims = (*AXES, "channel") if cutout.channels > 1 else AXES
    coords = {
        axis: (axis, target.centres_nm(index), {"units": "nm", "long_name": f"voxel centre, {axis}"})
        for index, axis in enumerate(AXES)
    }
    described = {
        "source": cutout.path,
        "mip": cutout.mip.level,
        "resolution_nm": list(target.resolution_nm),
        "voxel_offset": list(target.start),
    }
    return xr.DataArray(lazy_array(cutout, squeeze=False), dims=dims, coords=coords, attrs=described, name=name)


def block_edges(cutout: Cutout, block_bytes: int) -> tuple[list[int], list[int], list[int]]:
    """Edges of blocks along x, y, z, in target voxels from the cutout's start.

    Blocks are whole storage chunks (doubled until a block holds `block_bytes`) wherever the cutout's border does not
    cut them, so that no two blocks read the same chunk.
    """
    target = cutout.target
    source = cutout.mip.grid
    steps = target.steps_from(source.resolution_nm)
    voxel_bytes = np.dtype(cutout.stored_dtype).itemsize * cutout.channels
    shape = grow_block(cutout.mip.chunk_shape, source.shape, steps, block_bytes // voxel_bytes)
    x, y, z = (
        _axis_edges(target.start[axis], target.stop[axis], source.start[axis], shape[axis], steps[axis])
        for axis in range(3)
    )
    return x, y, z


def grow_block(
    unit: XYZ, extent: XYZ, steps: tuple[Fraction, Fraction, Fraction], voxels: float
) -> tuple[int, int, int]:
    """Double a unit of source voxels along its shortest axis while a block has at most `voxels` target voxels."""
    block = list(unit)
    while True:
        open_axes = [axis for axis in range(3) if block[axis] < extent[axis]]
        size = float(math.prod(Fraction(block[axis]) / steps[axis] for axis in range(3)))
        if not open_axes or 2 * size > voxels:
            return block[0], block[1], block[2]
        shortest = min(open_axes, key=lambda axis: block[axis] / steps[axis])
        block[shortest] *= 2


def _axis_edges(start: int, stop: int, origin: int, size: int, step: Fraction) -> list[int]:
    first = nearest_index(start, 1, step)[0]
    last = nearest_index(stop - 1, 1, step)[0]
    inner = range((int(first) - origin) // size + 1, (int(last) - origin) // size + 1)
    if step == 1:
        crossings = [origin + size * k for k in inner]
    else:
        crossings = [edge_at_or_after(origin + size * k, step) for k in inner]
    return [0, *sorted({edge - start for edge in crossings if start < edge < stop}), stop - start]


def _span(part: slice | int, size: int) -> tuple[int, int, int]:
    """First voxel, one past the last, and the step to take over the voxels between."""
    if not isinstance(part, slice):
        return part, part + 1, 1
    picked = range(*part.indices(size))
    if len(picked) == 0:
        return 0, 0, 1
    return min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1, picked.step


def _read_linear(handle: SourceHandle, target: VoxelGrid, volume: VoxelGrid) -> NDArray[Any]:
    """Interpolate a block; it reads one voxel of halo, clamped to the volume, so that blocks equal the whole."""
    steps = target.steps_from(volume.resolution_nm)
    taps = [kernels.linear_taps(target.start[axis], target.shape[axis], steps[axis]) for axis in range(3)]
    start = [int(max(volume.start[axis], left[0])) if len(left) else 0 for axis, (left, _) in enumerate(taps)]
    stop = [int(min(volume.stop[axis], left[-1] + 2)) if len(left) else 0 for axis, (left, _) in enumerate(taps)]
    box = VoxelGrid.between(start, stop, volume.resolution_nm)
    block = handle.read(box)
    if block.size == 0:
        return np.zeros((*target.shape, block.shape[3]), dtype=block.dtype, order="F")
    local = [(left - box.start[axis], weight) for axis, (left, weight) in enumerate(taps)]
    out = kernels.interpolate(block, local)
    for axis in range(3):
        nearest = nearest_index(target.start[axis], target.shape[axis], steps[axis])
        outside = (nearest < volume.start[axis]) | (nearest >= volume.stop[axis])
        if outside.any():
            out[(slice(None),) * axis + (outside,)] = 0
    return out
