"""How the ids of a segmentation are processed, as a value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.serialization import NEWER
from imagery_dask.validate import root_id

__all__ = ["Kind", "LabelRequest", "LabelRule", "RootIds", "are_ids", "label_rule"]

# What voxels are: intensities, which have a mean, or ids, which have none.
Kind = Literal["image", "segmentation"]
RootIds = Sequence[int] | Literal["all"] | None


def are_ids(dtype: DTypeLike) -> bool:
    """Return True if voxels of a dtype are taken for ids unless the caller says otherwise.

    These are integers of 32 bits and more, and masks.
    """
    dtype = np.dtype(dtype)
    return dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize >= 4)


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How ids are processed: root ids are looked up, then ids are filtered, then compared or converted.

    Parameters
    ----------
    keep : tuple of int or None
        Ids to keep, all others become 0; None keeps every id.
    as_int64 : bool
        True to convert the result to int64 (an id that does not fit is an error), False to keep the stored dtype.
    mask_of : int or None
        If given, the result is bool: True where the voxel has this id.
    query : RootQuery or None
        Query for the root ids of supervoxels; None keeps ids as they are stored.
    leaves_within : VoxelGrid or None
        If given, the supervoxels of `keep` are fetched once for this box (in voxels of the graph), instead of the
        roots of every block's supervoxels.
    moment : int or None
        Without a query: time of the splits of supervoxels that are read, in seconds since 1970; None for segmentations
        that have none.
    """

    keep: tuple[int, ...] | None = None
    as_int64: bool = False
    mask_of: int | None = None
    query: RootQuery | None = None
    leaves_within: VoxelGrid | None = None
    # Not in the repr, from which names of arrays are made: those of other segmentations stay what they were.
    moment: int | None = field(default=None, repr=False, metadata=NEWER)

    @property
    def supervoxels_at(self) -> int | None:
        """Up to when splits of supervoxels are read, in seconds since 1970; None for the present."""
        return self.moment if self.query is None else self.query.supervoxels_at

    @property
    def keeps_ids(self) -> bool:
        """True if ids are those that are stored, but for their data type."""
        return replace(self, as_int64=False, moment=None) == LabelRule()

    @property
    def takes_stored_roots(self) -> bool:
        """True if ids are roots from a stored table, all of them, but for their data type."""
        is_stored = self.query is not None and self.query.stored is not None
        return is_stored and self.keep is None and self.mask_of is None

    def of_supervoxels(self) -> LabelRule:
        """Return the rule for the supervoxels that this rule looks up."""
        return replace(self, keep=None, query=None, leaves_within=None, moment=self.supervoxels_at)


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """Arguments about the ids of a segmentation, as the caller gave them.

    Parameters
    ----------
    root_ids : sequence of int, None or "all"
        Objects to keep.
    as_int64 : bool
        True to convert the result to int64.
    timestamp : datetime, str, number or None
        Time at which a dynamic segmentation is read; None for the client's.
    stop_layer : int or None
        Layer of the ids to return, for a dynamic segmentation.
    version : int or None
        Materialization version with this `timestamp`.
    sparse : bool
        Ask the server where the objects are, and read no other graph chunks.
    """

    root_ids: RootIds = "all"
    as_int64: bool = False
    timestamp: Any = None
    stop_layer: int | None = None
    version: int | None = None
    sparse: bool = False


def label_rule(root_ids: object, *, as_int64: bool, query: RootQuery | None = None) -> LabelRule:
    """Return the rule for the ``root_ids`` argument.

    Parameters
    ----------
    root_ids : sequence of int, None or "all"
        Ids to keep; None keeps the ids as they are stored. For a flat segmentation None and "all" are the same.
    as_int64 : bool
        True to convert the result to int64.
    query : RootQuery, optional
        Query for the object that a stored id belongs to; for ``root_ids=None``, only its time is used.

    Raises
    ------
    ValueError, TypeError
        If `root_ids` is another string, or has ids that are not integers from 0 to 2**64 - 1.
    """
    if root_ids is None:
        splits = query is not None and query.graph.splits_supervoxels
        return LabelRule(as_int64=as_int64, moment=query.timestamp if query is not None and splits else None)
    if isinstance(root_ids, str) and root_ids == "all":
        return LabelRule(as_int64=as_int64, query=query)
    if isinstance(root_ids, (str, bytes)):
        raise ValueError(f"root_ids must be 'all', None or a sequence of ids; got {root_ids!r}.")
    if not isinstance(root_ids, Iterable) or (isinstance(root_ids, np.ndarray) and root_ids.ndim == 0):
        raise TypeError(f"root_ids must be 'all', None or a sequence of ids; got {root_ids!r}. Put one id in a list.")
    keep = tuple(sorted({root_id("root_ids", value) for value in root_ids}))
    return LabelRule(keep=keep, as_int64=as_int64, query=query)
