"""The table of the roots of all supervoxels at one moment, and of their ids in other layers if these are recorded.

A block is a row group of the table of supervoxels, and so are the row groups of this table: the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from imagery_dask import kernels
from imagery_dask.annotations import JsonObject
from imagery_dask.export.core.base import BlockReads
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import Region
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.records.runs import Records, now
from imagery_dask.run import BlockTask, RunReport, Workers, Written
from imagery_dask.serialization import to_json
from imagery_dask.sources import look_up_roots
from imagery_dask.sources.graph.root_tables import column_of_layer
from imagery_dask.versions.tables.root_changes import Lookup, known_roots
from imagery_dask.versions.tables.table_export import Pieces, TableExport
from imagery_dask.versions.tables.table_files import GROUP_ROWS, ColumnsHash, TableFile, TableWriter, groups_of

__all__ = ["RootsTable"]

Ids = NDArray[np.uint64]
COPIED = ("supervoxel", "chunk")
HASHED = ["supervoxel", "root"]
# File of a run that says how the roots are found, and its piece with the roots that have changed.
LOOKUP, CHANGED = "lookup.json", "changed"


@dataclass(frozen=True, slots=True)
class LookUpRoots:
    """Task of a block: the roots of the supervoxels of a row group, and their ids in other layers."""

    number: int
    # The first is for roots.
    queries: tuple[RootQuery, ...]
    supervoxels: TableFile
    pieces: Pieces
    # Roots at another moment, if only those that have changed since are looked up.
    base: TableFile | None
    hashes_files: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name of the task."""
        return f"look-up roots z0 y0 x{self.number}"

    @property
    def volume(self) -> str:
        """Name of the table."""
        return RootsTable.layer

    def __call__(self) -> Written:
        """Write the roots."""
        found = self._found()
        self.pieces.put(f"{self.number:08}", found)
        return Written(found.shape[1], found.nbytes, kernels.digest_of_bytes(found.tobytes()))

    def _found(self) -> Ids:
        """Return the ids of the supervoxels in each layer, shape (layers, rows)."""
        ids: Ids = self.supervoxels.open().group(self.number, ["supervoxel"])["supervoxel"]
        if self.base is None:
            return np.stack([look_up_roots(query, ids) for query in self.queries])
        base = self.base.open()
        roots, sent = known_roots(base, ids, _changed(self.pieces))
        found = np.empty((len(self.queries), len(ids)), np.uint64)
        for row, query in zip(found, self.queries, strict=True):
            column = column_of_layer(query.stop_layer)
            if column in base.columns:
                # Each edit makes new ids in all layers, up to the root: they change with it.
                row[:] = roots if query.stop_layer is None else base.rows_of(ids, [column])[1][column]
                row[sent] = look_up_roots(query, ids[sent])
            else:
                row[:] = look_up_roots(query, ids)
        return found

    def stored(self) -> bytes:
        """Return nothing: pieces are not kept."""
        return b""

    def expected(self) -> bytes:
        """Return the hash of the roots as they would be written now."""
        return kernels.digest_of_bytes(self._found().tobytes())


@lru_cache(maxsize=4)
def _changed(pieces: Pieces) -> Ids:
    return pieces.get(CHANGED)


class RootsTable(TableExport):
    """The roots of the supervoxels of a store at one moment.

    Parameters
    ----------
    table : TableFile
        The file.
    supervoxels : TableFile
        The table of supervoxels.
    query : RootQuery
        The graph, the moment, and the version.
    lookup : Lookup
        How roots are found; of a run that is resumed, what it began with counts.
    table_of : callable
        Returns the table of another version, by its name.
    stop_layers : sequence of int
        Layers whose ids are recorded too.
    """

    layer, doing = "roots", "look-up"

    def __init__(
        self,
        table: TableFile,
        supervoxels: TableFile,
        query: RootQuery,
        lookup: Lookup,
        table_of: Callable[[str], TableFile],
        stop_layers: Sequence[int] = (),
    ) -> None:
        fields: JsonObject = to_json({
            "server": query.graph.server, "table": query.graph.table, "version": query.version,
            "timestamp": query.timestamp, "supervoxels": supervoxels.open().facts["supervoxels_hash"],
            "layers": stop_layers,
        })  # fmt: skip
        super().__init__(table, fields, {"lookup": str(lookup)})
        self.supervoxels, self.query, self.lookup, self._table_of = supervoxels, query, lookup, table_of
        self._queries = (query, *(replace(query, stop_layer=layer) for layer in stop_layers))

    def blocks(self) -> BlockPlan:
        """Return the row groups, along x."""
        edges = (0, *accumulate(self.supervoxels.open().group_rows))
        return BlockPlan((edges, (0, 1), (0, 1)), (True, True, True))

    @property
    def reads(self) -> BlockReads:
        """Rows of tables: ids, roots, what is sent and what is received."""
        return BlockReads((), 64 * len(self._queries) * GROUP_ROWS[1] + 2 * self.lookup.changed.nbytes)

    def prepare(self, run: StartedRun, workers: Workers, options: RunOptions, regions: object = None) -> None:
        """Write down how the roots are found."""
        del workers, options, regions
        if self.lookup.made_from is not None:
            Pieces.of(run).put(CHANGED, self.lookup.changed)
        run.records.put(LOOKUP, {"made_from": self.lookup.made_from, "requests": self.lookup.requests})

    def task(self, run: StartedRun) -> Callable[[int, Region], BlockTask]:
        """Return what makes the task of a block."""
        queries, supervoxels, pieces = self._queries, self.supervoxels, Pieces.of(run)
        name = self._begun(pieces)["made_from"]
        base = None if name is None else self._table_of(name)
        if base is not None and not base.exists:  # removed while the run was interrupted
            base = None
        return lambda number, region: LookUpRoots(number, queries, supervoxels, pieces, base)

    def _begun(self, pieces: Pieces) -> JsonObject:
        """Return what `prepare` has written down."""
        begun: JsonObject = Records(pieces.files, pieces.run).get(LOOKUP)
        return begun

    def join(self, pieces: Pieces, report: RunReport) -> None:
        """Write the roots beside their supervoxels, row group by row group."""
        begun, hashed, distinct = self._begun(pieces), ColumnsHash(HASHED), np.zeros(0, np.uint64)
        names = [column_of_layer(query.stop_layer) for query in self._queries]
        with TableWriter(self.table, dict.fromkeys((*COPIED, *names), np.uint64), ["chunk", *names]) as writer:
            for number, rows in enumerate(groups_of(self.supervoxels.open(), COPIED)):
                rows |= zip(names, pieces.get(f"{number:08}"), strict=True)
                writer.write(rows)
                hashed.add(rows)
                distinct = np.union1d(distinct, rows["root"])
            said: JsonObject = {
                "version": self.query.version, "timestamp": self.query.timestamp, "server": self.query.graph.server,
                "table": self.query.graph.table, "rows": writer.rows, "roots": int((distinct != 0).sum()),
                "requests": report.counts.root_requests + begun["requests"], "ids_sent": report.counts.ids_sent,
                "made_from": begun["made_from"], "hash": hashed.hexdigest(),
                "supervoxels_hash": hashed.of("supervoxel"), "created": now(),
            }  # fmt: skip
            writer.publish(said)
