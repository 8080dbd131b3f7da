"""Masks of many objects over one cutout, without one pass over the data per object."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.arrays.computing import block_reads
from imagery_dask.arrays.guards import check_blocks, check_bytes
from imagery_dask.arrays.lazy import lazy_array
from imagery_dask.arrays.origins import source_of, sources_in
from imagery_dask.cards import Card
from imagery_dask.humanize import human_bytes
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.moments import describe_moment

__all__ = ["SegmentationMasks", "count_ids"]

FAN_IN = 16
# Ids that a summary lists.
IDS_SHOWN = 5

Counts = tuple[Array, NDArray[np.int64]]


class SegmentationMasks(Mapping[int, da.Array]):
    """Mapping from the ids in a cutout to their masks.

    ``masks[id]`` is a lazy boolean array and costs no read. The ids are found by one streaming pass over the
    cutout at the first iteration, ``len`` or ``in``, and kept. Each mask that is computed alone reads its own blocks;
    `compute` makes all of them in one pass.

    Parameters
    ----------
    cutout : Cutout
        A segmentation cutout.
    include_null_root : bool
        Include id 0, the voxels of no object.
    """

    def __init__(self, cutout: Cutout, include_null_root: bool = False) -> None:
        self._cutout = cutout
        self._include_null_root = bool(include_null_root)
        self._found: tuple[int, ...] | None = None

    @property
    def labels(self) -> da.Array:
        """The lazy array of ids that all masks are made of."""
        return lazy_array(self._cutout)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every mask."""
        return tuple(int(n) for n in self.labels.shape)

    def __getitem__(self, root_id: int) -> da.Array:
        try:
            number = operator.index(root_id)
        except TypeError:
            raise KeyError(f"Masks are found by integer id; got {root_id!r}.") from None
        if not self._may_hold(number) or (self._found is not None and number not in self._found):
            raise KeyError(root_id)
        return lazy_array(self._cutout.mask(number))

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids())

    def __len__(self) -> int:
        return len(self._ids())

    def __contains__(self, root_id: object) -> bool:
        return root_id in self._ids()

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        """Return the summary of the masks, for which nothing is read."""
        cutout, target = self._cutout, self._cutout.target
        known = "not read yet: iterating, len and in read the cutout once"
        if self._found is not None:
            more = ", ..." if len(self._found) > IDS_SHOWN else ""
            known = f"{len(self._found):,}: {', '.join(map(str, self._found[:IDS_SHOWN]))}{more}"
        rows = [
            ("source", f"{cutout.path}, mip {cutout.mip.level}"),
            ("mask", f"{' x '.join(f'{n:,}' for n in self.shape)} voxels, bool, {human_bytes(target.size)} each"),
            ("voxels", f"{target.start} to {target.stop} of {' x '.join(f'{n:g}' for n in target.resolution_nm)} nm"),
            ("ids", known),
        ]
        if cutout.query is not None:
            rows.append(("timestamp", describe_moment(cutout.query.timestamp)))
        return Card("SegmentationMasks", rows)

    def compute(self, **kwargs: object) -> dict[int, NDArray[np.bool_]]:
        """Compute every mask by one pass over the cutout, however many there are.

        Parameters
        ----------
        **kwargs
            Passed to ``dask.array.Array.compute``.

        Returns
        -------
        dict of int to numpy.ndarray of bool
            Root id -> mask, ids ascending. All of them are in memory at once.

        Raises
        ------
        TooLargeError
            The cutout, or all of the masks, are more than `max_bytes`.
        """
        labels = np.asarray(self.labels.compute(**kwargs), order="A")
        places = kernels.places_of(labels)
        self.remember(places)
        check_bytes(labels.size * len(self._ids()), sources_in(self.labels))
        return {root: kernels.mask_at(places[root], labels) for root in self._ids()}

    def select(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Return those of some ids that have a mask, ascending."""
        return tuple(sorted(int(value) for value in ids if self._may_hold(int(value))))

    def remember(self, ids: Iterable[int]) -> None:
        """Keep the ids that a complete pass over the cutout has found."""
        self._found = self.select(ids)

    def _may_hold(self, root_id: int) -> bool:
        rule = self._cutout.labels
        if root_id == 0:
            return self._include_null_root
        return rule is None or rule.keep is None or root_id in rule.keep

    def _ids(self) -> tuple[int, ...]:
        if self._found is None:
            self.remember(count_ids(self.labels))
        return self._found or ()


def count_ids(labels: da.Array) -> dict[int, int]:
    """Count the voxels of each id of a lazy array by a tree of block-wise reductions; ids ascend."""
    check_blocks(labels)
    source = source_of(labels)
    blocks = labels.to_delayed().ravel() if source is None else block_reads(labels, source)
    parts = [dask.delayed(kernels.unique_counts)(block) for block in blocks]
    while len(parts) > 1:
        parts = [dask.delayed(_merge)(parts[i : i + FAN_IN]) for i in range(0, len(parts), FAN_IN)]
    ((ids, counts),) = dask.compute(*parts)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _merge(parts: list[Counts]) -> Counts:
    ids = np.concatenate([part[0] for part in parts])
    counts = np.concatenate([part[1] for part in parts])
    distinct, owner = np.unique(ids, return_inverse=True)
    total = np.zeros(len(distinct), dtype=np.int64)
    np.add.at(total, owner, counts)  # integers: bincount's weights are floats
    return distinct, total
