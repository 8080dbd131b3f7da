"""Write slices of a volume as picture files on a cluster: imagery, masks, labels and overlays."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import xarray as xr

from imagery_dask import kernels
from imagery_dask.annotations import Array
from imagery_dask.cluster import WorkerResources
from imagery_dask.config import config
from imagery_dask.export.core.base import BlockReads, Export, OutputFormat, plan_of
from imagery_dask.export.core.inputs import Volume, as_volumes
from imagery_dask.export.core.plans import ExportPlan, StageBlocks, fingerprint_of, voxels_decided_by
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.region_exports import RegionsExport, are_regions
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.core.writer_arguments import describe_run
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.images.image_options import MAX_FILES, ImageOptions, What
from imagery_dask.export.images.slice_files import SliceNames, SliceTarget, SliceTargets, plane_axes
from imagery_dask.export.images.slice_pages import (
    IdTable,
    ImageryPages,
    LabelPages,
    MaskPages,
    OverlayPages,
    OverlayStyle,
    Pages,
)
from imagery_dask.export.images.slice_plan import BLOCKS_HELD, plan_slices, refuse_too_large, storage_edges
from imagery_dask.export.images.slice_previews import slice_previews
from imagery_dask.export.images.slice_tasks import SLICES, SliceTasks, list_ids
from imagery_dask.export.multiscale.levels import block_size
from imagery_dask.geometry.grid import Region
from imagery_dask.model.labels import RootIds
from imagery_dask.render.overlays import overlay_halo
from imagery_dask.render.pages import Format
from imagery_dask.run import BlockTask, RunReport, Workers
from imagery_dask.serialization import to_json
from imagery_dask.storage.atomic_files import Files, split_prefix

__all__ = ["SliceExport", "SliceRegions", "slice_export", "to_png"]

EXTENSIONS = {"png": "png", "tiff": "tif"}
# Variables of a dataset that are shown, the one that must be there first.
NEEDS = {
    "imagery": ("image",),
    "masks": ("segmentation",),
    "labels": ("segmentation",),
    "overlay": ("segmentation", "image"),
}
MOST_16_BIT = 2**16 - 1
MOST_PACKED = 2**24 - 1


@describe_run
def to_png(
    data: Any,
    prefix: str | os.PathLike[str],
    *,
    what: What = "imagery",
    slice_axis: int | Literal["x", "y", "z"] = 2,
    names: Literal["reference", "padded", "absolute"] = "reference",
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
    repair: bool = False,
    redo_missing: bool = False,
    max_missing: float | None = None,
    max_requests: int | None = None,
    report: str | os.PathLike[str] | None = None,
    cluster: Any = None,
    workers: int | Literal["auto"] | None = None,
    max_workers: int | None = None,
    progress: bool | Callable[[RunReport], None] = True,
) -> RunReport:
    """Write each slice of a volume as a picture file (or one per object), over a dask cluster.

    A task reads a slab as deep as the storage chunks into memory and writes all of its slices, so that each chunk is
    read once. Rows and columns of pictures are as in `save_image_slices`. Imagery is written as grey, whereas
    `save_imagery` writes RGB, as imageryclient does.

    Parameters
    ----------
    data : dask.array.Array, numpy.ndarray, xarray.DataArray or xarray.Dataset, or mapping of str to these
        Axes x, y, z and, for imagery, optionally channels of 8-bit RGB or RGBA. A dataset has the variables ``image``
        and ``segmentation``; an overlay needs a dataset that has at least the segmentation. A mapping of names to data
        is written as named regions, by one run.
    prefix : str or path
        A local path, or a URL that begins with ``s3://``, ``gs://`` or ``memory://``. File names begin with its last
        component. Of named regions, a folder: those of region ``a`` begin with ``{prefix}/a/a``.
    what : {"imagery", "masks", "labels", "overlay"}
        Grey values; an RGBA picture of each object in each slice, transparent outside the object; a picture of each
        slice whose values stand for ids (see Notes); objects in color over imagery.
    slice_axis : int or {"x", "y", "z"}
        Axis along which the volume is cut.
    names : {"reference", "padded", "absolute"}
        ``{prefix}_slice_{i}_imagery.png``, as imageryclient names them (without a number for a single slice); the same
        with as many digits as the last slice has, so that names sort, as ``imagery-dask export png`` does by default;
        or
        ``{prefix}_imagery_z021360.png`` with the voxel index of the slice in the grid of `data`, so that names sort.
    format : {"png", "tiff"}
        Kind of the files; TIFF files end in ``.tif``.
    root_ids : sequence of int or "all"
        Objects to show. Listed objects have a mask in every slice, empty where they do not occur. "all" reads the data
        once more for masks and labels, to find the ids; the report does not count these reads.
    colors : mapping of int to 3 or 4 int, optional
        RGB or RGBA (0 to 255) by root id, for masks (white by default) and overlays.
    window : two numbers, optional
        Voxel values that become black and white. Needed for imagery that is not 8 or 16 bit.
    bits : {8, 16}
        Depth of the grey values that a window makes.
    tile : int, optional
        Write planes as tiles of at most this many rows and columns; by default planes are whole. Tiles end at edges of
        storage chunks, so that each chunk is read once. Names end with the first row and column, ``_y4096_x0``,
        numbered according to `names`.
    alpha : float
        Opacity of an overlay's colors, 0 to 1.
    outline : bool
        Draw outlines of objects instead of areas.
    merge_outline : bool
        Draw no outline between objects that touch.
    width : int
        Width of outlines in pixels.
    voxel_offset : sequence of 3 int, optional
        Voxel index of the first voxel, for ``names="absolute"`` and arrays without coordinates.
    max_files : int
        Raise if there would be more files.
    overwrite : bool
        Replace files of the same names; other files are left alone.
    {parameters}

    Returns
    -------
    RunReport
        Blocks, voxels, bytes, seconds, storage chunks read and missing.

    Raises
    ------
    FileExistsError
        Files of these names exist, and `overwrite` is False.
    ValueError, TypeError, OSError
        The data, an option or the prefix cannot be written. Nothing has been written.
    BlockFailedError
        Some blocks failed. All others have been written; the ``report`` of the error names the failed ones.
    AccessRefusedError
        The source refuses access; the export ends at once.

    Notes
    -----
    Values of ``what="labels"`` are 1, 2, ... for the ids in ascending order, the same in all slices, and 0 outside
    objects: 16-bit grey for up to 65,535 ids, above that RGB with value = 65536 R + 256 G + B. The table
    ``{prefix}_labels.csv`` has the columns id and value; ids are decimal text.

    Records lie in ``.{prefix}_{what}.{fingerprint}.receipts/``. A ``memory://`` prefix belongs to one process and needs
    a cluster of threads.
    """
    options = ImageOptions(
        what=what, slice_axis=slice_axis, names=names, format=format, root_ids=root_ids, colors=colors,
        window=window, bits=bits, tile=tile, alpha=alpha, outline=outline, merge_outline=merge_outline, width=width,
        voxel_offset=voxel_offset, max_files=max_files,
    )  # fmt: skip
    return execute(slice_export(data, prefix, options), RunOptions(
        cluster=cluster, workers=workers, max_workers=max_workers, progress=progress,
        overwrite=overwrite, repair=repair, redo_missing=redo_missing,
        max_missing=max_missing, max_requests=max_requests, report=report,
    ))  # fmt: skip


def _reads(export: SliceExport, part: StageBlocks) -> BlockReads:
    """Return what the blocks read: all volumes, and around a tile the voxels that determine its outlines."""
    options = export.options
    voxel_bytes = sum(volume.read_bytes for volume in export.volumes)
    halo = overlay_halo(options.outline, options.width) if options.what == "overlay" else 0
    x, y, z = (halo if axis in plane_axes(options.axis) else 0 for axis in range(3))
    held = int(BLOCKS_HELD * voxel_bytes * math.prod(part.blocks.largest))
    return BlockReads(tuple(volume.source for volume in export.volumes), held, (x, y, z))


def _objects(export: SliceExport) -> int:
    """Return the number of files; masks count as one object if ids are not listed."""
    return export.count(export.target.kinds)


def _notes(export: SliceExport) -> Iterator[str]:
    """Yield a note about reads that the report does not count."""
    if export.options.what in ("masks", "labels") and export.options.keep is None:
        yield "The ids were found in one more pass over the data, which these counts do not include."


def _previews(export: SliceExport, run: StartedRun, whole: Sequence[StageBlocks]) -> Iterator[Preview]:
    """Yield thumbnails of some pictures."""
    yield from slice_previews(export.files, export.names, export.pages(run).kinds, export.target.edges)


class SliceExport(Export):
    """An export of slices."""

    kind = "png"
    format = OutputFormat(_reads, _objects, _notes, _previews)
    target: SliceTarget
    options: ImageOptions

    def __init__(self, data: Any, prefix: str | os.PathLike[str], options: ImageOptions) -> None:
        self._data, self._prefix, self._given = data, prefix, options
        self.volumes = _volumes_of(data, options.what)
        self.options = options = options.for_volumes(self.volumes)
        files, stem = split_prefix(prefix)
        file_names = SliceNames(
            stem, options.axis, self.volumes[0].shape, options.start, options.tile is not None,
            EXTENSIONS[options.format], options.names == "padded",
        )  # fmt: skip
        self._edges = storage_edges(self.volumes)
        edges = plan_slices(self._edges, options.axis, options.tile, 1).edges
        kinds = self.kinds(options.keep)
        self.target = SliceTarget(files, file_names, edges, tuple(kinds), options.what == "labels")
        self.fingerprint_fields = {"format": self.kind}
        for volume in self.volumes:
            self.fingerprint_fields |= voxels_decided_by(volume)
        self.fingerprint_fields |= {name: value for name, value in to_json(options).items() if name != "max_files"}
        self.check_count(kinds)

    def earlier(self) -> Iterator[Self]:
        """Yield the export with the names that ``imagery-dask export png`` of version 0.1 gave by default."""
        if self._given.names == "padded":
            yield type(self)(self._data, self._prefix, replace(self._given, names="reference"))

    @property
    def files(self) -> Files:
        """Folder or bucket of the files."""
        return self.target.files

    @property
    def names(self) -> SliceNames:
        """Names of the files."""
        return self.target.names

    @property
    def records(self) -> Files:
        """Folder of the records: exports of other slices, or of something else, may have the same prefix."""
        name = f".{self.names.stem}_{self.options.what}.{fingerprint_of(self.fingerprint_fields)[:8]}.receipts"
        return Files.at(f"{self.files.url}/{name}")

    def kinds(self, ids: Sequence[int] | Array | None) -> list[str]:
        """Return the kinds of files of a slice, as far as they are known."""
        if self.options.what != "masks":
            return [self.options.what]
        return [] if ids is None else [f"root_id_{value}" for value in np.asarray(ids).tolist()]

    def check_count(self, kinds: Sequence[str]) -> None:
        """Raise ValueError if there are more files than `max_files`."""
        slices, tiles = self._slices_and_tiles()
        what = f"{slices:,} slices, {tiles:,} tiles, {len(kinds) or 1:,} files for each"
        _check_files(self.options.max_files, self.count(kinds), what)

    def count(self, kinds: Sequence[str]) -> int:
        """Count the files; masks of objects that are not listed count as one object."""
        return math.prod(self._slices_and_tiles()) * max(1, len(kinds)) + self.target.has_table

    def plan(self, resources: WorkerResources, block_bytes: int | None) -> ExportPlan:
        """Plan slabs and tiles, all in one stage."""
        voxel_bytes = sum(volume.read_bytes for volume in self.volumes)
        # Slabs of several storage chunks have no more voxels than a block of other exports.
        voxels = int(
            (block_bytes or block_size(resources, int(voxel_bytes * math.prod(self.names.shape)))) / voxel_bytes
        )
        blocks = plan_slices(self._edges, self.names.axis, self.options.tile, voxels)
        refuse_too_large(blocks, self.names.axis, voxel_bytes, resources.thread_memory)
        return plan_of(self, ((StageBlocks(SLICES, "read+write", 0, blocks),),))

    def create(self, run: StartedRun, workers: Workers, regions: Sequence[Region] | None = None) -> None:
        """Write the table of the ids to show; ids that are not listed are found first.

        With `regions`, only these are searched for ids, instead of all data.
        """
        what, keep, volume = self.options.what, self.options.keep, self.volumes[0]
        if what not in ("masks", "labels"):
            return
        if keep is not None:
            ids = np.array(keep, dtype=np.uint64)
        elif regions is not None:
            read = [kernels.unique_ids(volume.reader(region)()) for region in regions]
            ids = np.unique(np.concatenate(read))
            self._id_table(run).write(ids[ids != 0])
            return
        else:
            ids = np.array(list_ids(workers, volume, config.get("export.block_bytes")), dtype=volume.array.dtype)
        if what == "masks" and keep is None:
            kinds = self.kinds(ids)
            self.check_count(kinds)
            if not run.overwrites and (clash := self.target.clash(kinds)) is not None:
                raise self.target.refusal(clash)
        if what == "labels":
            ids = self._label_ids(ids)
        self._id_table(run).write(ids)

    def metadata_names(self) -> list[str]:
        """Return the name of the table of ids, if it lies beside the pictures."""
        return [] if self.target.table is None else [self.target.table]

    def metadata_files(self, url: str) -> Files:
        """Return the folder of the pictures."""
        del url
        return self.files

    def tasks(self, run: StartedRun) -> Sequence[Sequence[BlockTask]]:
        """Return the tasks of the slabs; each is made when it is taken."""
        ((part,),) = run.plan.stages
        return [SliceTasks(part.blocks, self.volumes, self.pages(run), self.names, self.files, self.options.format)]

    def close(self, run: StartedRun, report: RunReport) -> None:
        """Remove partial files of killed processes."""
        self.files.remove_partial(stem=self.names.stem)

    def pages(self, run: StartedRun) -> Pages:
        """Return what makes the pages of a run."""
        options = self.options
        if options.what == "imagery":
            return ImageryPages(options.grey)
        if options.what == "overlay":
            rgb = {value: (r, g, b) for value, (r, g, b, _) in options.rgba.items()}
            style = OverlayStyle(options.alpha, options.outline, options.merge_outline, options.width)
            return OverlayPages(style, options.keep, rgb, options.grey)
        table = self._id_table(run)
        if options.what == "masks":
            return MaskPages(table.ids(), options.rgba)
        return LabelPages(table, len(table.ids()) > MOST_16_BIT, options.keep is None)

    def _slices_and_tiles(self) -> tuple[int, int]:
        """Return the number of slices, and of tiles of each."""
        tiles = math.prod(len(self.target.edges[across]) - 1 for across in plane_axes(self.names.axis))
        return self.names.shape[self.names.axis], tiles

    def _id_table(self, run: StartedRun) -> IdTable:
        """Return the table of ids: a result beside labels, a record of masks."""
        dtype = "int64" if self.volumes[0].array.dtype.kind == "i" else "uint64"
        if self.target.table is not None:
            return IdTable(self.files, self.target.table, dtype, run.id)
        # Not `self.records`: an export made from the plan of a computed array has another fingerprint.
        return IdTable(run.records.files, run.file("ids.csv"), dtype, run.id)

    def _label_ids(self, ids: Array) -> Array:
        """Return the ids that have a value in the table."""
        dtype = self.volumes[0].array.dtype
        ids = ids[ids != 0]
        if len(ids) > MOST_PACKED:
            raise ValueError(
                f"{len(ids):,} ids do not fit the 24 bits of an RGB picture; list root_ids, or export a smaller region."
            )
        # Ids that the data type cannot hold do not occur.
        return ids[ids <= np.array(np.iinfo(dtype).max).astype(ids.dtype)]


class SliceRegions(RegionsExport):
    """An export of the slices of named regions: a folder for each region, whose name begins those of its files."""

    kind = "png"

    def __init__(self, data: Mapping[str, Any], url: str | os.PathLike[str], options: ImageOptions) -> None:
        folder = Files.at(url).url.removeprefix("file://")
        super().__init__(data, lambda name, one: SliceExport(one, self.place(folder, name), options), options)
        targets = {name: export.target for name, export in self.exports.items() if isinstance(export, SliceExport)}
        self.target = SliceTargets(folder, targets)
        _check_files(options.max_files, self.format.objects(self), f"pictures of {len(targets):,} regions")

    def place(self, url: str, name: str) -> str:
        """Return the prefix of a region's files."""
        return f"{url}/{name}/{name}"


