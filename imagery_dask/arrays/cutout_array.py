"""Array-likes over a resolved cutout: their slices are read from the volume, and nothing else is."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.arrays.remap import apply_rule, read_objects
from imagery_dask.geometry.grid import VoxelGrid, nearest_index
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout
from imagery_dask.sources import Layout, NotKept, Once, SourceHandle
from imagery_dask.sources.volumes.encoded_block import Block, EncodedBlock

__all__ = ["CutoutArray", "CutoutSlice", "basic_parts"]

Part = slice | int | NDArray[np.int64]
BASIC = (slice, int, np.integer, EllipsisType)
WHOLE = (slice(None), slice(None, None, 1))


@dataclass(frozen=True, slots=True)
class _Selected:
    """What an index selects: the voxels and channels to read, and which of them, along each axis."""

    box: VoxelGrid
    # Storage chunks hold all channels, so all are read.
    channels: slice
    picked: list[slice | NDArray[np.int64]]
    #: Axes of length 1 that the result does not have.
    dropped: tuple[int, ...]


class CutoutArray:
    """Array-like whose slices are read from the volume: what a block of a lazy array computes.

    Parameters
    ----------
    cutout : Cutout
        What to read.
    squeeze : bool
        Drop axes of length 1, as `imageryclient` does.
    layout : {"C", "F"}
        Memory order of the blocks that slices return. dask joins blocks in C order; decoders return Fortran order.
    """

    def __init__(self, cutout: Cutout, squeeze: bool = False, layout: Layout = "C", once: Once | None = None) -> None:
        self.cutout, self.squeeze, self.layout = cutout, squeeze, layout
        # Masks of one cutout are one array here, however many there are.
        is_mask = cutout.labels is not None and cutout.labels.mask_of is not None
        self._once = once or (Once.of(_key(cutout)) if is_mask else Once())
        full = (*cutout.target.shape, cutout.channels)
        # A single channel has no axis; several are the last axis, which is never squeezed.
        axes = [0, 1, 2, 3] if cutout.channels > 1 else [0, 1, 2]
        self.axes = tuple(axis for axis in axes if not (squeeze and full[axis] == 1))
        self.shape = tuple(full[axis] for axis in self.axes)
        self.dtype = cutout.dtype
        self.ndim = len(self.axes)

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickled, (self.cutout, self.squeeze, self.layout)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        kind: tuple[Hashable, ...] = () if self.cutout.kind is None else (self.cutout.kind,)
        kind = (*kind, "downsampled") if self.cutout.downsampled else kind
        query = self.cutout.query
        kind = kind if query is None or query.stored is None else (*kind, query.stored)
        moment = self.cutout.supervoxels_at
        kind = kind if moment is None else (*kind, "supervoxels at", moment)
        return ("imagery_dask.CutoutArray", repr(self.cutout), self.axes, self.layout, *kind)

    def __getitem__(self, key: Any) -> Array:
        return self._taken(key, self.layout)

    def kept(self, key: Any) -> Array | None:
        """Return a slice in Fortran order, if this process keeps all storage chunks that it crosses."""
        try:
            return np.asarray(self._taken(key, "F", kept_only=True), order="F")
        except NotKept:
            return None

    def read_into(self, key: Any, out: Array, keeps: bool = True) -> None:
        """Read a slice into an array of its shape, into which voxels are decoded, and mapped by stored tables.

        Without `keeps`, those do not go through the cache of this process.
        """
        cutout, selected = self.cutout, self._selected(key)
        is_whole = all(picked in WHOLE for picked in selected.picked) and selected.channels == slice(0, cutout.channels)
        if self.reads_into and is_whole:
            labels = cutout.labels
            is_signed = labels is not None and labels.as_int64
            voxels = np.expand_dims(out.view(np.uint64) if is_signed else out, selected.dropped)
            rule = labels if labels is not None and labels.takes_stored_roots else None
            read = read_objects(self._handle(keeps=keeps), selected.box, rule, "F", self._once, voxels)
            if not np.may_share_memory(read, voxels):  # of a table that has not opened at once
                voxels[...] = read
            if is_signed and rule is None:
                kernels.to_int64(voxels)  # which raises if there is an id that is none
        else:
            out[...] = self[key]

    @property
    def reads_stored(self) -> bool:
        """Whether voxels are those that are stored, but for the sign of ids."""
        labels, dtype = self.cutout.labels, self.cutout.stored_dtype
        keeps_ids = labels is None or (labels.keeps_ids and (not labels.as_int64 or dtype == "uint64"))
        return self.reads_parts and keeps_ids

    @property
    def reads_into(self) -> bool:
        """Whether `read_into` needs no array beside its result: voxels that are stored, or have roots in a table."""
        cutout = self.cutout
        if self.reads_stored or cutout.labels is None or not cutout.labels.takes_stored_roots:
            return self.reads_stored
        return cutout.target.resolution_nm == cutout.mip.grid.resolution_nm and cutout.stored_dtype == "uint64"

    def _taken(self, key: Any, layout: Layout, kept_only: bool = False) -> Array:
        selected = self._selected(key)
        block = self.read(selected.box, layout, kept_only)[..., selected.channels]
        # One axis at a time: dask's selections are orthogonal, numpy's index arrays are not.
        for axis, picked in enumerate(selected.picked):
            block = block[(slice(None),) * axis + (picked,)]
        return block.squeeze(axis=selected.dropped)

    def _selected(self, key: Any) -> _Selected:
        parts = self._parts(key)
        full = (*self.cutout.target.shape, self.cutout.channels)
        spans = [_span(parts.get(axis, slice(None)), full[axis]) for axis in range(4)]
        first = Vec3.of(first for first, _, _ in spans[:3])
        stop = Vec3.of(stop for _, stop, _ in spans[:3])
        return _Selected(
            self.cutout.target.crop(first, stop - first),
            slice(*spans[3][:2]),
            [picked for _, _, picked in spans],
            tuple(a for a in range(4) if a not in self.axes or not isinstance(parts[a], (slice, np.ndarray))),
        )

    def select(self, parts: Sequence[range | int]) -> CutoutSlice:
        """Select voxels along each axis by ranges and integers; nothing is read."""
        return CutoutSlice(self, tuple(parts))

    def with_layout(self, layout: Layout) -> CutoutArray:
        """Return the same voxels in another memory order."""
        return CutoutArray(self.cutout, self.squeeze, layout, self._once)

    def read(self, target: VoxelGrid, layout: Layout = "F", kept_only: bool = False) -> Array:
        """Read a box of the target grid as (x, y, z, channel), in Fortran or C order."""
        cutout = self.cutout
        source_nm = cutout.mip.grid.resolution_nm
        handle = self._handle(kept_only)
        if target.resolution_nm == source_nm:
            return read_objects(handle, target, cutout.labels, layout, self._once)
        if cutout.downsampled:
            return _read_downsampled(handle, target, cutout, layout)
        if cutout.order == 1:
            return _read_linear(handle, target, cutout.mip.grid, layout)
        box = target.at(source_nm)
        # Ids are masked and converted on source voxels, before resizing multiplies them.
        block = read_objects(handle, box, cutout.labels, layout, self._once)
        steps = target.steps_from(source_nm)
        indices = [
            nearest_index(target.start[axis], target.shape[axis], steps[axis]) - box.start[axis] for axis in range(3)
        ]
        return kernels.gather(block, indices)

    @property
    def reads_parts(self) -> bool:
        """Whether `read_parts` can read it: voxels as they are stored, whose ids no server is asked for."""
        cutout = self.cutout
        is_stored = cutout.target.resolution_nm == cutout.mip.grid.resolution_nm
        return is_stored and (cutout.labels is None or cutout.labels.query is None)

    def read_parts(self, targets: Sequence[VoxelGrid], encoded: bool = False) -> Iterator[Block]:
        """Yield boxes of the target grid as (x, y, z, channel), in Fortran order, reading each storage chunk once.

        With `encoded`, boxes that are one storage chunk are yielded as they are stored, with the ids that are stored.
        """
        cutout = self.cutout
        for block in self._handle().read_parts(targets, encoded):
            if cutout.labels is None or isinstance(block, EncodedBlock):
                yield block
            else:
                yield apply_rule(block, cutout.labels)

    def _handle(self, kept_only: bool = False, keeps: bool = True) -> SourceHandle:
        cutout = self.cutout
        return SourceHandle(cutout.path, cutout.mip, cutout.missing, kept_only, keeps, cutout.supervoxels_at)

    def _parts(self, key: Any) -> dict[int, Part]:
        """Return what is selected along each axis of the volume: a slice, an index array or an integer."""
        parts: dict[int, Part] = {}
        for axis, part, size in zip(self.axes, _of_each_axis(key, self.ndim), self.shape, strict=True):
            if not isinstance(part, slice):
                part = np.arange(size)[part]  # negative indices, lists and masks, with numpy's own checks
                part = part if part.ndim else int(part)
            parts[axis] = part
        return parts


def _unpickled(cutout: Cutout, squeeze: bool, layout: Layout) -> CutoutArray:
    return CutoutArray(cutout, squeeze, layout, Once.of(_key(cutout)))


def _key(cutout: Cutout) -> Hashable:
    """Return what the masks of a cutout have in common."""
    rule = cutout.labels
    return cutout if rule is None else replace(cutout, labels=replace(rule, mask_of=None))


class CutoutSlice:
    """Array-like of a part of a `CutoutArray`, selected by slices and integers; it reads nothing when it is made.

    Parameters
    ----------
    source : CutoutArray
        The whole.
    parts : tuple of range or int
        Voxels along each axis of the whole; an integer drops the axis.
    """

    def __init__(self, source: CutoutArray, parts: tuple[range | int, ...]) -> None:
        self.source, self.parts = source, parts
        self.shape = tuple(len(part) for part in parts if isinstance(part, range))
        self.dtype = source.dtype
        self.ndim = len(self.shape)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return ("imagery_dask.CutoutSlice", self.source.__dask_tokenize__(), self.parts)

    @property
    def reads_into(self) -> bool:
        """Whether boxes of it are boxes of stored voxels, which are decoded into a result, and mapped there."""
        whole = [part.step == 1 for part in self.parts if isinstance(part, range)]
        channels = self.parts[-1] if self.source.cutout.channels > 1 else range(1)
        return self.source.reads_into and all(whole) and channels == range(self.source.cutout.channels)

    def with_layout(self, layout: Layout) -> CutoutSlice:
        """Return the same voxels in another memory order."""
        return CutoutSlice(self.source.with_layout(layout), self.parts)

    def kept(self) -> Array | None:
        """Return the voxels in Fortran order, if this process keeps all storage chunks that they are in."""
        return self.source.kept(tuple(_slice_of(part) if isinstance(part, range) else part for part in self.parts))

    def select(self, parts: Sequence[range | int]) -> CutoutSlice:
        """Select voxels along each axis of this part by ranges and integers; nothing is read."""
        inner = iter(parts)
        return CutoutSlice(
            self.source, tuple(_within(part, next(inner)) if isinstance(part, range) else part for part in self.parts)
        )

    def __getitem__(self, key: tuple[slice, ...]) -> Array:
        return self.source[self._of_source(key)]

    def read_into(self, key: tuple[slice, ...], out: Array, keeps: bool = True) -> None:
        """Read a slice into an array of its shape, as `CutoutArray.read_into`."""
        self.source.read_into(self._of_source(key), out, keeps)

    def _of_source(self, key: tuple[slice, ...]) -> tuple[slice | int, ...]:
        inner = iter(key)
        return tuple(_slice_of(part[next(inner)]) if isinstance(part, range) else part for part in self.parts)


def basic_parts(key: Any, shape: Sequence[int]) -> list[range | int] | None:
    """Return what slices and integers select along each axis; None if there is something else among them."""
    given = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, BASIC) and not isinstance(part, bool) for part in given):
        return None
    along = zip(shape, _of_each_axis(key, len(shape)), strict=True)
    try:
        return [range(size)[part] for size, part in along]
    except TypeError:  # dask makes slices of whole floats itself
        return None


def _of_each_axis(key: Any, ndim: int) -> list[Any]:
    """Return the parts of an index, one for each axis, with whole axes where it has none or an ellipsis."""
    given = list(key) if isinstance(key, tuple) else [key]
    for at, part in enumerate(given):
        if part is Ellipsis:
            given[at : at + 1] = [slice(None)] * (ndim - len(given) + 1)
            break
    if len(given) > ndim:
        raise IndexError(f"{len(given)} indices for an array of {ndim} axes.")
    return given + [slice(None)] * (ndim - len(given))


def _within(whole: range, part: range | int) -> range | int:
    """Return what a range, or an integer, selects of a range."""
    return whole[_slice_of(part)] if isinstance(part, range) else whole[part]


def _slice_of(picked: range) -> slice:
    """Return the slice that selects the indices of a range."""
    if not picked:
        return slice(0, 0)
    # One past index 0, backwards, is written None: -1 is the last voxel.
    return slice(picked.start, None if picked.stop < 0 else picked.stop, picked.step)


def _span(part: Part, size: int) -> tuple[int, int, slice | NDArray[np.int64]]:
    """Return the first voxel to read, one past the last, and the selection of the voxels between."""
    if isinstance(part, int):
        return part, part + 1, slice(None)
    picked = part if isinstance(part, np.ndarray) else range(*part.indices(size))
    if len(picked) == 0:
        return 0, 0, slice(None)
    if isinstance(picked, range):
        low, high = sorted((picked[0], picked[-1]))
        return low, high + 1, slice(None, None, picked.step)
    return int(picked.min()), int(picked.max()) + 1, picked - picked.min()


def _read_downsampled(handle: SourceHandle, target: VoxelGrid, cutout: Cutout, layout: Layout) -> Array:
    """Return a block of the next level; its last voxels cover what is left of the volume."""
    volume = cutout.mip.grid
    step = target.steps_from(volume.resolution_nm).map(int)
    box = VoxelGrid.between(target.start * step, target.stop * step, volume.resolution_nm).intersection(volume)
    block = handle.read(box)
    # One channel has no axis, as in the blocks of exports, whose means and modes these are.
    voxels = np.require(block if cutout.channels > 1 else block[..., 0], requirements="W")
    small = kernels.downsample(voxels, step, cutout.holds_ids)
    return np.asarray(small.reshape((*target.shape, cutout.channels), order="F"), order=layout)


def _read_linear(handle: SourceHandle, target: VoxelGrid, volume: VoxelGrid, layout: Layout) -> Array:
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
