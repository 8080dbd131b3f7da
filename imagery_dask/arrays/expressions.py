"""Cutouts as expressions of dask (``array.query-planning``), whose slices are pushed into the reader.

dask makes no such optimization for arrays, so that it would read whole blocks for a plane. Only this module uses
private names of dask, and nothing imports it while expressions are off.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from dask._expr import FinalizeCompute
from dask.array._array_expr._io import FromArray
from dask.array._array_expr._slicing import SliceSlicesIntegers, SlicesWrapNone

__all__ = ["with_pushdown"]


class CutoutRead(FromArray):
    """Read a cutout."""

    def _simplify_up(self, parent: Any, dependents: Any) -> Any:
        """Return a slice of this as a read of the slice alone, or None."""
        if not isinstance(parent, SliceSlicesIntegers) or not self._may_rename(parent, dependents):
            return None
        picked = zip(self.shape, parent.index, strict=True)
        parts = tuple(range(size)[part] if isinstance(part, slice) else int(part) for size, part in picked)
        chunks = SliceSlicesIntegers.chunks.func(parent)  # without the new axes of SlicesWrapNone
        meta = np.empty((0,) * len(chunks), dtype=self.dtype)
        read = CutoutSliceRead(self.array.select(parts), chunks, asarray=False, inline_array=True, meta=meta)
        if not isinstance(parent, SlicesWrapNone):
            return read
        whole = (slice(None, None, None),) * len(chunks)
        return SlicesWrapNone(read, whole, False, parent.where_none)

    def _may_rename(self, parent: Any, dependents: Any) -> bool:
        # dask looks for the blocks of an array that is persisted under the name that it had before.
        return _is_computed(parent, dependents)


class CutoutSliceRead(CutoutRead):
    """Read slices of a cutout, in an expression that is computed."""

    def _may_rename(self, parent: Any, dependents: Any) -> bool:
        return True


def with_pushdown(array: da.Array) -> da.Array:
    """Return the array of a cutout with slices that are pushed into the reader when they are computed."""
    return da.Array(CutoutRead(*array.expr.operands))


def _is_computed(expression: Any, dependents: Any) -> bool:
    """Return True if the result of an expression is computed, not persisted."""
    above, seen = [expression], set()
    while above:
        current = above.pop()
        if isinstance(current, FinalizeCompute):
            return True
        if current._name not in seen:
            seen.add(current._name)
            parents = (reference() for reference in dependents[current._name])
            above += [parent for parent in parents if parent is not None]
    return False
