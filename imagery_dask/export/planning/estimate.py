"""Estimate what an export takes before it is run: exactly where that follows from the plan, else from samples."""

from __future__ import annotations

import json
import math
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from imagery_dask.annotations import JsonObject
from imagery_dask.cards import Card, CardTable
from imagery_dask.cluster import WorkerResources, cores
from imagery_dask.export.core.base import Export, held_bytes
from imagery_dask.export.core.held_blocks import notes_of_objects
from imagery_dask.export.core.plans import FORMAT, ExportPlan, StageBlocks, chunk_reads
from imagery_dask.export.core.run_options import RunOptions, block_bytes_of
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.planning import SAMPLES
from imagery_dask.export.planning.adapting import Adapted, adapted_to, smaller_block
from imagery_dask.export.planning.sampling import Sample, Sampling, sample_blocks
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.humanize import human_bytes, human_time
from imagery_dask.run import RunReport
from imagery_dask.serialization import json_object, to_json
from imagery_dask.validate import expanded_path

__all__ = ["Estimate", "PlannedExport", "Span", "plan_export"]

# Fraction of a worker's memory above which dask pauses the worker.
MEMORY_USED = 0.8


@dataclass(frozen=True, slots=True)
class Span:
    """A quantity that is measured on a few blocks.

    Parameters
    ----------
    low, typical, high : float
        From the smallest, the mean and the largest of the samples.
    """

    low: float
    typical: float
    high: float

    def text(self, shown: Callable[[float], str]) -> str:
        """Return the typical value, and the range if there is one."""
        low, typical, high = shown(self.low), shown(self.typical), shown(self.high)
        return typical if low == high else f"{typical} ({low} to {high})"

    def plus(self, low: float, typical: float, high: float) -> Span:
        """Return the sum with another span."""
        return Span(self.low + low, self.typical + typical, self.high + high)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an export takes.

    Parameters
    ----------
    workers : int
        Workers, of one thread each, that the estimate is for.
    samples : int
        Blocks that were measured.
    read_bytes : Span
        Bytes to receive from the source, as stored there.
    written_bytes : Span
        Bytes of the files to write.
    seconds : Span
        Time with these workers, if the source and the target are as fast for all of them as for one.
    source_chunks : int or None
        Reads of storage chunks; a chunk that several blocks read counts for each.
    amplification : float or None
        Reads for each storage chunk of the region: 1 if each is read once.
    root_requests : Span
        Requests to the chunked graph.
    supervoxels : Span
        Supervoxels to look up.
    objects : int
        Files or objects to write, at most.
    peak_bytes : int
        Memory of a worker: the most of a process that wrote the sample blocks, or what a block holds by its shape.
    missing : float
        Fraction of the storage chunks of the samples that do not exist.
    """

    workers: int
    samples: int
    read_bytes: Span
    written_bytes: Span
    seconds: Span
    source_chunks: int | None
    amplification: float | None
    root_requests: Span
    supervoxels: Span
    objects: int
    peak_bytes: int
    missing: float


@dataclass(frozen=True, slots=True)
class PlannedExport:
    """A plan, and what it takes.

    Parameters
    ----------
    export : Export
        What is exported.
    plan : ExportPlan
        Its blocks.
    estimate : Estimate
        What they take.
    adapted : Adapted
        Threads and size of blocks, as they were chosen.
    problems : tuple of str
        What does not fit.
    regions : mapping of str to tuple of ExportPlan and Estimate
        Part of the plan, and what it takes alone, of each named region; empty without such.
    """

    export: Export
    plan: ExportPlan
    estimate: Estimate
    adapted: Adapted
    problems: tuple[str, ...]
    regions: Mapping[str, tuple[ExportPlan, Estimate]] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Return the table that is printed, as labels and text."""
        plan, estimate = self.plan, self.estimate
        rows = plan.rows()
        rows.append(("to read", estimate.read_bytes.text(human_bytes)))
        if estimate.source_chunks is not None:
            again = "" if estimate.amplification is None else f", each {estimate.amplification:.3g} times"
            rows.append(("source requests", f"{estimate.source_chunks:,} storage chunks{again}"))
        if estimate.missing:
            rows.append(("missing", f"{estimate.missing:.2%} of the chunks of the sample blocks are missing"))
        if estimate.supervoxels.high:
            asked = f"in {estimate.root_requests.text(_count)} requests"
            rows.append(("root lookups", f"{estimate.supervoxels.text(_count)} supervoxels, {asked}"))
        rows += [
            ("to write", f"{estimate.written_bytes.text(human_bytes)} in at most {estimate.objects:,} files"),
            ("memory of a worker", human_bytes(estimate.peak_bytes)),
            ("time", f"{estimate.seconds.text(human_time)} with {estimate.workers:,} workers"),
            ("measured on", f"{estimate.samples} blocks"),
            *self.adapted.rows(),
            ("fingerprint", plan.fingerprint[:16]),
        ]
        return rows + [("note", note) for note in self.notes]

    @property
    def notes(self) -> list[str]:
        """What a reader of the result should know, as sentences."""
        return [*self.plan.notes(), *notes_of_objects(self.export, self.plan), *self.export.format.notes(self.export)]

    @property
    def tables(self) -> list[CardTable]:
        """A table with a row for each named region, if there are any."""
        if not self.regions:
            return []
        heads = ["region", "voxels", "blocks", "to read", "source requests", "to write", "files"]
        rows = [
            [
                name, f"{plan.voxels:,}", f"{plan.blocks:,}", human_bytes(estimate.read_bytes.typical),
                "" if estimate.source_chunks is None else f"{estimate.source_chunks:,}",
                human_bytes(estimate.written_bytes.typical), f"{estimate.objects:,}",
            ]
            for name, (plan, estimate) in self.regions.items()
        ]  # fmt: skip
        return [CardTable("Regions", heads, rows)]

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        return Card(f"Plan of a {self.plan.kind} export", self.rows(), self.tables, self.problems)

    def run(
        self,
        *,
        cluster: Any = None,
        workers: int | Literal["auto"] | None = None,
        max_workers: int | None = None,
        threads: int | None = None,
        progress: bool | Callable[[RunReport], None] = True,
        overwrite: bool = False,
        max_missing: float | None = None,
        max_requests: int | None = None,
        report: str | os.PathLike[str] | None = None,
    ) -> RunReport:
        """Run the export, with the blocks and threads as planned; arguments as of `to_zarr` and `RunOptions`."""
        return execute(self.export, RunOptions(
            cluster=cluster, workers=workers, max_workers=max_workers, threads=threads, progress=progress,
            overwrite=overwrite, report=report, plan=self.plan, max_missing=max_missing, max_requests=max_requests,
        ))  # fmt: skip

    def to_json(self) -> JsonObject:
        """Return plan and estimate as JSON without secrets, which ``imagery-dask export --plan`` reads."""
        regions = {
            name: {"voxels": plan.voxels, "blocks": plan.blocks} | to_json(estimate)
            for name, (plan, estimate) in self.regions.items()
        }
        found = {
            "estimate": to_json(self.estimate),
            "adapted": to_json(self.adapted),
            "problems": list(self.problems),
            "notes": self.notes,
        }
        return self.plan.to_json() | found | ({"regions": regions} if regions else {})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file."""
        file = Path(expanded_path(path))
        # A device, such as /dev/stdout, is written to.
        if file.is_file() and file.stat().st_size and (json_object(file.read_bytes()) or {}).get("format") != FORMAT:
            raise FileExistsError(f"{file} exists and is no saved plan: it will not be replaced; choose another name.")
        file.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def plan_export(
    export: Export,
    *,
    workers: int | None = None,
    worker_memory: int | None = None,
    block_mib: float | None = None,
    samples: int = SAMPLES,
    sampled: Callable[[Sampling], list[Sample]] = sample_blocks,
) -> PlannedExport:
    """Plan an export and measure a few of its blocks; nothing is written to the target.

    Parameters
    ----------
    export : Export
        What is exported.
    workers : int, optional
        Workers, of one thread each, to estimate for; one per core by default.
    worker_memory : int, optional
        Bytes of memory of each worker; by default an equal part of this machine's.
    block_mib : float, optional
        Size of blocks in MiB; by default as for an export, and smaller if the measured blocks take minutes.
    samples : int
        Blocks of each volume to measure; of each layer, where there are named regions.
    sampled : callable
        Function that writes and measures the samples.

    Raises
    ------
    ValueError
        A block does not fit into a worker.
    AccessRefusedError, OSError
        The target cannot be written, or the source cannot be read.
    """
    workers = workers or cores()
    memory = worker_memory or psutil.virtual_memory().available // workers
    resources = WorkerResources(workers, memory)
    plan = export.plan(resources, block_bytes_of(block_mib))
    export.target.check_writable()
    measured, slow = _measured(export, plan, samples, sampled), []
    if block_mib is None and (size := smaller_block(measured)) is not None:
        smaller = export.plan(resources, size)
        if smaller.stages != plan.stages:  # a block is no smaller than a shard
            slow, plan = measured, smaller
            measured = _measured(export, plan, samples, sampled)
    adapted = adapted_to(measured, slow)
    plan = replace(plan, waiting=adapted.waiting)
    by_region = export.by_region(plan)
    estimate = _estimate(export, plan, measured, workers)
    regions = {name: (own, _estimate(one, own, measured, workers)) for name, (one, own) in by_region.items() if name}
    return PlannedExport(export, plan, estimate, adapted, tuple(_problems(export, estimate, memory)), regions)


def _measured(
    export: Export, plan: ExportPlan, samples: int, sampled: Callable[[Sampling], list[Sample]]
) -> list[Sample]:
    """Measure some blocks of each layer."""
    by_region = export.by_region(plan)
    return [
        sample for region, numbers in _spread(plan, samples).items()
        for sample in sampled(Sampling(*by_region[region], numbers))
    ]  # fmt: skip


def _estimate(export: Export, plan: ExportPlan, samples: Sequence[Sample], workers: int) -> Estimate:
    """Scale the samples of each volume, by voxels, to all of its blocks."""
    layers = {part.layer for _, part in plan.parts}
    of_layer = {layer: [sample for sample in samples if sample.volume == layer] for layer in layers}

    def of(value: Callable[[Sample], float], reading: bool) -> Span:
        total = Span(0.0, 0.0, 0.0)
        for _, part in plan.parts:
            if reading and part.doing == "downsample":  # reads levels that were written
                continue
            voxels = math.prod(edges[-1] for edges in part.blocks.edges) * _volumes_read(export, part)
            values = [value(sample) / sample.voxels for sample in of_layer[part.layer]]
            total = total.plus(min(values) * voxels, float(np.mean(values)) * voxels, max(values) * voxels)
        return total

    at_once = min(workers, plan.blocks)
    chunks = sum(sample.counts.chunks for sample in samples)
    return Estimate(
        workers=workers,
        samples=len(samples),
        read_bytes=of(lambda sample: sample.counts.stored_bytes, reading=True),
        written_bytes=of(lambda sample: sample.stored_bytes, reading=False),
        seconds=of(lambda sample: sample.seconds / at_once, reading=False),
        source_chunks=plan.source_chunks,
        amplification=_amplification(export, plan),
        root_requests=of(lambda sample: sample.counts.root_requests, reading=True),
        supervoxels=of(lambda sample: sample.counts.ids_sent, reading=True),
        objects=export.format.objects(export),
        peak_bytes=max(sample.peak_bytes for sample in samples) or held_bytes(export, plan),
        missing=sum(sample.counts.missing for sample in samples) / chunks if chunks else 0.0,
    )


def _volumes_read(export: Export, part: StageBlocks) -> int:
    return max(1, len(export.format.reads(export, part).sources))


def _amplification(export: Export, plan: ExportPlan) -> float | None:
    """Return the reads for each storage chunk of the region."""
    if not plan.source_chunks:
        return None
    once = 0
    for _, part in plan.parts:
        size = tuple((0, edges[-1]) for edges in part.blocks.edges)
        for source in export.format.reads(export, part).sources:
            if source is not None:
                once += chunk_reads(source, BlockPlan((size[0], size[1], size[2]), part.blocks.reads_once))
    return plan.source_chunks / once if once else None


def _problems(export: Export, estimate: Estimate, memory: int) -> list[str]:
    problems = []
    if estimate.peak_bytes > MEMORY_USED * memory:
        problems.append(
            f"A worker would take {estimate.peak_bytes / 1e9:.2g} GB, and each of {estimate.workers} has "
            f"{memory / 1e9:.2g} GB: take fewer workers, smaller blocks, or more memory."
        )
    folder = _folder(export.url)
    if folder is not None:
        free = shutil.disk_usage(folder).free
        if estimate.written_bytes.high > free:
            problems.append(
                f"{export.url} would have {estimate.written_bytes.typical / 1e9:.3g} GB (up to "
                f"{estimate.written_bytes.high / 1e9:.3g} GB), and {folder} has {free / 1e9:.3g} GB free."
            )
    if estimate.amplification is not None and estimate.amplification > 1.5:
        problems.append(
            f"Each storage chunk is read {estimate.amplification:.2g} times: chunks and shards, or bounds, that agree "
            "with those of the source would read less."
        )
    return problems


def _folder(url: str) -> Path | None:
    """Return the nearest existing folder of a local target."""
    url = url.removeprefix("file://")
    if "://" in url:
        return None
    folder = Path(url)
    while not folder.exists():
        folder = folder.parent
    return folder


def _spread(plan: ExportPlan, samples: int) -> dict[str, list[int]]:
    """Return the numbers of some evenly spaced blocks of each layer, by region and in the region's part of the plan."""
    # Of each layer: region, number of the first block there, and number of blocks.
    of_layer: dict[str, list[tuple[str, int, int]]] = {}
    ahead: dict[str, int] = {}
    for part in plan.stages[0]:
        first = ahead.get(part.region, 0)
        of_layer.setdefault(part.layer, []).append((part.region, first, len(part.blocks)))
        ahead[part.region] = first + len(part.blocks)
    numbers: dict[str, set[int]] = {}
    for parts in of_layer.values():
        ends = list(accumulate(count for _, _, count in parts))
        for index in range(samples):
            chosen = int((index + 0.5) * ends[-1] / samples)
            region, first, count = parts[at := bisect_right(ends, chosen)]
            numbers.setdefault(region, set()).add(first + chosen - (ends[at] - count))
    return {region: sorted(some) for region, some in numbers.items()}


def _count(value: float) -> str:
    return f"{value:,.0f}"
