"""Read an export back, and compare it with its receipts and with what the source gives now."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imagery_dask.cards import Card
from imagery_dask.cluster import WAIT_S
from imagery_dask.errors import ImageryDaskError, MissingChunkError, SourceError, SourceGoneError
from imagery_dask.export.core.base import held_bytes
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.core.run_states import DAMAGED, StartedRun, plan_in
from imagery_dask.export.core.store_metadata import damaged_metadata
from imagery_dask.export.registry import export_of, run_at
from imagery_dask.humanize import human_bytes, human_time
from imagery_dask.records.lease import NoLease
from imagery_dask.run import BlockTask, FailedBlock, Rules, RunReport, Written, run_blocks, workers_of
from imagery_dask.run.block import Chain
from imagery_dask.run.report import shown
from imagery_dask.sources.files.failures import brief, kind_of

__all__ = ["DamagedBlockError", "VerifyReport", "verify_export"]

# Fraction and number of the checked blocks that are read from the source again.
SOURCE_SHARE = 0.01
SOURCE_LEAST = 4
SOURCE_MOST = 1000
SAMPLE_LEAST = 4
# Blocks that the summary of a report names.
NAMED_SHOWN = 5


class DamagedBlockError(ImageryDaskError):
    """The stored bytes of a block differ from what was written."""


class SourceChangedError(ImageryDaskError):
    """The source gives other voxels of a block than when it was exported, or these are encoded to other files."""


KINDS = {f"{kind.__name__}: ": kind for kind in (DamagedBlockError, SourceChangedError)}
# Packages whose errors concern a server or the network, not what is stored.
OF_SERVERS = {"botocore", "obstore", "gcsfs", "aiohttp", "requests", "urllib3", "google", "tenacity"}


@dataclass(slots=True)
class VerifyReport:
    """Result of `verify_export`.

    Parameters
    ----------
    blocks : int
        Blocks of the export.
    unwritten : int
        Blocks without a receipt.
    checked : int
        Blocks that were read back.
    from_source : int
        Of these, blocks that were made again from the source.
    damaged : list of int
        Numbers of blocks that differ from what was written.
    source_changed : list of int
        Numbers of blocks that are made otherwise of the source now: other voxels, or other files where hashes are of
        files.
    unread : list of int
        Numbers of blocks that could not be read: the store or the source did not answer.
    named : list of FailedBlock
        Names and reasons of all these.
    metadata : list of str
        Metadata files of the store that are lost or differ from what was written. Blocks that cannot be read because
        of them are among the damaged ones, but are not written down: a repair writes the files, then verify again.
    seconds : float
        Wall time.
    read_bytes : int
        Voxel bytes, uncompressed, of the blocks that are as written.
    """

    blocks: int
    unwritten: int
    checked: int = 0
    from_source: int = 0
    damaged: list[int] = field(default_factory=list)
    source_changed: list[int] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    named: list[FailedBlock] = field(default_factory=list)
    seconds: float = 0.0
    read_bytes: int = 0
    metadata: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        """Return the summary of the report."""
        rows = [
            ("blocks", f"{self.checked:,} of {self.blocks:,} read back; {self.unwritten:,} not written"),
            ("from source", f"{self.from_source:,} of these made again from the source"),
            ("read", f"{human_bytes(self.read_bytes)} uncompressed in {human_time(self.seconds)}"),
        ]
        found = [
            (len(self.damaged), "blocks differ from what was written"),
            (len(self.source_changed), "blocks that are made otherwise of the source now"),
            (len(self.unread), "blocks that could not be read"),
            (len(self.metadata), "metadata files are lost or differ"),
        ]
        problems = [f"{number:,} {what}." for number, what in found if number]
        problems += [f"{block.name}: {block.reason}" for block in self.named[:NAMED_SHOWN]]
        verdict = "as written" if self.ok else "incomplete" if not problems else "not as written"
        return Card(f"VerifyReport: {verdict}", rows, problems=problems)

    @property
    def ok(self) -> bool:
        """Return True if all blocks are written, and all that were checked are as written."""
        return not (self.unwritten or self.damaged or self.source_changed or self.unread or self.metadata)


def verify_export(
    url: str | os.PathLike[str],
    *,
    sample: float | None = 0.01,
    source: bool = True,
    seed: int | None = None,
    cluster: Any = None,
    workers: int | Literal["auto"] | None = None,
    max_workers: int | None = None,
    wait_s: float = WAIT_S,
    retire_before_s: float | None = None,
    progress: bool | Callable[[RunReport], None] = True,
) -> VerifyReport:
    """Read an export back and compare it with its receipts; make some blocks again from the source.

    Parameters
    ----------
    url : str or path
        The export; for slices their prefix.
    sample : float or None
        Fraction of the blocks to check, chosen at random, above 0; None checks all.
    source : bool
        Make one in a hundred of these (at least four) again from the source.
    seed : int, optional
        Chooses the same blocks again.
    cluster, workers, max_workers, progress : optional
        As in `to_zarr`.
    wait_s, retire_before_s : optional
        As in `imagery_dask.cluster.connect`.

    Returns
    -------
    VerifyReport
        Which blocks are damaged. They are written down beside the export too, and ``repair=True`` (``--repair``) does
        them again.

    Raises
    ------
    FileNotFoundError
        There are no records of an export at `url`.
    ValueError
        `sample` is not above 0 and at most 1.
    """
    if sample is not None and not 0 < sample <= 1:
        raise ValueError(f"sample is a fraction of the blocks, above 0 and at most 1; got {sample!r}.")
    record = run_at(os.fspath(url))
    plan = plan_in(record)
    export = export_of(plan)
    run = StartedRun(export.target, record, plan, NoLease())
    receipts = run.receipts
    report = VerifyReport(plan.blocks, plan.blocks - len(receipts))
    for name, reason in damaged_metadata(export, run).items():
        report.metadata.append(name)
        report.named.append(FailedBlock(name, reason))
    chosen, again = _chosen(plan, receipts["block"].astype(np.int64), sample, np.random.default_rng(seed))
    if not source or plan.source_chunks is None:
        again = again[:0]
    numbers = np.ascontiguousarray(receipts["block"])
    todo = np.zeros(plan.blocks, bool)
    todo[chosen] = True
    making = set(again.tolist())

    def wrap(task: BlockTask, number: int) -> BlockTask:
        receipt = receipts[numbers.searchsorted(numbers.dtype.type(number))]
        return CheckBlock(task, bytes(receipt["digest"]), int(receipt["written_bytes"]), number in making)

    def note(number: int, task: BlockTask, reason: str, attempts: int) -> None:
        kind = next((kind for start, kind in KINDS.items() if reason.startswith(start)), None)
        of_kind = {DamagedBlockError: report.damaged, SourceChangedError: report.source_changed, None: report.unread}
        of_kind[kind].append(number)
        report.named.append(FailedBlock(task.name, reason if kind is None else reason.partition(": ")[2]))

    rules = Rules(todo=todo, wrap=wrap, on_failure=note)
    if len(chosen):
        with (
            workers_of(cluster, workers, wait_s, retire_before_s, max_workers=max_workers) as own,
            shown(progress, len(chosen)) as on_progress,
        ):
            export.target.check_workers(own)
            own.fit(held_bytes(export, plan))
            ran = run_blocks(own, [Chain(export.tasks(run))], RunReport(len(chosen)), on_progress, rules)
        report.seconds, report.read_bytes = ran.seconds, ran.written_bytes
    report.checked, report.from_source = len(chosen), len(again)
    if not report.metadata:  # without which blocks may only seem to be damaged
        _write_down(run, report, chosen, again)
    return report


@dataclass(frozen=True, slots=True)
class CheckBlock:
    """Task that checks a block instead of writing it.

    Parameters
    ----------
    task : BlockTask
        What has written it.
    digest : bytes
        Hash of what that wrote.
    size : int
        How many bytes that are, uncompressed.
    again : bool
        Whether to make it again from the source.
    """

    task: BlockTask
    digest: bytes
    size: int
    again: bool

    @property
    def name(self) -> str:
        """Name of the task, for the dashboard."""
        _, _, of = self.task.name.partition(" ")
        return f"verify {of}"

    @property
    def volume(self) -> str:
        """Name of the volume."""
        return self.task.volume

    @property
    def hashes_files(self) -> bool:
        """Whether hashes are of files, not of voxels."""
        return self.task.hashes_files

    def __call__(self) -> Written:
        """Compare; raise if something differs."""
        if self._look() != self.digest:
            raise DamagedBlockError("its bytes in the store are others than were written, or some are gone")
        if self.again and self._make_again() != self.digest:
            what = "files made of the source" if self.hashes_files else "voxels of the source"
            raise SourceChangedError(f"the {what} are others now than when this was exported")
        return Written(0, self.size, self.digest)

    def _look(self) -> bytes:
        try:
            return self.task.stored()
        except Exception as error:
            if isinstance(error, ImageryDaskError):
                raise
            if _is_of_a_server(error):
                raise ConnectionError(brief(error)) from None
            # A block that is gone, or does not decode, does not become readable later.
            raise DamagedBlockError(f"it cannot be read: {brief(error)}") from None

    def _make_again(self) -> bytes:
        try:
            return self.task.expected()
        except SourceGoneError as error:
            raise SourceError(str(error)) from None
        except MissingChunkError as error:
            raise SourceChangedError(f"the source does not have all of it any more: {error}") from None

    def stored(self) -> bytes:
        """Hash of what is in the store."""
        return self.task.stored()

    def expected(self) -> bytes:
        """Hash of what the source gives now."""
        return self.task.expected()


def _is_of_a_server(error: Exception) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.partition(".")[0] in OF_SERVERS:
        return kind_of(error) != "not there"
    # Of a disk that does not answer; decoders' own errors have no number.
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError)


def _chosen(
    plan: ExportPlan, blocks: NDArray[np.int64], sample: float | None, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the blocks to check, and those of them to make again from the source."""
    count = len(blocks) if sample is None else min(len(blocks), max(SAMPLE_LEAST, round(sample * len(blocks))))
    chosen = np.sort(random.choice(blocks, count, replace=False)) if count < len(blocks) else blocks
    reading = np.zeros(plan.blocks, bool)
    for first, part in plan.parts:
        reading[first : first + len(part.blocks)] = part.doing != "downsample"
    again = min(len(chosen), SOURCE_MOST, max(SOURCE_LEAST, round(SOURCE_SHARE * len(chosen))))
    fitting = chosen[reading[chosen]]
    return chosen, np.sort(random.choice(fitting, min(again, len(fitting)), replace=False))


def _write_down(run: StartedRun, report: VerifyReport, chosen: NDArray[np.int64], again: NDArray[np.int64]) -> None:
    """Write down which blocks are damaged; blocks that were not checked now stay as they were."""
    read, made = set(chosen.tolist()) - set(report.unread), set(again.tolist()) - {*report.unread, *report.damaged}
    damaged, changed = run.damaged()
    digests = run.digests_before()
    content = {
        "blocks": sorted({*report.damaged, *(set(damaged) - read)}),
        "source_changed": sorted({*report.source_changed, *(set(changed) - made)}),
    }
    if any(content.values()):
        # What was written of these: a repair that writes something else makes again what was made of it.
        rows = run.receipts
        rows = rows[np.isin(rows["block"], content["blocks"])]
        written = {str(row["block"]): row["digest"].item().hex() for row in rows}
        run.records.put(DAMAGED, content | {"digests": written | {n: digests[n] for n in written if n in digests}})
    else:
        run.records.remove(DAMAGED)
