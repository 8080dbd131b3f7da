"""Slices of a volume as picture files, written by a cluster: imagery, masks, labels and overlays."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, cast
from uuid import uuid4

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from imagery_dask.cluster import connect, thread_memory
from imagery_dask.export import levels
from imagery_dask.export import slice_checks as checks
from imagery_dask.export.files import Files
from imagery_dask.export.inputs import Volume
from imagery_dask.export.pages import Format, Window
from imagery_dask.export.progress import shown
from imagery_dask.export.slice_names import SliceNames, plane_axes
from imagery_dask.export.slice_pages import (
    IdTable,
    ImageryPages,
    LabelPages,
    MaskPages,
    OverlayPages,
    OverlayStyle,
    Pages,
)
from imagery_dask.export.slice_plan import plan_slices, refuse_too_large, storage_edges
from imagery_dask.export.slice_tasks import list_ids, slice_tasks
from imagery_dask.labels import RootIds
from imagery_dask.plan import BlockPlan
from imagery_dask.run import RunReport, run_blocks

__all__ = ["MAX_FILES", "WHATS", "to_png"]

What = Literal["imagery", "masks", "labels", "overlay"]
WHATS = ("imagery", "masks", "labels", "overlay")
MAX_FILES = 1_000_000
EXTENSIONS = {"png": "png", "tiff": "tif"}
MOST_16_BIT = 2**16 - 1
MOST_PACKED = 2**24 - 1


def to_png(
    data: Any,
    prefix: str | os.PathLike[str],
    *,
    what: What = "imagery",
    slice_axis: int | Literal["x", "y", "z"] = 2,
    names: Literal["reference", "absolute"] = "reference",
    format: Format = "png",
    root_ids: RootIds = "all",
    colors: Mapping[int, Sequence[int]] | None = None,
    window: Sequence[float] | None = None,
    bits: Literal[8, 16] = 8,
    tile: int | None = None,
    alpha: float = 0.2,
    outline: bool = False,
    merge_outline: bool = True,
    width: int = 10,
    voxel_offset: Sequence[int] | None = None,
    max_files: int = MAX_FILES,
    overwrite: bool = False,
    cluster: Any = None,
    workers: int | None = None,
    progress: bool | Callable[[RunReport], None] = True,
) -> RunReport:
    """Write each slice of a volume as a picture file (or one per object), over a dask cluster.

    A task reads a slab as deep as the storage chunks and writes all of its slices, so that each chunk is read once; it
    holds that slab in memory. Rows and columns of pictures are as in `save_image_slices`; imagery is grey where
    `save_imagery` writes RGB, as the reference does.

    Parameters
    ----------
    data : dask.array.Array, numpy.ndarray, xarray.DataArray or xarray.Dataset
        Axes x, y, z and, for imagery, optionally channels of 8-bit RGB or RGBA. A dataset has the variables ``image``
        and ``segmentation``; an overlay needs one with the segmentation at least.
    prefix : str or path
        A local path, ``s3://``, ``gs://`` or ``memory://`` URL; its last component is what the names begin with.
    what : {"imagery", "masks", "labels", "overlay"}
        Grey values; an RGBA picture of each object in each slice, transparent where the object is not; one picture of
        each slice whose values stand for ids (see Notes); objects in colour over imagery.
    slice_axis : int or {"x", "y", "z"}
        Axis along which the volume is cut.
    names : {"reference", "absolute"}
        ``{prefix}_slice_{i}_imagery.png``, as the reference (and without a number for a single slice); or
        ``{prefix}_imagery_z021360.png`` with the voxel index of the slice in the grid of `data`, which sorts.
    format : {"png", "tiff"}
        Kind of the files; TIFF files end in ``.tif``.
    root_ids : sequence of int or "all"
        Objects to show. Listed objects have their masks also where they do not occur; "all" takes one more pass over
        the data for masks and labels, to find them (it is not in the report's counts).
    colors : mapping of int to 3 or 4 int, optional
        RGB or RGBA (0 to 255) by root id, for masks (white by default) and overlays.
    window : two numbers, optional
        Voxel values that become black and white. Needed for imagery that is not 8 or 16 bit.
    bits : {8, 16}
        Depth of the grey values that a window makes.
    tile : int, optional
        Write planes as tiles of at most so many rows and columns. Tiles end where storage chunks do, so that these are
        read once; names end with the first row and column, ``_y4096_x0``, numbered as `names` says. By default planes
        are whole.
    alpha : float
        Strength of an overlay's colours.
    outline : bool
        Draw outlines of objects instead of areas.
    merge_outline : bool
        Draw no outline between objects that touch.
    width : int
        Width of outlines in pixels.
    voxel_offset : sequence of 3 int, optional
        Voxel index of the first voxel, for ``names="absolute"`` of arrays that do not know it.
    max_files : int
        Refuse to write more files than this.
    overwrite : bool
        Replace files of the same names; others are left alone.
    cluster, workers, progress : optional
        As in `to_zarr`. ``memory://`` is of one process, and needs a cluster of threads.

    Returns
    -------
    RunReport
        Blocks, voxels, bytes, seconds, storage chunks read and missing.

    Raises
    ------
    FileExistsError
        When files of these names exist and `overwrite` is False.
    ValueError, TypeError, OSError
        For data, options or a place that cannot be written. Nothing has been written then.
    BlockFailedError
        When blocks failed; all others have been written, and its ``report`` names the failed ones.
    AccessRefusedError
        When the source refuses access; the export ends at once.

    Notes
    -----
    Values of ``what="labels"`` are 1, 2, ... for the ids in ascending order, the same in all slices, and 0 where there
    is no object: 16-bit grey for up to 65,535 ids, above that RGB with value = 65536 R + 256 G + B. The table
    ``{prefix}_labels.csv`` has the columns id and value; ids are decimal text.
    """
    checks.choice("what", what, WHATS)
    axis = checks.axis_of(slice_axis)
    form = cast(Format, checks.choice("format", format, tuple(EXTENSIONS)))
    volumes = checks.volumes_of(data, what)
    look = _look(what, volumes, root_ids, colors, checks.window_of(window, bits))
    style = OverlayStyle(alpha, outline, merge_outline, width)
    absolute = checks.choice("names", names, ("reference", "absolute")) == "absolute"
    start = checks.start_of(volumes[0], voxel_offset) if absolute else None
    files, stem = checks.place_of(prefix)
    called = SliceNames(stem, axis, volumes[0].shape, start, tile is not None, EXTENSIONS[form])
    job = _Job(
        look, style, volumes, called, files, form, _whole("tile", tile), _whole("max_files", max_files), overwrite
    )
    job.check(job.kinds(look.keep))
    with connect(cluster, workers) as client:
        report = job.run(client, progress)
    report.voxels = sum(math.prod(volume.array.shape) for volume in volumes)
    report.raise_for_failures()
    return report


@dataclass(frozen=True, slots=True)
class _Look:
    """What pages show, checked."""

    what: str
    keep: tuple[int, ...] | None
    colors: dict[int, tuple[int, int, int, int]]
    window: Window | None


@dataclass(frozen=True, slots=True)
class _Job:
    """An export whose arguments have been checked."""

    look: _Look
    style: OverlayStyle
    volumes: list[Volume]
    names: SliceNames
    files: Files
    form: Format
    tile: int | None
    max_files: int | None
    overwrite: bool

    @property
    def _table_name(self) -> str:
        return f"{self.names.stem}_labels.csv"

    def kinds(self, ids: Sequence[int] | NDArray[Any] | None) -> list[str]:
        """Kinds of the files of a slice, as far as they are known."""
        if self.look.what != "masks":
            return [self.look.what]
        return [] if ids is None else [f"root_id_{value}" for value in np.asarray(ids).tolist()]

    def check(self, kinds: Sequence[str]) -> None:
        """Refuse too many files, files that exist, and a place that cannot be written."""
        plan = self._plan(1)
        slices = self.names.shape[self.names.axis]
        pages = math.prod(len(plan.edges[across]) - 1 for across in plane_axes(self.names.axis))
        table = [self._table_name] if self.look.what == "labels" else []
        count = slices * pages * max(1, len(kinds)) + len(table)
        if self.max_files is not None and count > self.max_files:
            raise ValueError(
                f"This would write {count:,} files ({slices:,} slices, {pages:,} tiles, {len(kinds) or 1:,} files for "
                f"each); max_files (--max-files) allows {self.max_files:,}. Take fewer slices or ids, or allow more."
            )
        found = set() if self.overwrite else checks.existing_names(self.files, self.names.stem)
        planned = chain(table, self._names(plan, kinds)) if found else ()
        clash = next((name for name in planned if name in found), None)
        if clash is not None:
            raise FileExistsError(
                f"{clash} exists already in {self.files.url}; choose another prefix, or pass overwrite=True "
                "(--overwrite)."
            )
        checks.check_writable(self.files, self.names.stem)

    def run(self, client: Client, progress: bool | Callable[[RunReport], None]) -> RunReport:
        """Find ids where needed, and write."""
        self._check_cluster(client)
        each = sum(volume.read_bytes for volume in self.volumes)
        # Slabs of several storage chunks have no more than a block of other exports.
        plan = self._plan(int(levels.block_size(client, int(each * math.prod(self.names.shape))) / each))
        refuse_too_large(plan, self.names.axis, each, thread_memory(client))
        pages = self._pages(client)
        with shown(progress, len(plan)) as on_progress:
            tasks = slice_tasks(plan, self.volumes, pages, self.names, self.files, self.form)
            return run_blocks(client, [tasks], len(plan), on_progress)

    def _plan(self, voxels: int) -> BlockPlan:
        return plan_slices(storage_edges(self.volumes), self.names.axis, self.tile, voxels)

    def _names(self, plan: BlockPlan, kinds: Sequence[str]) -> Iterator[str]:
        columns, rows = plane_axes(self.names.axis)
        for index in range(self.names.shape[self.names.axis]):
            for row in plan.edges[rows][:-1]:
                for column in plan.edges[columns][:-1]:
                    yield from (self.names.name(kind, index, (column, row)) for kind in kinds)

    def _check_cluster(self, client: Client) -> None:
        if self.files.url.startswith("memory://") and not all(
            address.startswith("inproc://") for address in client.nthreads()
        ):
            raise ValueError("memory:// is of one process: workers in other processes cannot write to it.")

    def _pages(self, client: Client) -> Pages:
        look = self.look
        if look.what == "imagery":
            return ImageryPages(look.window)
        if look.what == "overlay":
            rgb = {value: (r, g, b) for value, (r, g, b, _) in look.colors.items()}
            return OverlayPages(self.style, look.keep, rgb, look.window)
        if look.keep is None:
            ids = list_ids(client, self.volumes[0], levels.BLOCK_BYTES)
        else:
            ids = np.array(look.keep, dtype=np.uint64)
        if look.what == "masks":
            if look.keep is None:
                self.check(self.kinds(ids))
            return MaskPages(ids, look.colors)
        return self._label_pages(ids)

    def _label_pages(self, ids: NDArray[Any]) -> LabelPages:
        dtype = self.volumes[0].array.dtype
        ids = ids[ids != 0]
        if len(ids) > MOST_PACKED:
            raise ValueError(
                f"{len(ids):,} ids do not fit the 24 bits of an RGB picture; list root_ids, or export a smaller region."
            )
        wide = np.int64 if dtype.kind == "i" else np.uint64
        # An id that the data type cannot hold is nowhere.
        ids = ids[ids <= np.array(np.iinfo(dtype).max).astype(ids.dtype)].astype(wide)
        table = IdTable(self.files, self._table_name, wide.__name__, uuid4().hex)
        table.write(ids)
        return LabelPages(table, len(ids) > MOST_16_BIT, self.look.keep is None)


def _look(what: str, volumes: list[Volume], root_ids: RootIds, colors: Any, window: Window | None) -> _Look:
    """Check what pages show; `volumes` begin with the labels where there are any."""
    if what == "imagery":
        if colors is not None or not (isinstance(root_ids, str) and root_ids == "all"):
            raise ValueError("root_ids and colors are for masks, labels and overlays; what='imagery' has none.")
        checks.check_grey(volumes[0], window)
        return _Look(what, None, {}, window)
    if what == "labels" and colors is not None:
        raise ValueError("what='labels' writes a value for each id, and no colors; use what='overlay' or 'masks'.")
    if window is not None and not (what == "overlay" and len(volumes) > 1):
        raise ValueError(f"window is for grey values of imagery, which what={what!r} does not show here.")
    keep = checks.kept_ids(root_ids, volumes[0])
    known = checks.colors_of_ids(colors, keep, volumes[0].array.dtype)
    if what == "overlay" and len(volumes) > 1:
        checks.check_overlay(volumes[1], window)
    return _Look(what, keep, known, window)


def _whole(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} must be a whole number from 1; got {value!r}.")
    return int(value)
