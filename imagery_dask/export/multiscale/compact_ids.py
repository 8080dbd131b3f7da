"""Compact ids: each id of a volume gets a small number, and a table beside the voxels gives the ids back.

The ids are found in a first pass over the volume, before its store exists. In ascending order they get the numbers
0, 1, 2 and so on, and 0 is always the number of 0: the numbers depend on the voxels alone, not on blocks, workers or
interruptions. The table is kept among the records, and copied into the store before the first block is written. A
process that is killed in the first pass leaves a run that was not begun, whose successor begins with a first pass.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import fastremap
import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.errors import ImageryDaskError
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.multiscale.levels import VolumeLevels
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import Region
from imagery_dask.kernels import digest_of, unique_ids
from imagery_dask.run import Rules, RunReport, Workers, Written, run_blocks
from imagery_dask.run.report import shown
from imagery_dask.sources import collect_counts
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.store_files import ROOT_IDS

if TYPE_CHECKING:
    from imagery_dask.export.core.inputs import Volume

__all__ = [
    "CompactTable",
    "IdNotInTableError",
    "find_ids",
    "ids_in",
    "recorded",
    "relabelled",
    "root_ids_of",
]

# Numbers of uint32, 0 among them.
MOST_IDS = 2**32
# Where `root_ids_of` looks for a table below a URL.
FOLDERS = ("", "labels/segmentation/", "segmentation/")


class IdNotInTableError(ImageryDaskError):
    """A block has an id that the first pass has not found."""


def relabelled(volumes: Sequence[Volume], relabel: Literal["uint32"] | None) -> list[Volume]:
    """Return the volumes of an export; with `relabel`, ids of 32 bits and more are written as compact ids.

    Raises
    ------
    ValueError
        No volume has such ids.
    """
    if relabel is None:
        return list(volumes)
    made = [replace(volume, relabel=_has_ids(volume)) for volume in volumes]
    if not any(volume.relabel for volume in made):
        what = " and ".join(f"{volume.name} ({volume.array.dtype})" for volume in volumes)
        raise ValueError(f"relabel={relabel!r} is about ids of 32 or 64 bits; there is {what}. Leave it out.")
    return made


def _has_ids(volume: Volume) -> bool:
    dtype = volume.array.dtype
    return volume.labels and dtype.kind in "iu" and dtype.itemsize >= 4


def recorded(run: StartedRun, volume: str) -> bytes:
    """Return the content of a volume's table as the records of a run have it."""
    content = run.records.files.get(_name(run, volume))
    if content is None:
        raise FileNotFoundError(
            f"{run.records.files.url}/{_name(run, volume)} is gone, the table of the ids of {run.url}. Restore it from "
            "a copy, or start over with overwrite=True (--overwrite)."
        )
    return content


# ----------------------------------------------------------------------------------------------------- the first pass


@dataclass(frozen=True, slots=True)
class FindIds:
    """Task that writes the distinct ids of a block to a file.

    Parameters
    ----------
    name, volume : str
        Shown on the dashboard; what is read.
    reads : tuple of callable
        Each gives the voxels of a piece of the block.
    files, file
        Folder, and name of the file.
    """

    name: str
    volume: str
    reads: tuple[Callable[[], Array], ...]
    files: Files
    file: str
    hashes_files: ClassVar[bool] = False

    def __call__(self) -> Written:
        """Read the block and write its ids."""
        ids, voxels = _ids_of(self.reads)
        self.files.put(self.file, _content(ids))
        return Written(voxels, ids.nbytes, digest_of(ids))

    def stored(self) -> bytes:
        """Return nothing: the file is removed when all ids are known."""
        return b""

    def expected(self) -> bytes:
        """Return nothing."""
        return b""


@dataclass(frozen=True, slots=True)
class FindTasks(Sequence[Any]):
    """Tasks that find the ids of a volume's blocks; each is made when it is taken."""

    volume: Volume
    blocks: BlockPlan
    files: Files
    prefix: str

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: Any) -> Any:
        (x, y, z), region = self.blocks[number]
        reads = tuple(self.volume.reader(piece) for piece in self.blocks.pieces(region))
        name = f"find ids {self.volume.name} z{z} y{y} x{x}"
        return FindIds(name, self.volume.name, reads, self.files, f"{self.prefix}{number}.npy")


