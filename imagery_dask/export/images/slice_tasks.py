"""Tasks of a slice export: each reads a slab once and writes all its slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import numpy as np

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.export.core.block_reads import steps_of
from imagery_dask.export.images.slice_files import SliceNames, plane_axes
from imagery_dask.export.images.slice_pages import Pages
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import XYZ, Region, region_within
from imagery_dask.kernels import digest_of_bytes, join_digests
from imagery_dask.render.pages import Format, encode_page
from imagery_dask.run import WINDOW_PER_THREAD, Workers, Written
from imagery_dask.storage.atomic_files import Files

if TYPE_CHECKING:
    from imagery_dask.export.core.inputs import Volume

__all__ = ["SLICES", "SliceBlock", "SliceTasks", "list_ids"]

Read = Callable[[], Array]

# Name of the volume in plans and reports: slices show one or two volumes.
SLICES = "slices"
CONTENT_TYPES = {"png": "image/png", "tiff": "image/tiff"}
# Slices that are copied out of a slab together, because their voxels may be far apart in memory.
SLICES_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class SliceBlock:
    """Task that reads a slab, or a tile of one, and writes a file (or one per object) for each slice of it.

    Parameters
    ----------
    name : str
        Name on the dashboard.
    reads : tuple of callable
        Return voxels as x, y, z(, c): of the labels and the imagery below them, or of one of the two.
    region : tuple of 3 slice
        Voxels that the pages show.
    inner : tuple of 3 slice
        These voxels within those that are read.
    pages : Pages
        Makes the pages of a slice.
    names : SliceNames
        Names of the files.
    files : Files
        Folder of the files.
    form : {"png", "tiff"}
        Kind of the files.
    """

    name: str
    reads: tuple[Read, ...]
    region: Region
    inner: Region
    pages: Pages
    names: SliceNames
    files: Files
    form: Format

    hashes_files: ClassVar[bool] = True

    @property
    def volume(self) -> str:
        """Return the name of the volume in plans and reports."""
        return SLICES

    def __call__(self) -> Written:
        """Read and write; files are written whole, so that the task may be repeated."""
        with self.files.together() as put:
            return self._make(lambda name, content: put(name, content, CONTENT_TYPES[self.form]))

    def stored(self) -> bytes:
        """Return the hash of the files that are stored."""
        return join_digests([digest_of_bytes(self._content(name)) for name in self._file_names()])

    def expected(self) -> bytes:
        """Return the hash of the files that would be written now."""
        return self._make(lambda name, content: None).digest

    def _make(self, put: Callable[[str, bytes], None]) -> Written:
        part = (self.inner[self._rows], self.inner[self._columns])
        blocks = [read() for read in self.reads]
        digests = []
        for index, planes in _slices(blocks, self.names.axis):
            for kind, page in self.pages(planes):
                if page is None:
                    shape = (part[0].stop - part[0].start, part[1].stop - part[1].start, 4)
                    content = _transparent(shape, self.form)
                else:
                    content = encode_page(page[part], self.form, self.pages.flat)
                put(self._name(kind, index), content)
                digests.append(digest_of_bytes(content))
        voxels = sum(math.prod(block.shape[:3]) for block in blocks)
        return Written(voxels, sum(int(block.nbytes) for block in blocks), join_digests(digests))

    @property
    def _columns(self) -> int:
        return plane_axes(self.names.axis)[0]

    @property
    def _rows(self) -> int:
        return plane_axes(self.names.axis)[1]

    def _file_names(self) -> Iterator[str]:
        """Yield the names of the files in the order in which they are written."""
        along = self.region[self.names.axis]
        for index in range(along.stop - along.start):
            yield from (self._name(kind, index) for kind in self.pages.kinds)

    def _name(self, kind: str, index: int) -> str:
        origin = (self.region[self._columns].start, self.region[self._rows].start)
        return self.names.name(kind, self.region[self.names.axis].start + index, origin)

    def _content(self, name: str) -> bytes:
        content = self.files.get(name)
        if content is None:
            raise FileNotFoundError(f"{self.files.url}/{name} was written, but is missing now.")
        return content


@dataclass(frozen=True, slots=True)
class SliceTasks(Sequence[SliceBlock]):
    """Tasks of a plan, each made on access; for the parameters see `SliceBlock`."""

    plan: BlockPlan
    volumes: Sequence[Volume]
    pages: Pages
    names: SliceNames
    files: Files
    form: Format

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: Any) -> Any:
        (x_index, y_index, z_index), region = self.plan[number]
        outer = _grown(region, self.names.axis, self.pages.margin, self.names.shape)
        reads = tuple(volume.reader(outer) for volume in self.volumes)
        name = f"{steps_of(self.volumes)} {SLICES} z{z_index} y{y_index} x{x_index}"
        return SliceBlock(
            name, reads, region, region_within(region, outer), self.pages, self.names, self.files, self.form
        )


def list_ids(workers: Workers, volume: Volume, block_bytes: int) -> Array:
    """Return the distinct ids of a volume in ascending order, without 0, in one pass over it."""
    plan = volume.plan((1, 1, 1), block_bytes, 8 * block_bytes)
    regions = enumerate(piece for _, region in plan for piece in plan.pieces(region))
    distinct: Array = np.array([], dtype=volume.array.dtype)
    tasks, run_id, running = workers.tasks(), uuid4().hex, 0
    try:
        while True:
            for number, region in islice(regions, max(0, max(4, WINDOW_PER_THREAD * tasks.look()) - running)):
                tasks.submit(f"find ids {volume.name}-{number}, {run_id}", _ids_of, volume.reader(region))
                running += 1
            if not running:
                break
            if not tasks.wait() or (taken := tasks.take()) is None:
                continue
            running -= 1
            _, ids = taken
            if isinstance(ids, BaseException):
                raise ids
            distinct = np.union1d(distinct, ids)
    except BaseException:
        tasks.cancel()
        raise
    return np.asarray(distinct[distinct != 0])


def _ids_of(read: Read) -> Array:
    return kernels.unique_ids(read())


def _slices(blocks: Sequence[Array], axis: int) -> Iterator[tuple[int, list[Array]]]:
    """Yield each slice of some blocks, as planes in Fortran order."""
    depth = blocks[0].shape[axis]
    for first in range(0, depth, SLICES_TOGETHER):
        # Neighbors along the first axis share cache lines: copied one by one, each would read the whole slab.
        group = [_last(block, axis, first) for block in blocks]
        for index in range(min(SLICES_TOGETHER, depth - first)):
            yield first + index, [planes[..., index] for planes in group]


def _last(block: Array, axis: int, first: int) -> Array:
    part = np.moveaxis(block[(slice(None),) * axis + (slice(first, first + SLICES_TOGETHER),)], axis, -1)
    return np.asfortranarray(part)


def _grown(region: Region, axis: int, margin: int, shape: XYZ) -> Region:
    x, y, z = (
        part if along == axis else slice(max(0, part.start - margin), min(shape[along], part.stop + margin))
        for along, part in enumerate(region)
    )
    return x, y, z


@lru_cache(maxsize=64)
def _transparent(shape: tuple[int, ...], form: Format) -> bytes:
    """Return the file of a transparent page, cached because most objects are absent from most slices."""
    return encode_page(np.zeros(shape, dtype=np.uint8), form, flat=True)
