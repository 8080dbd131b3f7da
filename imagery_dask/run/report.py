"""The result of an export: how many blocks were written, what was read, and what failed."""

from __future__ import annotations

from dataclasses import dataclass, field

from imagery_dask.errors import BlockFailedError
from imagery_dask.sources import ReadCounts

__all__ = ["FailedBlock", "RunReport"]


@dataclass(frozen=True, slots=True)
class FailedBlock:
    """A block that failed, and the reason."""

    name: str
    reason: str


@dataclass(slots=True)
class RunReport:
    """Result of an export.

    Parameters
    ----------
    blocks : int
        Number of blocks of the export.
    done : int
        Number of blocks written, by this call and by earlier calls that it resumed.
    voxels : int
        Number of voxels of the export; 0 in the report of a part.
    written_bytes : int
        Uncompressed bytes of the written voxels.
    seconds : float
        Wall time of the blocks of this call.
    counts : ReadCounts
        Storage chunks read, storage chunks missing, and bytes received.
    counts_of : dict of str to ReadCounts
        The same counts by layer.
    failed : list of FailedBlock
        The first thousand blocks that failed.
    failures : int
        Number of blocks that failed.
    notes : list of str
        Remarks about the result, as sentences.
    before : int
        Number of blocks that earlier calls wrote.
    before_bytes : int
        Uncompressed bytes of these blocks.
    repeats : int
        Number of repeated attempts, after errors that may pass.
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
        """True if every block was written."""
        return self.done == self.blocks

    def raise_for_failures(self) -> None:
        """Raise `BlockFailedError` if a block failed."""
        if self.failures:
            first = self.failed[0]
            raise BlockFailedError(
                f"{self.failures} of {self.blocks} blocks failed; {self.done} were written. "
                f"{first.name}: {first.reason}",
                self,
            )

    @property
    def mb_per_s(self) -> float:
        """Rate of this call: uncompressed bytes written per second of wall time, in units of 10**6 bytes."""
        return (self.written_bytes - self.before_bytes) / 1e6 / self.seconds if self.seconds else 0.0
