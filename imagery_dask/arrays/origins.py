"""Which cutouts an array of this process is, or is computed from."""

from __future__ import annotations

import weakref

import dask.array as da

from imagery_dask.arrays.cutout_array import CutoutArray

__all__ = ["remember_source", "source_named", "source_of", "sources_in"]

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