def find_ids(run: StartedRun, workers: Workers, levels: VolumeLevels, options: RunOptions) -> None:
    """Find the ids of a volume, in the blocks of a run's plan, and record its table.

    Raises
    ------
    BlockFailedError, SourceError, ClusterLostError
        As for the blocks of an export.
    ValueError
        There are more than 2**32 ids.
    """
    volume, files = levels.volumes[0], run.records.files
    parts = [part for _, part in run.plan.parts if part.volume == volume.name and part.doing != "downsample"]
    tables = []
    for index, (of_level, part) in enumerate(zip(levels.volumes, parts, strict=True)):
        tasks = FindTasks(of_level, part.blocks, files, run.file(f"ids-{volume.name}-{index}-"))
        report, rules = RunReport(len(tasks)), Rules(check=run.lease.check, max_requests=options.max_requests)
        # A caller's own function is told of blocks that are written only.
        with shown(options.progress is True, len(tasks)) as on_progress:
            run_blocks(workers, [tasks], report, on_progress, rules)
        report.raise_for_failures()
        tables += list(_found(files, [tasks[n].file for n in range(len(tasks))]))
        files.delete([f"{tasks.prefix}{n}.npy" for n in range(len(tasks))])
    _record(run, volume.name, _table(tables))


def ids_in(run: StartedRun, levels: VolumeLevels, regions: Sequence[Region]) -> None:
    """Record the table of the ids in a few regions, which samples of an export are made of."""
    volume = levels.volumes[0]
    with collect_counts():
        ids, _ = _ids_of(volume.reader(region) for region in regions)
    _record(run, volume.name, _table([ids]))


def _ids_of(reads: Iterable[Callable[[], Array]]) -> tuple[NDArray[np.uint64], int]:
    """Return the distinct ids of pieces, and their number of voxels."""
    found, voxels = [], 0
    for read in reads:
        block = read()
        voxels += block.size
        ids = unique_ids(block)
        _check_positive(ids)
        found.append(ids.astype(np.uint64))
    return np.unique(np.concatenate(found)), voxels


def _check_positive(ids: Array) -> None:
    if ids.dtype.kind == "i" and len(ids) and ids[0] < 0:
        raise OverflowError(f"Id {int(ids[0])} is negative; relabel is about ids from 0 to 2**64 - 1.")


def _found(files: Files, names: Sequence[str]) -> Iterator[NDArray[np.uint64]]:
    """Yield the ids in files, several of which are united at a time."""
    held: list[NDArray[np.uint64]] = []
    united = 0
    for name in names:
        content = files.get(name)
        if content is None:
            raise FileNotFoundError(f"{files.url}/{name} is gone, which a block has just written.")
        held.append(_read(content))
        if sum(map(len, held)) > max(2**20, 4 * united):
            held = [np.unique(np.concatenate(held))]
            united = len(held[0])
    yield from held


def _table(found: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return ascending ids, the first of which is 0."""
    ids = np.unique(np.concatenate([np.zeros(1, np.uint64), *found]))
    if len(ids) > MOST_IDS:
        raise ValueError(
            f"There are {len(ids):,} ids, and uint32 has numbers for {MOST_IDS:,}. Export a smaller region, or without "
            "relabel."
        )
    return ids


def _record(run: StartedRun, volume: str, table: NDArray[np.uint64]) -> None:
    run.records.files.put(_name(run, volume), _content(table))


def _name(run: StartedRun, volume: str) -> str:
    """Return the name of a volume's table among the records."""
    return run.file(f"{volume}-{ROOT_IDS}")


def _content(ids: NDArray[np.uint64]) -> bytes:
    file = io.BytesIO()
    np.save(file, ids.astype("<u8"))
    return file.getvalue()


def _read(content: bytes) -> NDArray[np.uint64]:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False), dtype=np.uint64)


# ------------------------------------------------------------------------------------------------------- the blocks


@dataclass(frozen=True, slots=True)
class CompactTable:
    """Table of a volume in its store; read once by each process.

    Parameters
    ----------
    files : Files
        Folder of the volume.
    run : str
        Id of the run: a store that was overwritten is another store, although its URL is the same.
    """

    files: Files
    run: str

    @property
    def ids(self) -> NDArray[np.uint64]:
        """The ids by their numbers."""
        return _loaded(self.files, self.run, os.getpid())

    def reader(self, read: Callable[[], Array]) -> ReadCompact:
        """Return what reads voxels and replaces their ids by numbers."""
        return ReadCompact(read, self)


