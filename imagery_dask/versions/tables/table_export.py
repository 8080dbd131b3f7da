"""A table as an export: blocks of rows in place of voxels, so that it has their plan, receipts, lease and workers.

Each block writes its rows to pieces, files beside the records of the run. When all are there, `close` joins them row
group by row group, and the table appears::

    blocks                     RUN/piece-...  (each with a receipt)
    close                      piece, piece, ...  ->  NAME.parquet, at once
    `write_table`, afterwards  pieces are removed
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core.base import BlockReads, Export, OutputFormat
from imagery_dask.export.core.plans import ExportPlan, StageBlocks
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.execution.execute import execute
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import Region
from imagery_dask.records.runs import records_of
from imagery_dask.run import BlockTask, RunReport, Workers
from imagery_dask.storage.atomic_files import Files
from imagery_dask.versions.tables.table_files import TableFile
from imagery_dask.versions.tables.table_target import PIECE, TableTarget, remove_pieces

__all__ = ["Pieces", "TableExport", "write_table"]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Arrays that blocks of a run have written, by name. Small and picklable."""

    files: Files
    run: str

    @classmethod
    def of(cls, run: StartedRun) -> Pieces:
        """Return the pieces of a run."""
        return cls(run.records.files, run.id)

    def put(self, name: str, array: Array) -> None:
        """Write a piece atomically."""
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        self.files.put(f"{self.run}/{PIECE}{name}.npy", content.getvalue())

    def get(self, name: str) -> Array:
        """Return a piece.

        Raises
        ------
        FileNotFoundError
            It is gone.
        """
        content = self.files.get(f"{self.run}/{PIECE}{name}.npy")
        if content is None:
            raise FileNotFoundError(f"The piece {name} of {self.files.url}/{self.run} is gone.")
        return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))

    def names(self) -> list[str]:
        """Return the names of the pieces, in their order."""
        start = f"{self.run}/{PIECE}"
        return sorted(name.removeprefix(start).removesuffix(".npy") for name in self.files.names(start))


@dataclass(frozen=True, slots=True)
class TableTasks(Sequence[Any]):
    """Tasks of the blocks of a table, each made when it is taken."""

    blocks: BlockPlan
    make: Callable[[int, Region], BlockTask]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: Any) -> Any:
        return self.make(number, self.blocks[number][1])


class TableExport(Export):
    """An export of a table to one file.

    Parameters
    ----------
    table : TableFile
        The file.
    fields : dict
        What determines the rows, by name.
    options : dict
        What else the plan says of how they are made.
    """

    kind = "table"
    #: Name of what is written, and what a block does, in reports and plans.
    layer: ClassVar[str]
    doing: ClassVar[str]

    def __init__(self, table: TableFile, fields: JsonObject, options: JsonObject) -> None:
        self.table, self.volumes = table, ()
        self.target = TableTarget(table)
        self.fingerprint_fields, self.options = {"format": self.kind, "table": self.layer} | fields, options

    @property
    def records(self) -> Files | None:
        """Folder of the records."""
        return records_of(self.url)

    @abstractmethod
    def blocks(self) -> BlockPlan:
        """Return the blocks."""

    @abstractmethod
    def task(self, run: StartedRun) -> Callable[[int, Region], BlockTask]:
        """Return what makes the task of a block, of its number and region."""

    @abstractmethod
    def join(self, pieces: Pieces, report: RunReport) -> None:
        """Write the table from the pieces."""

    @property
    @abstractmethod
    def reads(self) -> BlockReads:
        """What a block reads, and how much a task holds."""

    def plan(self, resources: WorkerResources, block_bytes: int | None) -> ExportPlan:
        """Plan the blocks."""
        del resources, block_bytes
        stage = (StageBlocks(self.layer, self.doing, 0, self.blocks()),)
        return ExportPlan(
            kind=self.kind, url=self.url, volumes=[], options=self.options, fingerprint_fields=self.fingerprint_fields,
            stages=(stage,), voxels=0,
        )  # fmt: skip

    def create(self, run: StartedRun, workers: Workers, regions: Sequence[Region] | None = None) -> None:
        """Do nothing: pieces lie beside the records."""
        del run, workers, regions

    def tasks(self, run: StartedRun) -> Sequence[Sequence[BlockTask]]:
        """Return the tasks of the only stage."""
        make = self.task(run)
        return [TableTasks(part.blocks, make) for (part,) in run.plan.stages]

    def close(self, run: StartedRun, report: RunReport) -> None:
        """Join the pieces, unless some are left to do."""
        if report.ok:
            self.join(Pieces.of(run), report)


def _reads(export: TableExport, part: StageBlocks) -> BlockReads:
    del part
    return export.reads


def _one(export: TableExport) -> int:
    del export
    return 1


def _none(*of: Any) -> Iterator[Any]:
    del of
    return iter(())


TableExport.format = OutputFormat(_reads, _one, _none, _none)


def write_table(export: TableExport, options: RunOptions) -> RunReport:
    """Write a table, or what is left of it; do nothing if it is there."""
    report = RunReport(0, notes=[f"{export.table.name} is there already."])
    if not export.table.exists:
        report = execute(export, options)
    remove_pieces(export.table)
    return report
