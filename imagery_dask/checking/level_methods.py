"""Compare a level with what methods of downsampling make of the finer level. Ids are counted, never computed with.

Programs round means differently, and choose differently between ids that are equally frequent. So a voxel agrees with
the mean if it is no farther from it than rounding moves it, and with the mode if its id is one of the most frequent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.geometry.vec import Vec3

__all__ = ["METHODS", "Tally", "compare"]

#: Methods by name, the most common one first.
METHODS = ("mean", "mode", "mode of ids that are not 0", "median", "striding", "nearest")
# Grey values of 255 between voxels of levels that were compressed with loss, each on its own.
LOSS = 16
# Relative difference of means of floats.
FLOAT_ERROR = 1e-4

Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Tally:
    """Voxels of samples that differ from what a method makes.

    Parameters
    ----------
    voxels, differing : int
        Compared voxels whose windows are whole, and those of them that differ.
    cut, cut_differing : int
        The same of voxels at the edges of the volume, whose windows are cut.
    distance : float
        Sum of the absolute differences of the grey values of imagery.
    """

    voxels: int = 0
    differing: int = 0
    cut: int = 0
    cut_differing: int = 0
    distance: float = field(default=0.0)

    def add(self, other: Tally) -> None:
        """Add the voxels of another sample."""
        self.voxels += other.voxels
        self.differing += other.differing
        self.cut += other.cut
        self.cut_differing += other.cut_differing
        self.distance += other.distance


def compare(
    fine: Array, coarse: Array, factor: Vec3[int], are_whole: Mask, are_ids: bool, is_lossy: bool = False
) -> dict[str, Tally]:
    """Compare voxels of a level with those of the finer level, by each method.

    Parameters
    ----------
    fine : numpy.ndarray, shape (x * fx, y * fy, z * fz, channel)
        Voxels of the finer level: all windows.
    coarse : numpy.ndarray, shape (x, y, z, channel)
        Voxels of the coarser level.
    factor : tuple of 3 int
        Shape of a window.
    are_whole : numpy.ndarray of bool, shape (x, y, z, 1)
        False where a window is cut by the edge of the volume.
    are_ids : bool
        Whether voxels are ids.
    is_lossy : bool
        Whether a level was compressed with loss, so that imagery is compared with a tolerance.

    Returns
    -------
    dict of str to Tally
        By the names of `METHODS` that the data type has.
    """
    windows = list(_windows(fine, factor))
    is_whole = np.broadcast_to(are_whole, coarse.shape)
    of_loss = LOSS if is_lossy and not are_ids else 0
    first, middle = windows[0], fine[tuple(slice(n // 2, None, n) for n in factor)]
    tallies = {}
    if not are_ids and coarse.dtype != bool:
        mean = _mean(fine, windows, factor)
        halvings = max(factor).bit_length() - 1
        tallies["mean"] = _tally(coarse, mean, is_whole, of_loss + (halvings if coarse.dtype.kind in "iu" else 0))
        tallies["median"] = _tally(coarse, _median(windows), is_whole, of_loss + (coarse.dtype.kind in "iu"))
    if coarse.dtype.kind in "iub":
        mode = _pooled(fine, factor, labels=True)
        unclear = np.ones(coarse.shape, bool) if mode is None else coarse != mode
        tallies["mode"] = _tally_of(_without_mode(windows, coarse, unclear), is_whole)
        if are_ids:
            # Where the mode is an id, it is also the mode of the ids that are not 0.
            unclear |= False if mode is None else mode == 0
            tallies["mode of ids that are not 0"] = _tally_of(
                _without_mode(windows, coarse, unclear, ignored=0), is_whole
            )
    for name, voxels in (("striding", first), ("nearest", middle)):
        exact = are_ids or coarse.dtype == bool
        tallies[name] = _tally_of(coarse != voxels, is_whole) if exact else _tally(coarse, voxels, is_whole, of_loss)
    return tallies


def _windows(fine: Array, factor: Vec3[int]) -> Iterator[Array]:
    """Yield the first voxel of all windows, the second of all, ..."""
    for offset in np.ndindex(*factor):
        yield fine[tuple(slice(at, None, step) for at, step in zip(offset, factor, strict=True))]


def _pooled(fine: Array, factor: Vec3[int], labels: bool) -> Array | None:
    """Return the levels' own downsampling by halves; None if a window is no power of 2."""
    if any(n & (n - 1) for n in factor):
        return None
    left, voxels = factor, fine
    while max(left) > 1:
        step = left.map(lambda n: 2 if n > 1 else 1)
        voxels, left = kernels.downsample(voxels, step, labels), left // step
    return voxels


def _mean(fine: Array, windows: Sequence[Array], factor: Vec3[int]) -> Array:
    pooled = _pooled(fine, factor, labels=False)
    if pooled is not None:
        return pooled
    if fine.dtype.kind == "f":
        total = np.zeros(windows[0].shape, np.float64)
        for window in windows:
            total += window
        return np.asarray(total / len(windows), fine.dtype)
    whole = np.zeros(windows[0].shape, np.int64)
    for window in windows:
        whole += window
    return (whole // len(windows)).astype(fine.dtype)


def _median(windows: Sequence[Array]) -> Array:
    """Return the mean of the two middle values of each window; that of integers is rounded down."""
    ordered = np.sort(np.stack(windows), axis=0)
    low, high = ordered[(len(windows) - 1) // 2], ordered[len(windows) // 2]
    if low.dtype.kind == "f":
        return np.asarray((low.astype(np.float64) + high) / 2, low.dtype)
    return np.asarray((low.astype(np.int64) + high) >> 1, low.dtype)


def _without_mode(windows: Sequence[Array], coarse: Array, unclear: Mask, ignored: int | None = None) -> Mask:
    """Return which voxels are none of the most frequent values of their windows, of those that are unclear."""
    differs = np.zeros(coarse.shape, bool)
    own = coarse[unclear]
    if len(own) == 0:
        return differs
    values = [window[unclear] for window in windows]
    most = np.zeros(len(own), np.int32)
    for value in values:
        count = np.zeros(len(own), np.int32)
        for other in values:
            count += other == value
        if ignored is not None:
            count[value == ignored] = 0
        np.maximum(most, count, out=most)
    count = np.zeros(len(own), np.int32)
    for value in values:
        count += value == own
    # A window of ignored values only has none that is more frequent.
    differs[unclear] = (count < most) | (count == 0) | ((own == ignored) & (most > 0) if ignored is not None else False)
    return differs


def _tally(coarse: Array, expected: Array, is_whole: Mask, tolerance: float) -> Tally:
    """Count voxels of imagery that differ by more than a tolerance."""
    if coarse.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            largest = float(np.nanmax(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
            near = np.isclose(coarse, expected, rtol=FLOAT_ERROR, atol=FLOAT_ERROR * largest / 100, equal_nan=True)
            away = np.abs(np.subtract(coarse, expected, dtype=np.float64))
        away = np.where(np.isfinite(away), away, 0.0)
        differs: Mask = ~near
    else:  # without overflow: integers of up to 32 bits
        away = np.abs(np.subtract(coarse, expected, dtype=np.int64))
        differs = away > tolerance
    return _tally_of(differs, is_whole, float(away.sum()))


def _tally_of(differs: Mask, is_whole: Mask, distance: float = 0.0) -> Tally:
    whole = int(np.count_nonzero(is_whole))
    inside = int(np.count_nonzero(differs & is_whole))
    return Tally(whole, inside, is_whole.size - whole, int(np.count_nonzero(differs)) - inside, distance)
