"""Tables of objects, from the tables of a store: sizes, places, and which became which. No voxel is read.

Tables are read one row group at a time, and what is kept of them grows with the number of objects, not of supervoxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.geometry.grid import AXES, XYZ
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.graph.root_tables import ROOT, IdTable
from imagery_dask.sources.graph.table_footers import SUPERVOXEL

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ObjectPlace", "Pieces", "objects_of", "place_of", "roots_among", "supervoxels_of", "unmatched"]

Ids = NDArray[np.uint64]

VOXELS, CHUNK = "voxels", "chunk"
STARTS = tuple(f"{axis}_start" for axis in AXES)
STOPS = tuple(f"{axis}_stop" for axis in AXES)
# Rows that are held before equal keys are joined.
JOINED_AT = 2**20


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """Where an object is, known without reading voxels.

    Parameters
    ----------
    root : int
        Its id.
    chunks : pandas.DataFrame
        Its graph chunks, by id: ``supervoxels`` and ``voxels`` of it there, and their box, ``x_start`` to ``z_stop``.
    start, stop : tuple of 3 int
        Its box: first voxel, and one past the last, x, y, z in voxels of level 0.
    """

    root: int
    chunks: pd.DataFrame
    start: XYZ
    stop: XYZ

    @property
    def voxels(self) -> int:
        """Voxels of the object at level 0."""
        return int(self.chunks[VOXELS].sum())

    @property
    def bounds(self) -> NDArray[np.int64]:
        """The box as bounds, shape (2, 3), for cutouts and `VersionStore.at`."""
        return np.array([self.start, self.stop])

    def __repr__(self) -> str:
        return (
            f"ObjectPlace({self.root}: {self.voxels:,} voxels in {len(self.chunks):,} graph chunks, "
            f"{self.start} to {self.stop})"
        )


class Pieces:
    """Sums and boxes of supervoxels by a key of several ids, joined as they come.

    Parameters
    ----------
    keys : sequence of str
        Names of the ids.
    boxes : bool
        Whether boxes are joined too.
    """

    def __init__(self, keys: Sequence[str], boxes: bool = True) -> None:
        self._keys, self._boxes = tuple(keys), boxes
        self._parts: list[dict[str, NDArray[Any]]] = []
        self._rows = self._least = 0

    def add(self, rows: dict[str, NDArray[Any]]) -> None:
        """Add supervoxels: columns of the keys, ``voxels``, and boxes."""
        if "supervoxels" not in rows:
            rows = rows | {"supervoxels": np.ones(len(rows[VOXELS]), np.uint64)}
        joined = self._joined([rows])
        self._parts.append(joined)
        self._rows += len(joined[VOXELS])
        if self._rows > max(JOINED_AT, 2 * self._least):
            self._parts = [self._joined(self._parts)]
            self._rows = self._least = len(self._parts[0][VOXELS])

    def table(self) -> pd.DataFrame:
        """Return a row for each key, ascending, with the keys as columns."""
        import pandas as pd

        joined = self._joined(self._parts) if self._parts else self._nothing()
        return pd.DataFrame(joined)

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*self._keys, "supervoxels", VOXELS, *((*STARTS, *STOPS) if self._boxes else ()))

    def _nothing(self) -> dict[str, NDArray[Any]]:
        return {name: np.zeros(0, np.int64 if name in STARTS + STOPS else np.uint64) for name in self._columns}

    def _joined(self, parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        columns = {name: np.concatenate([part[name] for part in parts]) for name in self._columns}
        if len(columns[VOXELS]) == 0:
            return self._nothing()
        order = np.lexsort([columns[name] for name in reversed(self._keys)])
        columns = {name: values[order] for name, values in columns.items()}
        begins = np.zeros(len(order), bool)
        begins[0] = True
        for name in self._keys:
            begins[1:] |= columns[name][1:] != columns[name][:-1]
        first = np.flatnonzero(begins)
        joined = {name: columns[name][first] for name in self._keys}
        for name in ("supervoxels", VOXELS):
            joined[name] = np.add.reduceat(columns[name], first)
        for names, reduce in ((STARTS, np.minimum), (STOPS, np.maximum)):
            joined |= {name: reduce.reduceat(columns[name], first) for name in names if self._boxes}
        return joined


def objects_of(supervoxels: IdTable, roots: IdTable) -> pd.DataFrame:
    """Return the objects of a version, by root id: ``supervoxels``, ``voxels`` and box.

    Parameters
    ----------
    supervoxels : IdTable
        Supervoxels of the store.
    roots : IdTable
        Root ids of the version.
    """
    pieces = Pieces([ROOT])
    for number in range(supervoxels.groups):
        rows = supervoxels.group(number, [SUPERVOXEL, VOXELS, *STARTS, *STOPS])
        owners = roots_among(roots, rows[SUPERVOXEL])
        there = owners != 0
        pieces.add({ROOT: owners[there], **{name: values[there] for name, values in rows.items()}})
    return pieces.table().set_index(ROOT)


def place_of(supervoxels: IdTable, roots: IdTable, root: int) -> ObjectPlace | None:
    """Return where an object is; None if the version has no supervoxel of it."""
    pieces = Pieces([CHUNK])
    for ids in supervoxels_of(roots, [root]):
        known, rows = supervoxels.rows_of(ids, [CHUNK, VOXELS, *STARTS, *STOPS])
        pieces.add({name: values[known] for name, values in rows.items()})  # others are not in the volume any more
    chunks = pieces.table().set_index(CHUNK)
    if not len(chunks):
        return None
    start, stop = (
        Vec3.of(int(reduce(chunks[name])) for name in names) for names, reduce in ((STARTS, min), (STOPS, max))
    )
    return ObjectPlace(root, chunks, start, stop)


def supervoxels_of(roots: IdTable, objects: Iterable[int]) -> Iterator[Ids]:
    """Yield the supervoxels of objects, ascending, a part of them at a time."""
    return roots.supervoxels_of(np.array(sorted(objects), np.uint64))


def unmatched(roots: IdTable, objects: Iterable[int]) -> list[int]:
    """Return those among objects of which a version has no supervoxel; the table is read until all are found."""
    left = np.array(sorted(objects), np.uint64)
    for number in range(roots.groups):
        if not len(left):
            break
        left = np.setdiff1d(left, roots.group(number, [ROOT])[ROOT])
    return [int(root) for root in left]


def roots_among(roots: IdTable, supervoxels: Ids) -> Ids:
    """Return the roots of the store's supervoxels, all of which a version's table has."""
    from imagery_dask.sources.graph.root_tables import look_up_stored

    return look_up_stored(roots.url, supervoxels)
