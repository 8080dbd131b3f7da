"""Write any dask array or xarray object as OME-Zarr, block by block, with its pyramid.

Arrays are stored with axes (c,) z, y, x. Blocks of cutouts are x, y, z in Fortran order, so that their transposes are
in the C order that zarr expects, without a copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import zarr

from imagery_dask.annotations import JsonObject
from imagery_dask.export.core.base import Export, OutputFormat
from imagery_dask.export.core.inputs import LABELS_GROUP, Volume, as_volumes
from imagery_dask.export.core.provenance import KEY, provenance, root_of_regions, what_was_missing
from imagery_dask.export.core.region_exports import RegionsExport, are_regions
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.core.writer_arguments import describe_run
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.multiscale.compact_ids import relabelled
from imagery_dask.export.multiscale.copied_chunks import chunks_in_common, share_copied
from imagery_dask.export.multiscale.levels import LevelStore
from imagery_dask.export.multiscale.volumes import (
    Multiscale,
    VolumeExport,
    multiscale_of,
    volume_previews,
    volume_reads,
)
from imagery_dask.export.zarr import ome
from imagery_dask.export.zarr.block_array import ZarrLevel, remove_partial
from imagery_dask.export.zarr.compressors import Compressor
from imagery_dask.export.zarr.copied_arrays import compressor_of_source, is_copied
from imagery_dask.export.zarr.zarr_options import Axes, OmeVersion, ZarrOptions
from imagery_dask.geometry.grid import Region
from imagery_dask.geometry.pyramid import Levels
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.labels import Kind
from imagery_dask.run import RunReport, Workers
from imagery_dask.serialization import to_json
from imagery_dask.sources.zarr.stored_chunks import RAW
from imagery_dask.storage.targets import StoreTarget
from imagery_dask.storage.zarr_stores import check_reachable, create_group, open_store

__all__ = ["ZarrExport", "ZarrRegions", "to_zarr", "zarr_export"]

# Attributes of a dynamic segmentation: its moment, and the one that an update is about to give it.
MOMENT, UPDATING = "timestamp_unix_s", "updating_to"
# Ends the field of the fingerprint with the levels of a volume of which chunks are copied, and their codec.
COPIED = " copied"

# Codec of each volume, by its name.
Codecs = Mapping[str, Compressor | None]


@describe_run
def to_zarr(
    data: Any,
    url: str | os.PathLike[str],
    *,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | Literal["auto"] | None = "auto",
    levels: Levels = 1,
    codec: str = "auto",
    ome_version: OmeVersion = "0.5",
    axes: Axes | None = None,
    kind: Kind | Mapping[str, Kind] | None = None,
    relabel: Literal["uint32"] | None = None,
    block_mib: float | None = None,
    resolution_nm: Sequence[float] | None = None,
    translation_nm: Sequence[float] | None = None,
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
    """Write an array, or imagery with its segmentation, as OME-Zarr.

    One task reads, computes and writes a block; the cluster holds a bounded number of tasks at a time.

    Parameters
    ----------
    data : dask.array.Array, numpy.ndarray, xarray.DataArray or xarray.Dataset, or mapping of str to these
        Axes x, y, z (two or three of them; DataArrays in any order) and optionally channels. A dataset has the
        variables ``image`` and ``segmentation``, either or both. A mapping of names to data is written as named
        regions: a group for each of them, by one run.
    url : str or path
        Where to write: a local folder or what fsspec opens. An array, or a dataset's only variable, goes to the root
        of the store; beside an image, a segmentation goes to ``labels/segmentation``.
    chunks : sequence of 3 int, optional
        Chunk shape x, y, z of the output. By default 128 along each axis for 8 and 16 bit voxels, 64 for others.
    shards : sequence of 3 int, "auto" or None
        Shard shape, a multiple of `chunks`; a shard is one object. ``"auto"`` makes shards of about 32 MiB where there
        are more than 1,024 chunks; None makes every chunk an object. OME-Zarr 0.4 has no shards. Levels that one task
        makes together have shards of the same region.
    levels : int, "auto" or "source"
        Number of levels of the pyramid. Each halves the axes whose voxels are finest, by the mean (imagery) or the most
        frequent id (labels). ``"auto"`` adds levels until no axis is longer than 512 voxels; ``"source"`` copies the
        coarser mips of the source.
    codec : str
        Compression of chunks: blosc-zstd, blosc-lz4 (with byte shuffle), blosc-zstd-bitshuffle, blosc-lz4-bitshuffle,
        zstd or gzip, each with a level if it is not 1 (``"zstd:3"``); none; or auto, which is that of a zarr source
        whose chunks have the same shape and begin where those of the output do, so that they are copied as they are
        stored; otherwise zstd for ids and masks, which blosc's byte shuffle makes larger, and blosc-zstd for imagery.
        Empty chunks are not stored, unless they are copied.
    ome_version : {"0.5", "0.4"}
        OME-Zarr 0.5 is zarr v3; 0.4, for older readers, zarr v2.
    axes : {"zyx", "czyx", "tzyx", "tczyx", "xyz", "cxyz", "txyz", "tcxyz"}, optional
        Axes of the arrays, for readers that expect others: t, and c without channels, have one position. By default
        zyx, or czyx if there are channels.
    kind : {"image", "segmentation"} or mapping of str to these, optional
        What voxels are: intensities, which levels average, or ids, which are never averaged. By default they are ids in
        cutouts of a segmentation, in masks, and if they are integers of 32 bits or more, also in a cutout of a layer
        of type "image". A mapping names that of variables of a dataset: ``{"image": "image"}``.
    relabel : "uint32", optional
        Write ids of 32 and 64 bits as numbers of uint32, with the table ``root_ids.npy`` beside them from which
        `imagery_dask.root_ids_of` gives the ids back. The numbers follow the order of the ids; 0 stays 0. A first pass
        finds the ids, so that the source is read twice; if it is interrupted, it begins again.
    resolution_nm, translation_nm : sequence of 3 float, optional
        Voxel size, and centre of the first voxel, x, y, z in nm. Cutouts and DataArrays with coordinates have their
        own; an array without any is written without units.
    {parameters}

    Returns
    -------
    RunReport
        Blocks, voxels, bytes, seconds, storage chunks missing.

    Raises
    ------
    FileExistsError
        There is something else at `url`, and `overwrite` is False; the message names the arguments that differ.
    TargetBusyError
        Another process is writing to `url`.
    ValueError, TypeError
        Chunks, shards, levels or data cannot be written. Nothing has been written.
    BlockFailedError
        Some blocks failed. All others of their level have been written; the ``report`` of the error names the failed
        ones.
    AccessRefusedError
        The source refuses access; the export ends at once.
    TargetFullError, TooManyMissingError, ClusterLostError
        The disk is full, more chunks than `max_missing` are missing, or the scheduler is gone. Call again with the same
        arguments to resume.

    Notes
    -----
    The folder ``OUT.receipts/`` beside the store holds the plan, a receipt for each block that was written, and a
    ledger of the storage chunks that were missing (``ledger.jsonl``). Remove it when the export will not be resumed,
    verified or repaired any more.
    """
    options = ZarrOptions(
        chunks=chunks, shards=shards, levels=levels, codec=codec, ome_version=ome_version, axes=axes,
        resolution_nm=resolution_nm, translation_nm=translation_nm, kind=kind, relabel=relabel,
    )  # fmt: skip
    return execute(zarr_export(data, url, options), RunOptions(
        cluster=cluster, workers=workers, max_workers=max_workers, progress=progress,
        overwrite=overwrite, repair=repair, redo_missing=redo_missing,
        block_mib=block_mib, max_missing=max_missing,
        max_requests=max_requests, report=report,
    ))  # fmt: skip


def _objects(export: ZarrExport) -> int:
    """Return the largest number of files: shards, unsharded chunks and metadata; empty chunks are not written."""
    groups, arrays, chunks = {""}, 0, 0
    for multiscale in export.multiscales:
        groups |= {"labels", multiscale.volume.group} if multiscale.volume.group else set()
        arrays += len(multiscale.layouts)
        for layout in multiscale.layouts:
            chunks += layout.level.shape.ceil_div(layout.shard or layout.chunk).prod()
    # .zgroup or .zarray, and .zattrs; or zarr.json.
    metadata_files = 2 if export.options.zarr_format == 2 else 1
    return chunks + metadata_files * (len(groups) + arrays)


def _notes(export: ZarrExport) -> Iterator[str]:
    """Yield notes about compact ids, and volumes that Neuroglancer does not show."""
    yield from export.notes()
    for multiscale in export.multiscales:
        levels = multiscale.export
        counts = [
            chunks_in_common(volume, layout.chunk)
            for volume, layout, copied in zip(levels.volumes, multiscale.layouts, levels.copied, strict=False)
            if copied
        ]
        if counts:
            yield share_copied(multiscale.volume.name, *map(sum, zip(*counts, strict=True)))
    for volume in export.volumes:
        if volume.stored_dtype == np.int64:
            yield (
                f"{volume.name}: Neuroglancer shows no zarr array of {volume.array.dtype}. Write ids as uint64 "
                "(convert_to_int64=False)."
            )


class ZarrExport(VolumeExport):
    """An export to a zarr store."""

    kind = "zarr"
    format = OutputFormat(volume_reads, _objects, _notes, volume_previews)
    options: ZarrOptions

    def __init__(
        self,
        data: Any,
        url: str | os.PathLike[str],
        options: ZarrOptions,
        *,
        in_root: bool = True,
        shards_before: bool = False,
        copies: bool = True,
    ) -> None:
        """Lay out an export.

        Without `in_root`, a dataset's lone segmentation lies where that of an image does; with `shards_before`, shards
        are those of version 0.1; without `copies`, all chunks are decoded, and hashes are of voxels.
        """
        self._data = data
        chunk, shard = options.chunk, options.shard
        volumes = as_volumes(data, options.resolution_nm, options.translation_nm, options.kind)
        volumes = relabelled(volumes, options.relabel)
        self._is_lone = len(volumes) == 1 and volumes[0].variable and volumes[0].name == "segmentation"
        if self._is_lone and not in_root:
            volumes = [replace(volume, group=LABELS_GROUP) for volume in volumes]
        multiscales = [multiscale_of(volume, options.levels, chunk, shard, shards_before) for volume in volumes]
        self._codecs: Codecs = {one.volume.name: _compressor(one, options, copies) for one in multiscales}
        if copies:
            multiscales = [_copying(one, options, self._codecs[one.volume.name]) for one in multiscales]
        for multiscale in multiscales:
            _check_chunk(multiscale, self._codecs[multiscale.volume.name])
            options.axes_of(multiscale.volume.channels)
        layout = {
            f"{multiscale.volume.name} level {index} {what}": getattr(layout, what)
            for multiscale in multiscales
            for index, layout in enumerate(multiscale.layouts)
            for what in ("chunk", "shard")
        }
        fields = to_json(layout | {"codec": options.codec, "ome_version": options.ome_version})
        if self._is_lone and in_root:
            fields["segmentation group"] = "/"
        if options.axes is not None:
            fields["axes"] = options.axes
        for name, levels in {one.volume.name: _copied(one) for one in multiscales}.items():
            if levels:
                codec = self._codecs[name]
                fields[f"{name}{COPIED}"] = [*levels, RAW if codec is None else codec.text]
        super().__init__(multiscales, options, fields)
        self.target = StoreTarget(url)

    def earlier(self) -> Iterator[Self]:
        """Yield the export as version 0.1 wrote it: its shards, its default codec, a lone segmentation below the root.

        Without copies alone, or with its shards alone too, it is of runs that a version in between has begun.
        """
        if any(name.endswith(COPIED) for name in self.fingerprint_fields):
            yield type(self)(self._data, self.url, self.options, copies=False)
        if self.options.shard is not None:
            yield type(self)(self._data, self.url, self.options, shards_before=True, copies=False)
        if self._is_lone or self.options.codec == "auto":
            codec = "blosc-zstd" if self.options.codec == "auto" else self.options.codec
            options = replace(self.options, codec=codec)
            yield type(self)(self._data, self.url, options, in_root=False, shards_before=True, copies=False)

    def create(self, run: StartedRun, workers: Workers, regions: Sequence[Region] | None = None) -> None:
        """Make the groups, their metadata and the empty arrays."""
        # Reads a sample, before anything is written: if the source cannot be read, no store is left behind.
        shown_as = [None if volume.labels else ome.display(volume) for volume in self.volumes]
        url = run.url
        _create(url, self.multiscales, shown_as, self.options, self._codecs)
        self.put_tables(run)
        check_reachable(url, workers)

    def folder_of(self, volume: Volume) -> str:
        """Return the group of a volume."""
        return volume.group

    def metadata_names(self) -> list[str]:
        """Return the names of the metadata of groups and arrays, and of tables of compact ids."""
        groups = {""}
        for group in (multiscale.volume.group for multiscale in self.multiscales if multiscale.volume.group):
            groups |= {f"{group.partition('/')[0]}/", group}
        arrays = {
            f"{multiscale.volume.group}{index}/"
            for multiscale in self.multiscales
            for index in range(len(multiscale.layouts))
        }
        if self.options.zarr_format == 3:
            return sorted([*(f"{folder}zarr.json" for folder in groups | arrays), *self.table_names])
        own = {f"{folder}.zgroup" for folder in groups} | {f"{folder}.zarray" for folder in arrays}
        return sorted(own | {f"{folder}.zattrs" for folder in groups | arrays} | set(self.table_names))

    def stores(self, run: StartedRun) -> list[list[LevelStore]]:
        """Return the arrays of each volume."""
        return [_stores(run.url, multiscale, self.options, run.id) for multiscale in self.multiscales]

    def close(self, run: StartedRun, report: RunReport) -> None:
        """Remove partial files of killed processes, and record in the store what was missing."""
        groups = {volume.group for volume in self.volumes}
        arrays = {
            f"{multiscale.volume.group}{index}"
            for multiscale in self.multiscales
            for index in range(len(multiscale.layouts))
        }
        for path in {"", *(group.partition("/")[0] for group in groups), *groups, *arrays}:
            remove_partial(run.url, path)
        for volume in self.volumes:
            group = self._group(run.url, volume)
            made: Any = group.attrs[KEY]
            if UPDATING in made or made.get(MOMENT) != provenance(volume).get(MOMENT):
                made = provenance(volume)
            group.attrs[KEY] = made | what_was_missing(report, volume.name)

    def mark_updating(self) -> None:
        """Say in the store that its blocks become those of another moment, until it is closed."""
        for volume in self.volumes:
            group = self._group(self.url, volume)
            made: Any = group.attrs[KEY]
            group.attrs[KEY] = made | {UPDATING: provenance(volume).get("timestamp")}

    def _group(self, url: str, volume: Volume) -> Any:
        return zarr.open_group(open_store(url), path=volume.group.rstrip("/"), mode="r+")


class ZarrRegions(RegionsExport):
    """An export of named regions to a zarr store: a group, with a group for each region."""

    kind = "zarr"
    options: ZarrOptions

    def __init__(
        self,
        data: Mapping[str, Any],
        url: str | os.PathLike[str],
        options: ZarrOptions,
        *,
        shards_before: bool = False,
        copies: bool = True,
    ) -> None:
        def make(name: str, one: Any) -> ZarrExport:
            return ZarrExport(one, self.place(self.url, name), options, shards_before=shards_before, copies=copies)

        self._data = data
        self.target = StoreTarget(url)
        super().__init__(data, make, options)

    def earlier(self) -> Iterator[Self]:
        """Yield the export as earlier versions wrote it: without copies, and with their shards."""
        if any(name.endswith(COPIED) for name in self.fingerprint_fields):
            yield type(self)(self._data, self.url, self.options, copies=False)
        if self.options.shard is not None:
            yield type(self)(self._data, self.url, self.options, shards_before=True, copies=False)

    def create_root(self, url: str) -> None:
        """Make the group of the regions, whose attributes list them."""
        create_group(url, self.options.zarr_format).attrs[KEY] = root_of_regions(list(self.exports))

    def root_names(self) -> list[str]:
        """Return the names of the metadata of the group of the regions."""
        return ["zarr.json"] if self.options.zarr_format == 3 else [".zattrs", ".zgroup"]

    def close(self, run: StartedRun, report: RunReport) -> None:
        """Remove partial files of killed processes, and record in the store what was missing."""
        remove_partial(run.url, "")
        super().close(run, report)


def zarr_export(data: Any, url: str | os.PathLike[str], options: ZarrOptions) -> Export:
    """Return the export of data, or of named regions."""
    return ZarrRegions(data, url, options) if are_regions(data) else ZarrExport(data, url, options)


def _compressor(multiscale: Multiscale, options: ZarrOptions, copies: bool) -> Compressor | None:
    """Return the codec of the arrays of a volume; None for none."""
    volume, layout = multiscale.volume, multiscale.layouts[0]
    copies = copies and multiscale.export.may_be_written_by(0, layout.chunk)
    of_source = compressor_of_source(volume, layout, options) if copies else None
    return of_source or options.compressor(volume.labels)


def _copying(multiscale: Multiscale, options: ZarrOptions, compressor: Compressor | None) -> Multiscale:
    """Return a volume of which the chunks of zarr sources are copied that can be."""
    export = multiscale.export
    pairs = zip(export.volumes, multiscale.layouts, strict=False)
    copied = tuple(
        export.may_be_written_by(level, layout.chunk) and is_copied(volume, layout, options, compressor)
        for level, (volume, layout) in enumerate(pairs)
    )
    return replace(multiscale, export=replace(export, copied=copied)) if any(copied) else multiscale


def _copied(multiscale: Multiscale) -> list[int]:
    """Return the levels of which chunks are copied."""
    return [level for level, is_one in enumerate(multiscale.export.copied) if is_one]


# --------------------------------------------------------------------------- the store


def _stores(store: str, multiscale: Multiscale, options: ZarrOptions, run: str) -> list[LevelStore]:
    paths = [f"{multiscale.volume.group}{index}" for index in range(len(multiscale.layouts))]
    voxel_axes = None if options.axes is None else multiscale.volume.array.ndim
    x_first = options.axes is not None and options.axes.endswith("xyz")
    copied = _copied(multiscale)
    return [
        ZarrLevel(store, path, options.zarr_format, run, voxel_axes, x_first, level in copied)
        for level, path in enumerate(paths)
    ]


def _create(
    store: str,
    multiscales: list[Multiscale],
    shown_as: list[JsonObject | None],
    options: ZarrOptions,
    codecs: Codecs,
) -> None:
    """Make the groups, their metadata and the empty arrays."""
    labels = [multiscale for multiscale in multiscales if multiscale.volume.group]
    images = [pair for pair in zip(multiscales, shown_as, strict=True) if not pair[0].volume.group]
    root = create_group(store, options.zarr_format)
    for multiscale, omero in images:
        volume, levels = multiscale.volume, multiscale.export.levels
        if volume.labels and not volume.channels:
            attributes = _label_attributes(options, multiscale, of_image=False)
        else:
            made = _pyramid(multiscale)
            axes = options.axes_of(volume.channels)
            attributes = ome.image_attributes(options.ome_version, volume.name, axes, levels, omero, made)
        _create_levels(root, multiscale, attributes, options, codecs[volume.name])
    if labels:
        folder = root.create_group("labels")
        folder.attrs.update(
            ome.labels_attributes(options.ome_version, [multiscale.volume.name for multiscale in labels])
        )
        for multiscale in labels:
            attributes = _label_attributes(options, multiscale, of_image=bool(images))
            name = multiscale.volume.name
            _create_levels(folder.create_group(name), multiscale, attributes, options, codecs[name])


def _label_attributes(options: ZarrOptions, multiscale: Multiscale, of_image: bool) -> JsonObject:
    volume, is_mask = multiscale.volume, multiscale.volume.array.dtype == np.bool_
    axes, levels = options.axes_of(volume.channels), multiscale.export.levels
    return ome.label_attributes(options.ome_version, volume.name, axes, levels, of_image, is_mask, _pyramid(multiscale))


def _pyramid(multiscale: Multiscale) -> ome.Pyramid:
    """Return how coarser levels are made."""
    if len(multiscale.export.volumes) > 1:
        return "source"
    return "mode" if multiscale.volume.labels else "mean"


def _create_levels(
    group: Any, multiscale: Multiscale, attributes: JsonObject, options: ZarrOptions, compressor: Compressor | None
) -> None:
    volume, zarr_format = multiscale.volume, options.zarr_format
    group.attrs.update(attributes | {KEY: provenance(volume)})
    axes = [*options.axes_of(volume.channels)]
    channels = int(volume.array.shape[3]) if volume.channels else 1
    ahead = tuple(channels if axis == "c" else 1 for axis in axes[:-3])

    def stored(shape: Vec3[int]) -> tuple[int, ...]:
        return (*ahead, *(shape if axes[-1] == "z" else reversed(shape)))

    for index, layout in enumerate(multiscale.layouts):
        group.create_array(
            str(index),
            shape=stored(layout.level.shape),
            chunks=stored(layout.chunk),
            shards=None if layout.shard is None else stored(layout.shard),
            dtype=_stored_as(volume.stored_dtype),
            compressors=None if compressor is None else compressor.of_zarr(zarr_format),
            fill_value=0,
            chunk_key_encoding=None if zarr_format == 3 else {"name": "v2", "separator": "/"},
            dimension_names=None if zarr_format == 2 else axes,
            # Where xarray reads them. Not for ids: it takes 0 for missing data in zarr v2, and rounds ids to floats.
            attributes={"_ARRAY_DIMENSIONS": axes} if zarr_format == 2 and not volume.labels else None,
        )


def _stored_as(dtype: Any) -> Any:
    """Return the data type of an array: labels are integers, also masks (https://ngff.openmicroscopy.org/0.5/)."""
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype


def _check_chunk(multiscale: Multiscale, compressor: Compressor | None) -> None:
    """Raise if a codec cannot hold the chunks of a volume."""
    if compressor is not None:
        compressor.check_chunk(multiscale.layouts[0].chunk, multiscale.volume.voxel_bytes)
