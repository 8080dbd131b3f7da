"""A zarr array as an array-like of x, y, z that a graph can hold: it names its store, and each process opens it."""

from __future__ import annotations

import os
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from imagery_dask.annotations import Array
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.storage.zarr_stores import open_store
from imagery_dask.urls import without_secrets

__all__ = ["StoredArray"]


class StoredArray:
    """Array-like whose slices are read from a zarr array, with its axes in reverse order.

    Parameters
    ----------
    url : str
        The store.
    path : str
        The array in the store.
    shape : tuple of int
        Shape x, y, z, ...: that of the array, reversed.
    dtype : dtype
        Type of its voxels.
    token : str
        What changes when the store is written again.
    """

    def __init__(self, url: str, path: str, shape: tuple[int, ...], dtype: DTypeLike, token: str) -> None:
        self.url, self.path, self.token = url, path, token
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), len(shape)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return ("imagery_dask.StoredArray", without_secrets(self.url), self.path, self.token)

    def __getitem__(self, key: Any) -> Array:
        given = key if isinstance(key, tuple) else (key,)
        read, within = zip(*map(_read_and_within, given, self.shape), strict=True)
        with clear_errors(self.url):
            stored: Any = _opened(self.url, self.path, os.getpid())[tuple(reversed(read))]
        voxels: Array = np.asarray(stored).T
        for axis in reversed(range(self.ndim)):  # an integer drops its axis
            voxels = voxels[(slice(None),) * axis + (within[axis],)]
        return voxels


def _read_and_within(part: Any, size: int) -> tuple[slice, slice | int | NDArray[np.intp]]:
    """Return the slice to read along an axis, which goes upwards, and what is selected of it."""
    if not isinstance(part, slice):
        index = np.arange(size)[part]
        first = int(index.min()) if index.size else 0
        read = slice(first, int(index.max()) + 1 if index.size else 0)
        return read, index - first if index.ndim else 0
    picked = range(*part.indices(size))
    if not picked:
        return slice(0, 0), slice(None)
    low, high = sorted((picked[0], picked[-1]))
    return slice(low, high + 1), slice(None, None, picked.step)


@lru_cache(maxsize=64)
def _opened(url: str, path: str, process: int) -> zarr.Array[Any]:
    """Open an array once for each process: connections do not survive a fork."""
    return zarr.open_array(open_store(url), path=path, mode="r")
