"""Read every chunk of a volume, and compare its levels with each other."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from imagery_dask.checking.level_methods import Tally
from imagery_dask.checking.level_pairs import corner_of, pair_of
from imagery_dask.checking.stored_tasks import (
    SAMPLES,
    CheckChunks,
    ChunksFound,
    CompareLevels,
    Corners,
    LevelBoxes,
    boxes_of,
    drawn,
)
from imagery_dask.checking.volume_report import CheckedLevel, ComparedLevels, DamagedChunk, VolumeReport
from imagery_dask.cluster import WAIT_S
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.layer import Layer, Mip
from imagery_dask.run import BlockTask, Chain, Rules, RunReport, Workers, run_blocks, workers_of
from imagery_dask.run.report import shown
from imagery_dask.sources import SourceHandle, normalize_path, open_volume
from imagery_dask.sources.handle import volumes_at
from imagery_dask.urls import redacted

__all__ = ["verify_volume"]

# Most voxels of the finer level in a sample.
SAMPLE_VOXELS = 2**20
# Boxes of chunks that are read with a sample.
SAMPLE_LEAST = 4
# Bytes of a task that compares.
COMPARE_BYTES = 2**27
DAMAGED_KEPT, UNREAD_KEPT = 1000, 20
# Parts of the names of encodings with loss.
LOSSY = ("jpeg", "jxl", "avif", "webp", "zfp", "fpzip", "kempressed")


@dataclass(slots=True)
class _Volume:
    """A volume of the check, and the levels of it that are read, the finest first."""

    path: str
    layer: Layer
    levels: list[tuple[Mip, CheckedLevel]] = field(default_factory=list)


def verify_volume(
    path: str | os.PathLike[str],
    *,
    sample: float | None = None,
    seed: int | None = None,
    cluster: Any = None,
    workers: int | Literal["auto"] | None = None,
    max_workers: int | None = None,
    wait_s: float = WAIT_S,
    retire_before_s: float | None = None,
    progress: bool | Callable[[RunReport], None] = True,
) -> VolumeReport:
    """Read every chunk of every level of a volume that any program wrote, and compare the levels on samples.

    Chunks are fetched and decoded, so that checksums such as crc32c and that of gzip are checked. Of a level and the
    finer one, up to sixteen boxes are compared by each method of downsampling: mean and median of imagery, mode of ids,
    striding (the first voxel of a window), and nearest (the middle one).

    Parameters
    ----------
    path : str or path
        A precomputed volume, zarr or N5; of OME-Zarr, its labels are checked too.
    sample : float or None
        Fraction of the boxes of chunks to read, chosen at random, above 0; None reads all.
    seed : int, optional
        Chooses the same boxes and samples again.
    cluster, workers, max_workers, progress : optional
        As in `to_zarr`.
    wait_s, retire_before_s : optional
        As in `imagery_dask.cluster.connect`.

    Returns
    -------
    VolumeReport
        How many chunks are damaged, missing, or not stored, which the format allows; and which method fits each level.

    Raises
    ------
    SourceNotFoundError, AccessRefusedError, InvalidInfoError
        If there is no volume, access is refused, or its metadata cannot be read.
    ValueError
        `sample` is not above 0 and at most 1.
    """
    if sample is not None and not 0 < sample <= 1:
        raise ValueError(f"sample is a fraction of the boxes, above 0 and at most 1; got {sample!r}.")
    path = normalize_path(os.fspath(path))
    seed = random.randrange(2**32) if seed is None else seed
    report, began = VolumeReport(redacted(path)), time.perf_counter()
    volumes = _volumes(path, report)
    boxes = [one for volume in volumes for one in _boxes(volume, report, seed)]
    tasks = Chain(boxes)
    with workers_of(cluster, workers, wait_s, retire_before_s, max_workers=max_workers) as own:
        own.fit(max([COMPARE_BYTES, *(2 * one.piece.prod() * one.voxel_bytes for one in boxes)]))
        varied = _check_chunks(own, tasks, report, _chosen(len(tasks), sample, seed), seed, progress)
        _compare_levels(own, volumes, varied, report, seed)
    report.seconds = time.perf_counter() - began
    return report


def _volumes(path: str, report: VolumeReport) -> list[_Volume]:
    """Open a volume and its labels; tell the report of their levels."""
    volumes = []
    for found in volumes_at(path):
        volume = _Volume(normalize_path(found), open_volume(found, fresh=True).layer)
        ahead = "" if found == path else f"labels/{found.rstrip('/').rpartition('/')[2]} "
        for mip in volume.layer.mips:
            of_channels = -(-volume.layer.channels // (mip.chunk_channels or volume.layer.channels))
            level = CheckedLevel(f"{ahead}level {mip.level}", mip.key, mip.chunk_count * of_channels)
            report.levels.append(level)
            if "placeholder" in mip.key.lower():
                level.skipped = "it is a placeholder, which holds no data"
            else:  # chunks are read also where voxels cannot be placed
                volume.levels.append((mip, level))
        volumes.append(volume)
    return volumes


def _boxes(volume: _Volume, report: VolumeReport, seed: int) -> list[LevelBoxes]:
    voxel_bytes = volume.layer.channels * np.dtype(volume.layer.dtype).itemsize
    found = []
    for mip, level in volume.levels:
        file_shape = open_volume(volume.path).file_shape(mip.level)
        plan, piece = boxes_of(mip.grid.shape, mip.chunk_shape, file_shape, voxel_bytes)
        handle, number = SourceHandle(volume.path, mip), next(n for n, one in enumerate(report.levels) if one is level)
        found.append(LevelBoxes(handle, level.name, number, plan, piece, voxel_bytes, seed))
    return found


def _chosen(count: int, sample: float | None, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    if sample is None:
        return None
    todo = np.zeros(count, bool)
    most = min(count, max(SAMPLE_LEAST, round(sample * count)))
    todo[np.random.default_rng(seed).choice(count, most, replace=False)] = True
    return todo


def _check_chunks(
    workers: Workers,
    tasks: Sequence[CheckChunks],
    report: VolumeReport,
    todo: np.ndarray[Any, np.dtype[np.bool_]] | None,
    seed: int,
    progress: bool | Callable[[RunReport], None],
) -> dict[str, list[Corners]]:
    """Read the chunks; return some that have different voxels, by level."""
    varied: dict[str, list[Corners]] = {}

    def note(number: int, task: BlockTask, found: ChunksFound) -> None:
        assert isinstance(task, CheckChunks)
        level = report.levels[task.number]
        level.damaged += found.damaged
        room = DAMAGED_KEPT - len(report.damaged)
        report.damaged += [DamagedChunk(level.name, key, reason) for key, reason in found.named[:room]]
        varied[level.name] = drawn([*varied.get(level.name, []), *found.varied], seed)

    def fail(number: int, task: BlockTask, reason: str, attempts: int) -> None:
        report.unread_boxes += 1
        if len(report.unread) < UNREAD_KEPT:
            report.unread.append(f"{task.name}: {reason}")

    count = len(tasks) if todo is None else int(np.count_nonzero(todo))
    rules = Rules(todo=todo, on_found=note, on_failure=fail)
    with shown(progress, count) as on_progress:
        ran = run_blocks(workers, [tasks], RunReport(count), on_progress, rules)
    report.read_bytes = ran.written_bytes
    report.damaged.sort(key=lambda chunk: (chunk.level, chunk.key))
    for level in report.levels:
        counts = ran.counts_of.get(level.name)
        if counts is not None:
            level.read, level.stored_bytes = counts.chunks, counts.stored_bytes
            level.missing, level.not_stored = counts.missing, counts.not_stored
            level.refused_or_absent = counts.refused_or_absent
            report.missing_keys += counts.missing_keys
    return varied


def _compare_levels(
    workers: Workers, volumes: Sequence[_Volume], varied: dict[str, list[Corners]], report: VolumeReport, seed: int
) -> None:
    """Compare samples of each level with the finer level."""
    tasks: list[CompareLevels] = []
    for volume in volumes:
        for (fine, finer), (coarse, level) in zip(volume.levels, volume.levels[1:], strict=False):
            pairs = pair_of(fine, coarse)
            compared = ComparedLevels(level.name, finer.name, Vec3(0, 0, 0))
            report.compared.append(compared)
            if isinstance(pairs, str):
                compared.skipped = pairs
                continue
            compared.factor = pairs[0].factor
            compared.is_lossy = _is_lossy(fine) or _is_lossy(coarse)
            voxels = SAMPLE_VOXELS // compared.factor.prod()
            for number, (start, stop) in enumerate(varied.get(level.name) or _any_chunks(coarse, seed)):
                first, shape = corner_of(start, stop, voxels, at_end=number % 2 == 1)
                tasks.append(CompareLevels(
                    volume.path, level.name, len(report.compared) - 1, pairs, first - coarse.grid.start, shape,
                    volume.layer.holds_ids, compared.is_lossy,
                ))  # fmt: skip

    def note(number: int, task: BlockTask, found: dict[str, Tally] | None) -> None:
        assert isinstance(task, CompareLevels)
        compared = report.compared[task.number]
        compared.samples += found is not None
        for name, tally in (found or {}).items():
            compared.methods.setdefault(name, Tally()).add(tally)

    def fail(number: int, task: BlockTask, reason: str, attempts: int) -> None:
        report.unread_boxes += 1
        report.unread.append(f"{task.name}: {reason}")

    run_blocks(workers, [tasks], RunReport(len(tasks)), None, Rules(on_found=note, on_failure=fail))
    for compared in report.compared:
        if not compared.skipped and not compared.samples:
            compared.skipped = "chunks of all samples are damaged or missing, or cover no voxels of the finer level"


def _any_chunks(level: Mip, seed: int) -> list[Corners]:
    """Return the corners of some chunks of a level, where none is known to have different voxels."""
    cells, chance = level.grid.shape.ceil_div(level.chunk_shape), random.Random(seed)
    found = {cells.map(chance.randrange) for _ in range(SAMPLES)}
    firsts = [level.grid.start + cell * level.chunk_shape for cell in sorted(found)]
    return [(first, (first + level.chunk_shape).minimum(level.grid.stop)) for first in firsts]


def _is_lossy(level: Mip) -> bool:
    return any(name in level.encoding.lower() for name in LOSSY)
