"""What became of an export."""

from __future__ import annotations

from dataclasses import dataclass, field

from imagery_dask.errors import BlockFailedError
from imagery_dask.sources import ReadCounts

__all__ = ["FailedBlock", "RunReport"]


@dataclass(frozen=True, slots=True)
class FailedBlock:
    """A block that failed, and why."""

    name: str
    reason: str


@dataclass(slots=True)
class RunReport:
    """What became of an export.

    Parameters
    ----------
    blocks : int
        Blocks in all.
    done : int
        Blocks that are written, by this call or by earlier ones that it went on from.
    voxels : int
        Voxels in all; 0 where the report is of a part of an export.
    written_bytes : int
        Bytes of the voxels that were written, uncompressed.
    seconds : float
        Wall time of the blocks of this call.
    counts : ReadCounts
        Storage chunks read and missing, bytes received.
    counts_of : dict of str to ReadCounts
        The same for each volume.
    failed : list of FailedBlock
        The blocks that failed (the first thousand).
    failures : int
        Number of blocks that failed.
    notes : list of str
        What a reader of the report should know, in sentences.
    before : int
        Blocks that earlier calls had written: these were not done again.
    before_bytes : int
        Their bytes.
    repeats : int
        Attempts at blocks that were repeated, after failures that may pass.
    """

    blocks: int
    done: int = 0
    voxels: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    counts: ReadCounts = field(default_factory=ReadCounts)
    counts_of: dict[str, ReadCounts] = field(default_factory=dict)
    failed: list[FailedBlock] = field(default_factory=list)
    failures: int = 0
    notes: list[str] = field(default_factory=list)
    before: int = 0
    before_bytes: int = 0
    repeats: int = 0

    @property
    def ok(self) -> bool:
        """Whether every block was written."""
        return self.done == self.blocks

    def raise_for_failures(self) -> None:
        """Raise `BlockFailedError` when a block failed."""
        if self.failures:
            first = self.failed[0]
            raise BlockFailedError(
                f"{self.failures} of {self.blocks} blocks failed; {self.done} were written. "
                f"{first.name}: {first.reason}",
                self,
            )

    @property
    def mb_per_s(self) -> float:
        """Voxel bytes written per second of wall time of this call, in units of 10**6 bytes."""
        return (self.written_bytes - self.before_bytes) / 1e6 / self.seconds if self.seconds else 0.0