@dataclass(frozen=True, slots=True)
class ReadCompact:
    """Read voxels, and replace their ids by numbers of uint32."""

    read: Callable[[], Array]
    table: CompactTable

    def __call__(self) -> Array:
        """Voxels with compact ids.

        Raises
        ------
        IdNotInTableError
            The source has other voxels than in the first pass.
        """
        block, table = self.read(), self.table.ids
        found = unique_ids(block)
        _check_positive(found)
        ids = found.astype(np.uint64)
        numbers = np.searchsorted(table, ids)
        known = table[numbers.clip(max=len(table) - 1)] == ids
        if not known.all():
            raise IdNotInTableError(
                f"Id {int(ids[~known][0])} was not there when the ids were found: the source has changed since the "
                "export began, or chunks were missing then. Start over with overwrite=True (--overwrite)."
            )
        replaced = fastremap.remap(block, dict(zip(found.tolist(), numbers.tolist(), strict=True)), in_place=False)
        return np.asarray(replaced).astype(np.uint32, order="K")


@lru_cache(maxsize=8)
def _loaded(files: Files, run: str, process: int) -> NDArray[np.uint64]:
    del run, process  # part of the cache key
    content = files.get(ROOT_IDS)
    if content is None:
        raise FileNotFoundError(f"{files.url}/{ROOT_IDS} is gone; run the same command again to restore it.")
    return _read(content)


# -------------------------------------------------------------------------------------------------------- ids again


def root_ids_of(url: str | os.PathLike[str], array: Any = None) -> Any:
    """Return the ids that an export with ``relabel="uint32"`` has replaced by compact ids.

    Parameters
    ----------
    url : str or path
        The export, or the folder of its segmentation.
    array : array-like of integers, dask.array.Array or xarray.DataArray, optional
        Compact ids, of any shape. By default all of them, 0, 1, 2 and so on.

    Returns
    -------
    numpy.ndarray, dask.array.Array or xarray.DataArray of uint64
        The ids, in the form of `array`. 0 is 0.

    Raises
    ------
    FileNotFoundError
        There is no table at `url`: it is not an export, or was written without `relabel`.
    ValueError, TypeError
        `array` has numbers that are not in the table, or are not integers.

    Examples
    --------
    >>> from imagery_dask import root_ids_of
    >>> ids = root_ids_of("em.zarr", zarr.open("em.zarr/labels/segmentation/0")[:])  # doctest: +SKIP
    """
    files = Files.at(os.fspath(url).removeprefix("precomputed://"))
    content = next((found for folder in FOLDERS if (found := files.get(f"{folder}{ROOT_IDS}")) is not None), None)
    if content is None:
        raise FileNotFoundError(
            f"{os.fspath(url)} has no table {ROOT_IDS}: it is not an export that was written with relabel='uint32' "
            "(--relabel uint32)."
        )
    table = _read(content)
    if array is None:
        return table
    if hasattr(array, "copy") and hasattr(array, "dims"):
        return array.copy(data=_looked_up(table, array.data))
    return _looked_up(table, array)


def _looked_up(table: NDArray[np.uint64], array: Any) -> Any:
    if hasattr(array, "map_blocks"):
        _check_numbers(array.dtype)
        return array.map_blocks(_of_block, table, dtype=np.uint64, meta=np.empty((0,) * array.ndim, np.uint64))
    return _of_block(np.asarray(array), table)


def _of_block(numbers: Array, table: NDArray[np.uint64]) -> Array:
    _check_numbers(numbers.dtype)
    if numbers.size and (int(numbers.max()) >= len(table) or int(numbers.min()) < 0):
        worst = int(numbers.max()) if int(numbers.max()) >= len(table) else int(numbers.min())
        raise ValueError(f"{worst} is not a compact id of this export, which has 0 to {len(table) - 1}.")
    return table[numbers]


def _check_numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iu":
        raise TypeError(f"array must be compact ids, which are integers; got {dtype}.")
