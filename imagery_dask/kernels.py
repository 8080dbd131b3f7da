"""Pure functions on blocks: gather, interpolate, mask, convert, hash. No I/O, no state.

Blocks are numpy arrays with axes x, y, z and, last, channels. They are in Fortran order (as CloudVolume's decoders
return them; the transpose is in C order with axes z, y, x, as zarr stores it) or in C order (as dask joins blocks).
Every kernel returns the order that it was given, because converting the order is the largest cost of a cutout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import fastremap
import numpy as np
import tinybrain
from numpy.typing import NDArray
from xxhash import xxh3_128

from imagery_dask.annotations import Array

__all__ = [
    "copy_in_tiles",
    "digest_of",
    "digest_of_bytes",
    "downsample",
    "fortran_ordered",
    "gather",
    "interpolate",
    "is_id",
    "join_digests",
    "keep_ids",
    "linear_taps",
    "mask_at",
    "places_of",
    "remap",
    "replace_ids",
    "to_int64",
    "unique_counts",
    "unique_ids",
]

Block = Array

INT64_MAX = 2**63 - 1
# Edge of the tiles in which memory orders are changed. They fit the cache: numpy alone takes 2 to 6 times as long.
TILE = 16
# Ids of a block are replaced by a table of all ids between its smallest and its largest one, if the table has at most
# this many entries for each voxel; voxels are taken by as many at a time as fit the cache.
TABLE_OF_VOXEL = 8
TAKEN_AT_ONCE = 2**15
# tinybrain 1.7.0 has no mean of float16, int32 and int64 over three axes, rounds means of int8 and int16 towards zero,
# and adds uint64 in 64 bits.
NO_MEANS = (np.float16, np.int8, np.int16, np.int32, np.int64, np.uint64)


def gather(block: Block, indices: Sequence[NDArray[np.int64]]) -> Block:
    """Pick voxels by index along x, y and z; exact for every dtype.

    Parameters
    ----------
    block : numpy.ndarray, shape (x, y, z, ...)
        Source voxels.
    indices : sequence of 3 int64 arrays
        For each target voxel along an axis, the source voxel within `block`.

    Returns
    -------
    numpy.ndarray
        Shape ``(len(indices[0]), len(indices[1]), len(indices[2]), ...)``, dtype and memory order unchanged.
    """
    out, transposed = _c_ordered(block)
    # Slow axes first, so that each take copies contiguous runs.
    for axis in (2, 1, 0) if transposed else (0, 1, 2):
        index = indices[axis]
        along = out.ndim - 1 - axis if transposed else axis
        if len(index) == out.shape[along] and (len(index) == 0 or _is_identity(index)):
            continue
        if _is_run(index):
            out = out[(slice(None),) * along + (slice(int(index[0]), int(index[-1]) + 1),)]
        else:
            out = np.take(out, index, axis=along)
    return out.T if transposed else out


def linear_taps(start: int, size: int, step: Fraction) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return left neighbours and weights of right neighbours for linear interpolation along an axis.

    Parameters
    ----------
    start, size : int
        Target voxels, absolute.
    step : fractions.Fraction
        Target resolution over source resolution.

    Returns
    -------
    left : numpy.ndarray of int64, shape (size,)
        Absolute source voxel whose centre is at or before the target's centre.
    weight : numpy.ndarray of float64, shape (size,)
        Weight of the next source voxel, in [0, 1). Both are computed from integers, so that they do not depend on where
        a block begins.
    """
    # Position in source voxels: (target + 1/2) * step - 1/2 = ((2 t + 1) p - q) / (2 q).
    numerator, denominator = step.numerator, step.denominator
    scaled = [(2 * target + 1) * numerator - denominator for target in range(start, start + size)]
    left = np.array([value // (2 * denominator) for value in scaled], dtype=np.int64)
    rest = [value % (2 * denominator) / (2 * denominator) for value in scaled]
    return left, np.array(rest, dtype=np.float64)


def interpolate(block: Block, taps: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> Block:
    """Interpolate linearly along x, y and z; equal to scikit-image's ``resize(order=1)`` on the whole array.

    Parameters
    ----------
    block : numpy.ndarray, shape (x, y, z, ...)
        Source voxels with a halo of one voxel inside the volume; values at the volume's edges are repeated.
    taps : sequence of 3 pairs
        Left neighbours (within `block`) and weights, from `linear_taps`.

    Returns
    -------
    numpy.ndarray
        Interpolated block, rounded to `block`'s dtype when that is an integer type.
    """
    view, transposed = _c_ordered(block)
    out: NDArray[np.float64] = view.astype(np.float64)
    # Always x, then y, then z, because another order rounds differently.
    for axis, (left, weight) in enumerate(taps):
        along = out.ndim - 1 - axis if transposed else axis
        if not weight.any() and len(left) == out.shape[along] and _is_identity(left):
            continue
        last = out.shape[along] - 1
        share = weight.reshape((-1,) + (1,) * (out.ndim - 1 - along))
        low = np.take(out, np.clip(left, 0, last), axis=along)
        high = np.take(out, np.clip(left + 1, 0, last), axis=along)
        out = low + (high - low) * share
    voxels = _rounded(out, block.dtype) if np.issubdtype(block.dtype, np.integer) else out.astype(block.dtype)
    return voxels.T if transposed else voxels


def _rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Block:
    """Round floats to integers of a dtype; 64-bit limits, which float64 rounds up, stay the limits."""
    values = np.rint(values)
    limit = np.iinfo(dtype).max
    if dtype.itemsize < 8:
        return values.astype(dtype)
    above = values >= float(limit)
    voxels = np.where(above, 0.0, values).astype(dtype)
    voxels[above] = limit
    return voxels


def keep_ids(block: Block, ids: Sequence[int]) -> Block:
    """Set voxels whose id is not in `ids` to 0; ids that exceed the dtype match no voxel."""
    limit = int(np.iinfo(block.dtype).max)
    possible = [value for value in ids if 0 < value <= limit]
    if not possible:
        return np.zeros_like(block)
    return np.asarray(fastremap.mask_except(block, possible, in_place=False))


def is_id(block: Block, root_id: int) -> NDArray[np.bool_]:
    """Return the mask of an id; an id that exceeds the dtype matches no voxel."""
    if not 0 <= root_id <= int(np.iinfo(block.dtype).max):
        return np.zeros_like(block, dtype=bool)
    return np.asarray(block == block.dtype.type(root_id))


def to_int64(block: Block) -> NDArray[np.int64]:
    """Convert ids to int64 without loss.

    Raises
    ------
    OverflowError
        If an id exceeds 2**63 - 1.
    """
    if block.dtype != np.uint64:
        return block.astype(np.int64)
    largest = int(block.max(initial=0))
    if largest > INT64_MAX:
        raise OverflowError(
            f"Id {largest} does not fit int64 (the largest is {INT64_MAX}); pass convert_to_int64=False to keep uint64."
        )
    return block.view(np.int64)


def unique_ids(block: Block) -> Array:
    """Return the sorted distinct ids of a block, dtype unchanged."""
    return np.asarray(fastremap.unique(block))


def unique_counts(block: Block) -> tuple[Array, NDArray[np.int64]]:
    """Return the sorted distinct ids of a block, and the number of voxels of each."""
    ids, counts = fastremap.unique(block, return_counts=True)
    return np.asarray(ids), np.asarray(counts, dtype=np.int64)


def downsample(block: Block, step: tuple[int, int, int], labels: bool) -> Block:
    """Halve a block along some axes: the mean of imagery, the most frequent id of labels.

    Results equal those of the whole array if the edges between blocks are at even voxels. Means are right up to the
    limits of every dtype; those of integers are rounded down. Ties between ids are broken as in tinybrain.

    Parameters
    ----------
    block : numpy.ndarray, shape (x, y, z, ...)
        Voxels.
    step : tuple of 3 int
        1 or 2 for each of x, y, z. If the size is odd, the last voxel is computed from the remaining ones.
    labels : bool
        True if voxels are ids.

    Returns
    -------
    numpy.ndarray
        Shape ``ceil(size / step)`` along each axis, dtype unchanged, in Fortran order.
    """
    halved = [axis for axis in range(3) if step[axis] == 2]
    if not halved:
        return block
    block = fortran_ordered(block)
    if block.dtype == bool:
        return downsample(block.view(np.uint8), step, labels=True).view(bool)
    if block.ndim == 4 and labels:  # tinybrain 1.7.0 writes out of bounds for the mode of several channels
        parts = [downsample(block[..., channel], step, labels) for channel in range(block.shape[3])]
        return np.stack(parts, axis=3, out=np.empty((*parts[0].shape, len(parts)), block.dtype, order="F"))
    odd = [axis in halved and size % 2 == 1 for axis, size in enumerate(block.shape)]
    if any(odd):
        # Repeating the edge changes neither mean nor mode. tinybrain 1.7.0 misplaces the last voxel of odd sizes.
        block = fortran_ordered(np.pad(block, [(0, int(more)) for more in odd], mode="edge"))
    if len(halved) == 1 or (not labels and block.dtype in NO_MEANS):
        return _downsample_plainly(block, step, labels)
    pooling = tinybrain.downsample_segmentation if labels else tinybrain.downsample_with_averaging
    if len(halved) == 3:
        small = np.asarray(pooling(block, (2, 2, 2), num_mips=1)[0])
    else:
        # tinybrain halves x and y, so that other pairs of axes are moved there.
        small = pooling(np.asfortranarray(np.moveaxis(block, halved, (0, 1))), (2, 2, 1), num_mips=1)[0]
        small = np.asfortranarray(np.moveaxis(small, (0, 1), halved))
    overflowed = not labels and block.dtype.kind == "f" and not np.isfinite(small).all()
    return _downsample_plainly(block, step, labels) if overflowed else small


def _downsample_plainly(block: Block, step: tuple[int, int, int], labels: bool) -> Block:
    """Downsample with numpy where tinybrain is slow (one axis) or has no right mean (`NO_MEANS`)."""
    parts = [block[tuple(slice(o, None, s) for o, s in zip(offset, step, strict=True))] for offset in np.ndindex(step)]
    if labels:  # two ids are equally frequent: the first wins
        return np.array(parts[0], order="F")
    if block.dtype.kind == "f":
        return _mean_of_floats(parts)
    bits = len(parts).bit_length() - 1
    if block.dtype.itemsize < 8:
        total = parts[0].astype(f"{block.dtype.kind}{2 * block.dtype.itemsize}", order="F")
        for part in parts[1:]:
            total += part
        total >>= bits
        return total.astype(block.dtype, order="F")
    # Quotients and remainders are summed apart, so that nothing overflows.
    whole, rest = np.zeros(parts[0].shape, block.dtype, order="F"), np.zeros(parts[0].shape, np.uint8, order="F")
    for part in parts:
        whole += part >> bits
        rest += (part & (len(parts) - 1)).astype(np.uint8)
    whole += rest >> bits
    return whole


def _mean_of_floats(parts: Sequence[Block]) -> Block:
    """Return the mean of arrays of floats, in Fortran order; a sum that overflows is made of the quotients."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = _sum_of_floats(parts, 1)
        mean /= len(parts)
        if not np.isfinite(mean).all():
            mean = np.where(np.isfinite(mean), mean, _sum_of_floats(parts, len(parts)))
    return np.asarray(mean, dtype=parts[0].dtype, order="F")


def _sum_of_floats(parts: Sequence[Block], divisor: int) -> NDArray[np.float64]:
    """Return the sum of arrays, each divided, in float64 and Fortran order."""
    total = np.zeros(parts[0].shape, np.float64, order="F")
    for part in parts:
        total += part if divisor == 1 else part.astype(np.float64) / divisor
    return total


def fortran_ordered(block: Block) -> Block:
    """Return a block in Fortran order: itself, or a copy."""
    if block.flags.f_contiguous:
        return block
    if block.strides[0] == block.itemsize:
        return np.asfortranarray(block)
    out = np.empty(block.shape, block.dtype, order="F")
    copy_in_tiles(out, block)
    return out


def copy_in_tiles(out: Block, block: Block) -> None:
    """Copy a block to an array of its shape and another memory order."""
    for x in range(0, block.shape[0], TILE):
        for z in range(0, block.shape[2], TILE):
            out[x : x + TILE, :, z : z + TILE] = block[x : x + TILE, :, z : z + TILE]


def places_of(block: Block) -> dict[int, NDArray[np.intp]]:
    """Return the flat indices, in memory order, of each id of a block, from one sort for all ids."""
    if not (block.flags.c_contiguous or block.flags.f_contiguous):
        raise ValueError("The block must be contiguous, in C or Fortran order.")
    flat = block.ravel(order="K")
    if len(flat) == 0:
        return {}
    order = np.argsort(fastremap.renumber(flat, preserve_zero=False)[0], kind="stable")
    first = np.flatnonzero(flat[order[1:]] != flat[order[:-1]]) + 1
    ids = flat[order[np.append(0, first)]].tolist()
    return dict(zip(ids, np.split(order, first), strict=True))


def mask_at(places: NDArray[np.intp], block: Block) -> NDArray[np.bool_]:
    """Return a mask, in the shape and memory order of a block, that is True at the `places_of` an id."""
    # Not zeros_like, which writes every page, although fresh memory from the system is 0 already.
    mask = np.zeros(block.shape, dtype=bool, order="F" if _c_ordered(block)[1] else "C")
    mask.ravel(order="K")[places] = True
    return mask


def remap(block: Block, ids: Array, values: Array) -> Block:
    """Replace ids by values, in place.

    Parameters
    ----------
    block : numpy.ndarray of integers
        Voxels; all of them must be in `ids`.
    ids, values : numpy.ndarray of the block's dtype, shape (n,)
        Ids to replace, and their replacements.

    Returns
    -------
    numpy.ndarray
        `block`.
    """
    if len(ids) == 0 or np.array_equal(ids, values):
        return block
    table = dict(zip(ids.tolist(), values.tolist(), strict=True))
    return np.asarray(fastremap.remap(block, table, preserve_missing_labels=False, in_place=True))


def replace_ids(block: Block, new_ids: Callable[[Array], Array]) -> Block:
    """Replace the ids of a block by those that a function returns for its distinct ids.

    Supervoxels of a graph chunk have near ids, so that a table takes their place: three passes, without a sort.

    Parameters
    ----------
    block : numpy.ndarray of integers
        Voxels, which are changed in place if they are contiguous.
    new_ids : callable
        Takes distinct, ascending ids, and returns the id in place of each, in their dtype.

    Returns
    -------
    numpy.ndarray
        Shape, dtype and memory order of `block`.
    """
    flat = block.ravel(order="K")
    pieces: list[Array] = []
    if block.dtype == np.uint64 and np.may_share_memory(flat, block):
        pieces = [flat[start : start + TAKEN_AT_ONCE] for start in range(0, len(flat), TAKEN_AT_ONCE)]
    span = _span_of_table(pieces)
    if span is None:
        ids = unique_ids(block)
        return remap(block, ids, new_ids(ids))
    first, size = span
    is_there = np.zeros(size + 1, bool)  # of ids from the first one, and of 0, which is the last
    for piece in pieces:
        is_there[_entries(piece, first, size)] = True
    entries = np.flatnonzero(is_there)
    if is_there[size]:
        entries = np.roll(entries, 1)
    ids = entries.astype(np.uint64) + first
    ids[entries == size] = 0
    table = np.empty(size + 1, np.uint64)
    table[entries] = new_ids(ids)
    for piece in pieces:
        table.take(_entries(piece, first, size), out=piece, mode="clip")  # which writes without a copy
    return block


def _span_of_table(pieces: Sequence[Array]) -> tuple[np.uint64, int] | None:
    """Return the smallest id that is not 0, and how many ids there are from it to the largest; None for too many."""
    if not pieces:
        return None
    # Without 0, which becomes the largest number; piece by piece, which takes no memory as large as the block.
    first = min(int((piece - np.uint64(1)).min()) for piece in pieces) + 1
    size = max(int(piece.max()) for piece in pieces) - first + 1
    return (np.uint64(first), size) if 0 < size <= TABLE_OF_VOXEL * sum(map(len, pieces)) else None


def _entries(ids: Array, first: np.uint64, size: int) -> NDArray[np.int64]:
    """Return the place of each id in a table of ids from the first one; 0 is behind its end."""
    places = ids - first
    return np.minimum(places, np.uint64(size), out=places).view(np.int64)


def digest_of(voxels: Array) -> bytes:
    """Return the XXH3 hash (16 bytes) of voxels (x, y, z[, c]), in Fortran order whatever their order in memory.

    It detects accidental damage and is not cryptographic. -0.0 counts as 0.0, since stores do not distinguish them.
    """
    if voxels.dtype.kind == "f":
        voxels = voxels + voxels.dtype.type(0)
    return digest_of_bytes(fortran_ordered(voxels).T.data)


def digest_of_bytes(content: bytes | memoryview) -> bytes:
    """Return the XXH3 hash (16 bytes) of bytes."""
    return bytes(xxh3_128(content).digest())


def join_digests(digests: Sequence[bytes]) -> bytes:
    """Return the hash of a sequence of hashes."""
    return digest_of_bytes(b"".join(digests))


def _c_ordered(block: Block) -> tuple[Block, bool]:
    """Return the block or its transpose, whichever is in C order, and True if it was transposed."""
    transposed = bool(block.flags.f_contiguous and not block.flags.c_contiguous)
    return (block.T, True) if transposed else (block, False)


def _is_run(index: NDArray[np.int64]) -> bool:
    return bool(len(index)) and bool(np.all(np.diff(index) == 1))


def _is_identity(index: NDArray[np.int64]) -> bool:
    return int(index[0]) == 0 and _is_run(index)
