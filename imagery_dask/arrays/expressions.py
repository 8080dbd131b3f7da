"""Cutouts as expressions of dask (``array.query-planning``), whose slices are pushed into the reader.

dask makes no such optimization for arrays, so that it would read whole blocks for a plane. Only this module uses
private names of dask, and nothing imports it while expressions are off.
"""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np
from dask._expr import FinalizeCompute
from dask.array._array_expr._expr import ArrayExpr
from dask.array._array_expr._io import FromArray
from dask.array._array_expr._slicing import SliceSlicesIntegers, SlicesWrapNone

from imagery_dask.arrays.cutout_array import CutoutArray, CutoutSlice
from imagery_dask.arrays.guards import check_bytes

__all__ = ["with_pushdown"]


class CutoutRead(FromArray):
    """Read a cutout."""

    def _simplify_up(self, parent: Any, dependents: Any) -> Any:
        """Return a slice of this as a read of the slice alone, or None."""
        for result in _computed_from(self, dependents):
            check_bytes(math.prod(result.shape) * result.dtype.itemsize, [_whole(self.array)])
        if not isinstance(parent, SliceSlicesIntegers) or not self._may_rename(parent, dependents):
            return None
        if all(part == slice(None) for part in parent.index):  # only new axes, for which dask would ask without end
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
        return bool(_computed_from(parent, dependents))


class CutoutSliceRead(CutoutRead):
    """Read slices of a cutout, in an expression that is computed."""

    def _may_rename(self, parent: Any, dependents: Any) -> bool:
        return True


def with_pushdown(array: da.Array) -> da.Array:
    """Return the array of a cutout with slices that are pushed into the reader when they are computed."""
    return da.Array(CutoutRead(*array.expr.operands))


def _whole(array: CutoutArray | CutoutSlice) -> CutoutArray:
    return array.source if isinstance(array, CutoutSlice) else array


def _computed_from(expression: Any, dependents: Any) -> list[Any]:
    """Return the arrays that are computed, not persisted, from an expression."""
    above, seen, results, is_computed = [expression], set(), [], False
    while above:
        current = above.pop()
        if isinstance(current, FinalizeCompute):
            is_computed = True
        elif current._name not in seen:
            seen.add(current._name)
            parents = [parent for reference in dependents[current._name] if (parent := reference()) is not None]
            # Beside a FinalizeCompute there may be a sequence, of what is computed together.
            if isinstance(current, ArrayExpr) and any(
                isinstance(parent, FinalizeCompute) or not isinstance(parent, ArrayExpr) for parent in parents
            ):
                results.append(current)
            above += parents
    return results if is_computed else []
