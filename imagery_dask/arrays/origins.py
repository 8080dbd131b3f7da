"""Which cutouts an array of this process is, or is computed from."""

from __future__ import annotations

import weakref

import dask.array as da
from dask.base import tokenize

from imagery_dask.arrays.cutout_array import CutoutArray, CutoutSlice
from imagery_dask.model.moments import describe_moment

__all__ = ["name_of", "part_of", "remember_part", "remember_source", "source_named", "source_of", "sources_in"]

# Array-likes behind the arrays of this process, by array name: an export reads their blocks without a graph.
_sources: weakref.WeakValueDictionary[str, CutoutArray] = weakref.WeakValueDictionary()


def remember_source(name: str, source: CutoutArray) -> CutoutArray:
    """Return the array-like behind the arrays of a name: the given one, unless there is one already.

    Equal arrays share one array-like. Their graphs hold it, so that the entry lives as long as any of them.
    """
    return _sources.setdefault(name, source)


def source_named(name: str) -> CutoutArray | None:
    """Return the array-like behind the arrays of a name, when they are a cutout as `lazy_array` made it."""
    return _sources.get(name)


def source_of(array: da.Array) -> CutoutArray | None:
    """Return the array-like behind an array, when it is a cutout as `lazy_array` made it."""
    return source_named(array.name)


def sources_in(array: da.Array) -> list[CutoutArray]:
    """Return the cutouts that an array is computed from."""
    names = (node._name for node in array.expr.walk()) if da.array_expr_enabled() else array.dask.layers
    return [source for name in names if (source := _sources.get(name)) is not None]


def remember_part(array: da.Array, part: CutoutSlice) -> None:
    """Remember which voxels an array has, a cutout or a slice of one, as long as it is not assigned to.

    Of this array alone: one of the same name may be persisted.
    """
    array._cutout_part = array.name, part


def part_of(array: da.Array) -> CutoutSlice | None:
    """Return the voxels that an array has, when it is a cutout as `lazy_array` made it, or a slice of one."""
    name, part = getattr(array, "_cutout_part", (None, None))
    return part if name == array.name else None


def name_of(source: CutoutArray) -> str:
    """Return the name of the arrays of a cutout, which tasks have too."""
    cutout = source.cutout
    kind = "image" if cutout.labels is None else "mask" if cutout.labels.mask_of is not None else "segmentation"
    moment = "" if cutout.timestamp is None else f"-{describe_moment(cutout.timestamp)}"
    return f"{kind}-mip{cutout.mip.level}{moment}-{tokenize(source)}"
