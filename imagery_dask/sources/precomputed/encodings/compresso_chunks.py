"""Decode chunks in compresso, and raise ValueError for damaged ones.

The decoder of the compresso package (3.3) does not check lengths, indices and counts: a damaged chunk ends the process,
takes gigabytes or gives wrong ids. Here every index is checked, and what the format says twice is compared: the number
of objects of each slice, the number of locations, and the number of windows. The format has no checksum, so that a
changed id, or a border that moved by a voxel, cannot be noticed.

A chunk is a header, the id of each component (connected voxels of a slice that lie on no border), the distinct windows
(bit fields of voxels on borders), locations (ids of border voxels that cannot be inferred), the run-length encoded
windows, and in version 1 the components and locations of each slice. Format:
https://github.com/seung-lab/compresso
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array

__all__ = ["decode_compresso"]

HEADER = struct.Struct("<4sBBHHHBBBQIQB")
MAGIC = b"cpso"
# Locations below 7 are instructions: the id of the voxel at x-1, x+1, y-1, y+1, z-1, z+1, or the next location. Others
# are ids, plus 7.
NEXT, FIRST_ID = 6, 7
Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a chunk, with sizes that agree with each other."""

    shape_zyx: tuple[int, int, int]
    steps_zyx: tuple[int, int, int]
    in_3d: bool
    ids: Array
    window_values: Array
    locations: Array
    windows: Array
    # Number of components and of locations of each slice; None in version 0.
    components_of: Array | None
    locations_of: Array | None


def decode_compresso(content: bytes, shape: tuple[int, int, int], dtype: str) -> Array:
    """Return the labels of a chunk.

    Parameters
    ----------
    content : bytes
        The chunk.
    shape : tuple of 3 int
        Voxels along x, y, z.
    dtype : str
        Data type of the labels, an integer.

    Returns
    -------
    labels : numpy.ndarray, shape (x, y, z)
        In Fortran order.

    Raises
    ------
    ValueError
        The chunk is damaged.
    """
    kind = np.dtype(dtype)
    parts = _parse(content, shape, kind)
    inner = _inner(parts)
    components, count = _components(inner, parts.in_3d)
    _compare("components", count, len(parts.ids))
    if parts.components_of is not None:
        ends = np.maximum.accumulate(components[:-1].reshape(len(components) - 1, -1).max(axis=1))
        if not np.array_equal(np.diff(ends, prepend=0), parts.components_of):
            raise ValueError("the components of its slices do not agree with its index")
    labels = np.concatenate([np.zeros(1, parts.ids.dtype), parts.ids]).take(components)
    _fill_borders(labels, inner, parts)
    return np.ascontiguousarray(labels[:-1, :-1, :-1]).view(kind).T


def _compare(what: str, counted: int, written: int) -> None:
    if counted != written:
        raise ValueError(f"it has {counted} {what}, and its header says {written}")


