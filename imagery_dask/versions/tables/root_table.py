"""The table of the roots of all supervoxels at one moment: the column that a version adds.

A block is a row group of the table of supervoxels, and so are the row groups of this table: the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

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
from imagery_dask.versions.tables.root_changes import Lookup, known_roots
from imagery_dask.versions.tables.table_export import Pieces, TableExport
from imagery_dask.versions.tables.table_files import GROUP_ROWS, ColumnsHash, TableFile, TableWriter, groups_of

__all__ = ["COLUMNS", "RootsTable"]

Ids = NDArray[np.uint64]
COLUMNS = {"supervoxel": np.uint64, "chunk": np.uint64, "root": np.uint64}
HASHED = ["supervoxel", "root"]
# File of a run that says how the roots are found, and its piece with the roots that have changed.
LOOKUP, CHANGED = "lookup.json", "changed"


@dataclass(frozen=True, slots=True)
class LookUpRoots:
    """Task of a block: the roots of the supervoxels of a row group."""

    number: int
    query: RootQuery
    supervoxels: TableFile
    pieces: Pieces
    # Roots at another moment, if only those that have changed since are looked up.
    base: TableFile | None

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
        roots = self._roots()
        self.pieces.put(f"{self.number:08}", roots)
        return Written(len(roots), roots.nbytes, kernels.digest_of_bytes(roots.tobytes()))

    def _roots(self) -> Ids:
        ids: Ids = self.supervoxels.open().group(self.number, ["supervoxel"])["supervoxel"]
        if self.base is None:
            return look_up_roots(self.query, ids)
        roots, sent = known_roots(self.base.open(), ids, _changed(self.pieces))
        roots[sent] = look_up_roots(self.query, ids[sent])
        return roots

    def stored(self) -> bytes:
        """Return nothing: pieces are not kept."""
        return b""

    def expected(self) -> bytes:
        """Return the hash of the roots as they would be written now."""
        return kernels.digest_of_bytes(self._roots().tobytes())


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
    """

    layer, doing = "roots", "look-up"

    def __init__(
        self,
        table: TableFile,
        supervoxels: TableFile,
        query: RootQuery,
        lookup: Lookup,
        table_of: Callable[[str], TableFile],
    ) -> None:
        fields: JsonObject = to_json({
            "server": query.graph.server, "table": query.graph.table, "version": query.version,
            "timestamp": query.timestamp, "supervoxels": supervoxels.open().facts["supervoxels_hash"],
        })  # fmt: skip
        super().__init__(table, fields, {"lookup": str(lookup)})
        self.supervoxels, self.query, self.lookup, self._table_of = supervoxels, query, lookup, table_of

    def blocks(self) -> BlockPlan:
        """Return the row groups, along x."""
        edges = (0, *accumulate(self.supervoxels.open().group_rows))
        return BlockPlan((edges, (0, 1), (0, 1)), (True, True, True))

    @property
    def reads(self) -> BlockReads:
        """Rows of tables: ids, roots, what is sent and what is received."""
        return BlockReads((), 64 * GROUP_ROWS[1] + 2 * self.lookup.changed.nbytes)

    def prepare(self, run: StartedRun, workers: Workers, options: RunOptions, regions: object = None) -> None:
        """Write down how the roots are found."""
        del workers, options, regions
        if self.lookup.made_from is not None:
            Pieces.of(run).put(CHANGED, self.lookup.changed)
        run.records.put(LOOKUP, {"made_from": self.lookup.made_from, "requests": self.lookup.requests})

    def task(self, run: StartedRun) -> Callable[[int, Region], BlockTask]:
        """Return what makes the task of a block."""
        query, supervoxels, pieces = self.query, self.supervoxels, Pieces.of(run)
        name = self._begun(pieces)["made_from"]
        base = None if name is None else self._table_of(name)
        if base is not None and not base.exists:  # removed while the run was interrupted
            base = None
        return lambda number, region: LookUpRoots(number, query, supervoxels, pieces, base)

    def _begun(self, pieces: Pieces) -> JsonObject:
        """Return what `prepare` has written down."""
        begun: JsonObject = Records(pieces.files, pieces.run).get(LOOKUP)
        return begun

    def join(self, pieces: Pieces, report: RunReport) -> None:
        """Write the roots beside their supervoxels, row group by row group."""
        begun, hashed, distinct = self._begun(pieces), ColumnsHash(HASHED), np.zeros(0, np.uint64)
        with TableWriter(self.table, COLUMNS, ["chunk", "root"]) as writer:
            for number, rows in enumerate(groups_of(self.supervoxels.open(), ["supervoxel", "chunk"])):
                rows["root"] = pieces.get(f"{number:08}")
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