def slice_export(data: Any, prefix: str | os.PathLike[str], options: ImageOptions) -> Export:
    """Return the export of data, or of named regions, for which `prefix` is a folder."""
    return SliceRegions(data, prefix, options) if are_regions(data) else SliceExport(data, prefix, options)


def _check_files(limit: int | None, count: int, what: str) -> None:
    """Raise ValueError if there are more files than are allowed."""
    if limit is not None and count > limit:
        raise ValueError(
            f"This would write {count:,} files ({what}); max_files (--max-files) allows {limit:,}. Take fewer slices "
            "or ids, or allow more."
        )


def _volumes_of(data: Any, what: str) -> list[Volume]:
    """Return the volumes that pages are made of, in the order of `NEEDS`; an overlay may do without imagery."""
    if isinstance(data, xr.Dataset):
        present = [name for name in NEEDS[what] if name in data.data_vars]
        if not present or NEEDS[what][0] not in present:
            raise ValueError(
                f"what={what!r} needs the variable {NEEDS[what][0]!r}; the dataset has "
                f"{list(map(str, data.data_vars))}."
            )
        volumes = [replace(as_volumes(data[name])[0], name=name, variable=True) for name in present]
    else:
        volumes = as_volumes(data)
    if what != "imagery":
        labels = volumes[0]
        if labels.array.dtype.kind not in "iu" or labels.channels:
            raise TypeError(
                f"what={what!r} needs integer ids along x, y and z; got {labels.array.dtype} of shape "
                f"{labels.array.shape}. Write a single mask with what='imagery'."
            )
    if len({volume.shape for volume in volumes}) > 1:
        raise ValueError(f"Imagery and segmentation have different shapes: {[volume.shape for volume in volumes]}.")
    return volumes