def _parse(content: bytes, shape: tuple[int, int, int], dtype: np.dtype) -> _Parts:
    if len(content) < HEADER.size:
        raise ValueError(f"it is shorter than a header ({len(content)} bytes)")
    fields = HEADER.unpack_from(content)
    magic, version, width, *written_shape, x_step, y_step, z_step, ids, values, locations, connectivity = fields
    if magic != MAGIC or version > 1:
        raise ValueError(f"it does not begin as compresso of version 0 or 1: {content[:5]!r}")
    if tuple(written_shape) != tuple(shape) or width != dtype.itemsize or dtype.kind not in "iu":
        raise ValueError(f"its header says {tuple(written_shape)} of {width} bytes, not {tuple(shape)} {dtype}")
    bits = x_step * y_step * z_step
    if not 1 <= bits <= 64 or connectivity not in (4, 6) or (connectivity == 6 and version == 1):
        raise ValueError(f"its header is damaged (steps {x_step}, {y_step}, {z_step}; connectivity {connectivity})")
    window = np.dtype(f"<u{next(size for size in (1, 2, 4, 8) if bits <= 8 * size)}")
    sx, sy, sz = shape
    index = np.dtype(f"<u{_index_width(sx, sy)}")
    index_bytes = 2 * sz * index.itemsize * version
    window_bytes = len(content) - HEADER.size - (ids + locations) * width - values * window.itemsize - index_bytes
    if window_bytes < 0 or window_bytes % window.itemsize:
        raise ValueError(f"its parts do not fill its {len(content)} bytes")
    label = np.dtype(f"<u{width}")
    at = HEADER.size
    arrays: list[Array] = []
    for count, kind in (
        (ids, label), (values, window), (locations, label), (window_bytes // window.itemsize, window),
        (sz * version, index), (sz * version, index),
    ):  # fmt: skip
        arrays.append(np.frombuffer(content, kind, count, at))
        at += count * kind.itemsize
    of_slices = arrays[4:] if version else [None, None]
    return _Parts((sz, sy, sx), (z_step, y_step, x_step), connectivity == 6, *arrays[:4], *of_slices)


def _index_width(sx: int, sy: int) -> int:
    return next(size for size in (1, 2, 4, 8) if 2 * sx * sy < 256**size - 1)


def _inner(parts: _Parts) -> Bits:
    """Return True for voxels that lie on no border, as (z, y, x).

    Each axis is longer by one that is False. Its last element is also before the first, at index -1, so that the
    neighbors of a voxel need no check.
    """
    values = parts.window_values
    blocks = tuple(-(-n // step) for n, step in zip(parts.shape_zyx, parts.steps_zyx, strict=True))
    windows = _run_length_decoded(parts.windows, int(np.prod(blocks)))
    if not len(values) or windows.max() >= len(values):
        raise ValueError("a window is beyond the table of windows")
    if (values[1:] <= values[:-1]).any() or not np.bincount(windows, minlength=len(values)).all():
        raise ValueError("its table of windows is damaged")
    z_step, y_step, x_step = parts.steps_zyx
    voxels = z_step * y_step * x_step
    bits = np.unpackbits(values.view(np.uint8).reshape(len(values), -1), axis=1, bitorder="little").view(bool)
    if bits[:, voxels:].any():
        raise ValueError("its table of windows is damaged")
    of_blocks = bits[:, :voxels].take(windows, axis=0).reshape(*blocks, *parts.steps_zyx)
    nz, ny, nx = blocks
    padded = of_blocks.transpose(0, 3, 1, 4, 2, 5).reshape(nz * z_step, ny * y_step, nx * x_step)
    z, y, x = parts.shape_zyx
    if padded[z:].any() or padded[:, y:].any() or padded[:, :, x:].any():
        raise ValueError("a window has voxels outside of the chunk")
    inner = np.zeros((z + 1, y + 1, x + 1), bool)
    np.logical_not(padded[:z, :y, :x], out=inner[:z, :y, :x])
    return inner


def _run_length_decoded(encoded: Array, count: int) -> NDArray[np.intp]:
    """Return the indices of windows: an even number is twice an index, an odd one a run of zeros."""
    halves = (encoded >> encoded.dtype.type(1)).astype(np.int64)
    is_run = (encoded & encoded.dtype.type(1)).astype(bool)
    # Neither is written as zero, so that each of them stands for a window or more.
    if len(encoded) > count or not halves.all() or halves.max(initial=0) > max(count, 1):
        raise ValueError("its run lengths are damaged")
    ends = np.cumsum(np.where(is_run, halves, 1))
    _compare("windows", int(ends[-1]) if len(ends) else 0, count)
    indices = np.zeros(count, np.intp)
    indices[ends[~is_run] - 1] = halves[~is_run]
    return indices


def _components(inner: Bits, in_3d: bool) -> tuple[NDArray[np.int32], int]:
    """Return the component of each voxel that lies on no border, numbered from 1, x fastest, and their number."""
    from scipy import ndimage

    # All slices are one image, in which rows of False keep them apart: a call for each of them takes twice as long.
    labels, count = ndimage.label(inner if in_3d else inner.reshape(-1, inner.shape[2]))
    return labels.reshape(inner.shape), count


def _fill_borders(labels: Array, inner: Bits, parts: _Parts) -> None:
    """Give border voxels the label of the one at x-1, y-1 or (in 3d) z-1, if that lies on no border, or a location."""
    flat, is_inner = labels.reshape(-1), inner.reshape(-1)
    strides = (1, inner.shape[2], inner.shape[1] * inner.shape[2])
    within = np.zeros_like(inner)
    within[:-1, :-1, :-1] = ~inner[:-1, :-1, :-1]
    at = np.flatnonzero(within)
    for stride in strides[: 3 if parts.in_3d else 2]:
        known = is_inner[at - stride]
        here = at[known]
        flat[here] = flat[here - stride]
        at = at[~known]
    codes, ids, starts = _split_locations(parts.locations)
    _compare("border voxels without a known neighbor", len(at), len(codes))
    if parts.locations_of is not None:
        of_slices = np.cumsum(parts.locations_of, dtype=np.int64)
        first = np.searchsorted(at, np.arange(len(inner) - 1) * strides[2])
        if not np.array_equal(np.append(starts, len(parts.locations))[first], of_slices):
            raise ValueError("the locations of its slices do not agree with its index")
    flat[at] = ids
    for code in range(NEXT):
        chosen = at[codes == code]
        beside = chosen + (strides[code // 2] if code % 2 else -strides[code // 2])
        if not is_inner[beside].all():
            raise ValueError("a location is the label of a voxel that has none")
        flat[chosen] = flat[beside]


def _split_locations(locations: Array) -> tuple[Array, Array, NDArray[np.intp]]:
    """Return the instructions (0 to 6, 7 for an id), the ids, and the positions at which they start."""
    is_id = np.zeros(len(locations), bool)
    for at in np.flatnonzero(locations == NEXT).tolist():
        if is_id[at]:
            continue
        if at + 1 == len(locations):
            raise ValueError("its locations end too early")
        is_id[at + 1] = True
    starts = np.flatnonzero(~is_id)
    codes = locations[starts]
    ids = codes - codes.dtype.type(FIRST_ID)
    from_next = codes == NEXT
    ids[from_next] = locations[starts[from_next] + 1]
    return np.minimum(codes, FIRST_ID), ids, starts
