"""Write Neuroglancer precomputed volumes, encoded by CloudVolume's codecs, with the same pyramid as OME-Zarr.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.export.core.base import Export, OutputFormat
from imagery_dask.export.core.inputs import Volume, as_volumes
from imagery_dask.export.core.provenance import KEY, provenance, what_was_missing
from imagery_dask.export.core.region_exports import RegionsExport, are_regions
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.core.writer_arguments import describe_run
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.multiscale.compact_ids import relabelled
from imagery_dask.export.multiscale.copied_chunks import chunks_in_common, share_copied
from imagery_dask.export.multiscale.level_layout import default_chunks
from imagery_dask.export.multiscale.levels import LevelStore
from imagery_dask.export.multiscale.volumes import (
    Multiscale,
    VolumeExport,
    multiscale_of,
    volume_previews,
    volume_reads,
)
from imagery_dask.export.precomputed.copying import ChunkForm, form_of_source, why_not_copied
from imagery_dask.export.precomputed.precomputed_level import PrecomputedLevel
from imagery_dask.export.precomputed.precomputed_options import LABEL_ENCODINGS, PrecomputedOptions
from imagery_dask.export.precomputed.sharded_level import ShardedLevel
from imagery_dask.export.precomputed.sharding import Sharding
from imagery_dask.geometry.grid import Region
from imagery_dask.geometry.pyramid import Level, Levels
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.labels import Kind
from imagery_dask.run import RunReport, Workers
from imagery_dask.serialization import to_json
from imagery_dask.sources import open_volume
from imagery_dask.sources.precomputed.codecs import SEGMENTATION_BLOCK
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.storage.targets import VolumesTarget, VolumeTarget

__all__ = ["PrecomputedExport", "PrecomputedRegions", "precomputed_export", "to_precomputed"]

# Fixed name of the folder, because the name in the source may be a path that leads out of the volume.
PROPERTIES = "segment_properties"
# So many chunks of an export can be files of their own.
CHUNKS_UNSHARDED = 100_000
# Bytes of a shard's voxels, of which a task holds a layer of chunks where it reads part by part, and all elsewhere.
LARGEST_SHARD, LARGEST_HELD_SHARD = 2**30, 2**27
# https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md, as tensorstore reads it.
DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32")


@describe_run
def to_precomputed(
    data: Any,
    url: str | os.PathLike[str],
    *,
    encoding: str | Mapping[str, str] | None = None,
    chunks: Sequence[int] | None = None,
    levels: Levels = 1,
    compress: Literal["auto", "gzip", "br"] | None = "auto",
    quality: int | None = None,
    sharding: Mapping[str, Any] | Literal["auto"] | None = "auto",
    copy: Literal["auto", "exact", "never"] = "auto",
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
    """Write an array as a Neuroglancer precomputed volume, at the voxel offset that it comes from.

    Parameters
    ----------
    data : dask.array.Array, numpy.ndarray, xarray.DataArray or xarray.Dataset, or mapping of str to these
        As for `to_zarr`. A dataset of two variables is written to the folders ``image`` and ``segmentation``, and each
        of several named regions to a folder of its own.
    url : str or path
        Where to write: a local folder, ``s3://``, ``gs://``, or ``memory://`` of this process; ``precomputed://``
        before these means the same.
    encoding : str or mapping of str to str, optional
        Of imagery ``"raw"`` (default), ``"jpeg"``, ``"png"`` or ``"jxl"``; of labels ``"compressed_segmentation"``
        (default), ``"raw"``, ``"compresso"`` or ``"crackle"``. A mapping names that of each variable of a dataset.
    chunks : sequence of 3 int, optional
        Storage chunk x, y, z. By default 128 voxels along each axis for 8 and 16 bit voxels, 64 for others.
    levels : int, "auto" or "source"
        As for `to_zarr`: mips of the volume. Their voxels lie at whole multiples of their size, so that a computed
        pyramid needs bounds that begin at a multiple of its factor.
    compress : {"auto", "gzip", "br"} or None
        Further compression of chunks that are not pictures. By default gzip in buckets, which give such files back
        decompressed, and none on a local disk, where only CloudVolume reads a chunk from a file named ``.gz``.
    quality : int, optional
        Quality of jpeg (1 to 100) and jxl (0 to 100, which is lossless), compression level of png (0 to 9).
    sharding : "auto", None or mapping
        Join many chunks to one file, a shard. By default where there would be more than 100,000 files: shards of 1,024
        chunks, or more where these are small, of at most 1 GiB of voxels; 128 MiB of voxels that are resampled,
        relabelled or computed. None writes a file for each chunk. A mapping is the ``sharding`` entry of the scales of
        an info, with hash "identity", as in Neuroglancer's
        `format <https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md>`_; its
        `data_encoding` takes the place of `compress`. A task writes whole shards.
    copy : {"auto", "exact", "never"}
        Whether storage chunks of a precomputed source are written as they are stored there, so that pictures lose
        nothing. By default where the encoding, the chunk shape and the first voxel agree, and voxels are neither
        relabelled nor resampled; a chunk that the bounds cut is encoded again. ``"exact"`` takes encoding and chunk
        shape from the source, and refuses an export of which a chunk would have to be encoded.
    kind : {"image", "segmentation"} or mapping of str to these, optional
        As for `to_zarr`: whether voxels are intensities or ids.
    relabel : "uint32", optional
        As for `to_zarr`.
    resolution_nm, translation_nm : sequence of 3 float, optional
        Voxel size, and centre of the first voxel, x, y, z in nm, of an array that has none of its own.
    {parameters}

    Returns
    -------
    RunReport
        Blocks, voxels, bytes, seconds, storage chunks missing.

    Raises
    ------
    FileExistsError
        There is something else at `url`, and `overwrite` is False.
    ValueError, TypeError
        An encoding cannot hold the voxels, the first voxel is not at a whole voxel, or another argument is not valid.
        Nothing has been written.
    BlockFailedError, AccessRefusedError
        As for `to_zarr`.
    """
    options = PrecomputedOptions(
        encoding=encoding, chunks=chunks, levels=levels, compress=compress, quality=quality,
        sharding=sharding, copy=copy, resolution_nm=resolution_nm, translation_nm=translation_nm, kind=kind,
        relabel=relabel,
    )  # fmt: skip
    return execute(precomputed_export(data, url, options), RunOptions(
        cluster=cluster, workers=workers, max_workers=max_workers, progress=progress,
        overwrite=overwrite, repair=repair, redo_missing=redo_missing,
        block_mib=block_mib, max_missing=max_missing,
        max_requests=max_requests, report=report,
    ))  # fmt: skip


def _objects(export: PrecomputedExport) -> int:
    """Return the number of chunks or shards, and metadata files."""
    return sum(layer.files + 2 + len(layer.beside) for layer in export.layers)


def _notes(export: PrecomputedExport) -> Iterator[str]:
    """Yield notes about compact ids, and how many files shards save."""
    yield from export.notes()
    for layer in export.layers:
        if layer.copied:
            yield share_copied(layer.multiscale.volume.name, *layer.chunks_copied)
        if layer.files != layer.chunks:
            yield (
                f"{layer.multiscale.volume.name}: {layer.chunks:,} chunks lie in {layer.files:,} shards, which a task "
                "writes as a whole (sharding=None, --sharding none: a file for each chunk)."
            )


class PrecomputedExport(VolumeExport):
    """An export to precomputed volumes."""

    kind = "precomputed"
    format = OutputFormat(volume_reads, _objects, _notes, volume_previews)

    def __init__(
        self, data: Any, url: str | os.PathLike[str], options: PrecomputedOptions, *, in_root: bool = True
    ) -> None:
        """Lay out an export; without `in_root`, the one variable of a dataset lies in a folder, as two of them do."""
        self._data = data
        volumes = as_volumes(data, options.resolution_nm, options.translation_nm, options.kind)
        volumes = relabelled(volumes, options.relabel)
        options.check_names([volume.name for volume in volumes])
        self.target = VolumeTarget(url.removeprefix("precomputed://") if isinstance(url, str) else url)
        self.layers = _layers(volumes, options, in_bucket=Files.at(self.target.url).folder is None)
        options.check_quality({layer.info["scales"][0]["encoding"] for layer in self.layers})
        self._is_lone = len(volumes) == 1 and volumes[0].variable
        in_folders = len(volumes) > 1 or (self._is_lone and not in_root)
        self._folders = [layer.multiscale.volume.name if in_folders else "" for layer in self.layers]
        fields = {
            f"{layer.multiscale.volume.name} {name}": layer.info["scales"][0][key]
            for layer in self.layers
            for name, key in (("encoding", "encoding"), ("chunks", "chunk_sizes"))
        }
        fields |= {"compress": options.compress, "quality": to_json(options.quality), "folders": self._folders}
        if self._is_lone and in_root:
            fields["folders"] = ["/"]
        fields |= {
            f"{layer.multiscale.volume.name} level {level} sharding": scale["sharding"]
            for layer in self.layers
            for level, scale in enumerate(layer.info["scales"])
            if "sharding" in scale
        }
        fields |= {f"{layer.multiscale.volume.name} copied": layer.copied for layer in self.layers if layer.copied}
        super().__init__([layer.multiscale for layer in self.layers], options, fields)

    def earlier(self) -> Iterator[Self]:
        """Yield the export as version 0.1 wrote it: decoded, without shards, a dataset's one variable in a folder."""
        options = replace(self.options, sharding=None) if self.options.sharding == "auto" else self.options
        options = replace(options, copy="never") if options.copy == "auto" else options
        is_other = self.layers[0].is_sharded and options.sharding is None
        if is_other or (options.copy == "never" and any(layer.copied for layer in self.layers)):
            yield type(self)(self._data, self.url, options)
        if self._is_lone:
            yield type(self)(self._data, self.url, options, in_root=False)

    def create(self, run: StartedRun, workers: Workers, regions: Sequence[Region] | None = None) -> None:
        """Write the metadata of the volumes."""
        with clear_errors(run.url):
            for layer, files in self._filed(run.url):
                layer.create(files)
            self.put_tables(run)

    def folder_of(self, volume: Volume) -> str:
        """Return the folder of a volume."""
        folders = zip(self.volumes, self._folders, strict=True)
        return next(f"{folder}/" if folder else "" for one, folder in folders if one.name == volume.name)

    def metadata_names(self) -> list[str]:
        """Return the names of the info files and what lies beside them."""
        return self.table_names + [
            f"{folder}/{name}".lstrip("/")
            for layer, folder in zip(self.layers, self._folders, strict=True)
            for name in ("info", "provenance", *layer.beside)
        ]

    def stores(self, run: StartedRun) -> list[list[LevelStore]]:
        """Return the mips of each volume."""
        return [layer.stores(files) for layer, files in self._filed(run.url)]

    def close(self, run: StartedRun, report: RunReport) -> None:
        """Remove partial files of killed processes, and record in the volumes what was missing."""
        for layer, files in self._filed(run.url):
            for folder in ("", PROPERTIES, *(str(scale["key"]) for scale in layer.info["scales"])):
                files.remove_partial(folder)
            layer.describe(files, what_was_missing(report, layer.multiscale.volume.name))

    def _filed(self, url: str) -> list[tuple[_Layer, Files]]:
        folders = (Files.at(f"{url}/{folder}") for folder in self._folders)
        return list(zip(self.layers, folders, strict=True))


class PrecomputedRegions(RegionsExport):
    """An export of named regions to precomputed volumes: a folder for each region."""

    kind = "precomputed"
    options: PrecomputedOptions

    def __init__(self, data: Mapping[str, Any], url: str | os.PathLike[str], options: PrecomputedOptions) -> None:
        self._data = data
        self.target = VolumesTarget(url.removeprefix("precomputed://") if isinstance(url, str) else url)
        super().__init__(data, lambda name, one: PrecomputedExport(one, self.place(self.url, name), options), options)

    def earlier(self) -> Iterator[Self]:
        """Yield the export as version 0.1 wrote it: decoded, without shards."""
        before = replace(
            self.options,
            sharding=None if self.options.sharding == "auto" else self.options.sharding,
            copy="never" if self.options.copy == "auto" else self.options.copy,
        )
        if before != self.options:
            yield type(self)(self._data, self.url, before)


def precomputed_export(data: Any, url: str | os.PathLike[str], options: PrecomputedOptions) -> Export:
    """Return the export of data, or of named regions."""
    return PrecomputedRegions(data, url, options) if are_regions(data) else PrecomputedExport(data, url, options)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A volume to be written."""

    multiscale: Multiscale
    #: Content of the info file.
    info: JsonObject
    #: Further metadata files by name.
    beside: dict[str, bytes]
    #: Where the volume comes from.
    made: JsonObject
    options: PrecomputedOptions

    @property
    def copied(self) -> list[int]:
        """Levels of which chunks are copied."""
        return [level for level, is_copied in enumerate(self.multiscale.export.copied) if is_copied]

    @property
    def chunks_copied(self) -> tuple[int, int]:
        """Number of chunks that are copied, and of all that are made of the source."""
        common, total = 0, 0
        for level, volume in enumerate(self.multiscale.export.volumes):
            total += _counts(self.info["scales"][level]).prod()
            common += chunks_in_common(volume, self.form.chunk)[0] if level in self.copied else 0
        return common, total

    @property
    def form(self) -> ChunkForm:
        """How chunks are stored."""
        scale = self.info["scales"][0]
        return ChunkForm(
            scale["encoding"], self.info["data_type"], self.info["num_channels"], Vec3.of(scale["chunk_sizes"][0])
        )

    @property
    def is_sharded(self) -> bool:
        """Whether chunks lie in shards."""
        return "sharding" in self.info["scales"][0]

    @property
    def chunks(self) -> int:
        """Number of chunks of all mips."""
        return sum(_counts(scale).prod() for scale in self.info["scales"])

    @property
    def files(self) -> int:
        """Number of files of chunks or shards."""
        if not self.is_sharded:
            return self.chunks
        boxes = [(_counts(scale), Sharding.from_entry(scale["sharding"])) for scale in self.info["scales"]]
        return sum(counts.ceil_div(sharding.box(counts)).prod() for counts, sharding in boxes)

    def create(self, files: Files) -> None:
        """Write the metadata of the volume."""
        files.put("info", json.dumps(self.info, indent=1).encode(), "application/json")
        for name, content in self.beside.items():
            files.put(name, content, "application/json")
        self.describe(files, {})

    def describe(self, files: Files, results: JsonObject) -> None:
        """Write the provenance file in CloudVolume's format."""
        made = self.made
        method = {"task": "imagery_dask.to_precomputed", KEY: made | results}
        content = {
            "description": "",
            "owners": [],
            "sources": [made["source"]] if "source" in made else [],
            "processing": [{"method": method, "by": "", "date": made["created"]}],
        }
        files.put("provenance", json.dumps(content, indent=1).encode(), "application/json")

    def stores(self, files: Files) -> list[LevelStore]:
        """Return the mips, in a folder or bucket."""
        return [self._store(files, scale, level in self.copied) for level, scale in enumerate(self.info["scales"])]

    def _store(self, files: Files, scale: JsonObject, copied: bool) -> LevelStore:
        make: Callable[..., PrecomputedLevel] = PrecomputedLevel
        if self.is_sharded:
            make = partial(ShardedLevel, sharding=Sharding.from_entry(scale["sharding"]))
        return make(
            files=files,
            key=scale["key"],
            start=Vec3.of(scale["voxel_offset"]),
            stop=Vec3.of(scale["voxel_offset"]) + scale["size"],
            chunk=Vec3.of(scale["chunk_sizes"][0]),
            encoding=scale["encoding"],
            dtype=self.info["data_type"],
            channels=self.info["num_channels"],
            compress=self.options.compression(scale["encoding"], in_bucket=files.folder is None),
            quality=self.options.quality,
            copied=copied,
        )


def _counts(scale: JsonObject) -> Vec3[int]:
    """Return the number of chunks of a scale along x, y, z."""
    return Vec3.of(scale["size"]).ceil_div(scale["chunk_sizes"][0])


def _layers(volumes: Sequence[Volume], options: PrecomputedOptions, in_bucket: bool) -> list[_Layer]:
    """Return the metadata of the volumes, with shards where these are asked for or would save many files."""
    if isinstance(options.sharding, Mapping):
        given = Sharding.from_entry(options.sharding)
        return [_layer(volume, options, lambda *_: given) for volume in volumes]
    layers = [_layer(volume, options) for volume in volumes]
    is_possible = options.sharding == "auto" and options.compress != "br"
    if not is_possible or sum(layer.chunks for layer in layers) <= CHUNKS_UNSHARDED:
        return layers

    def choose(volume: Volume, encoding: str, counts: Vec3[int], chunk: Vec3[int]) -> Sharding:
        most = LARGEST_SHARD if volume.reads_parts else LARGEST_HELD_SHARD
        gzips = options.compression(encoding, in_bucket) == "gzip"
        return Sharding.chosen(counts, chunk.prod() * volume.voxel_bytes, most, "gzip" if gzips else "raw")

    return [_layer(volume, options, choose) for volume in volumes]


# Returns the shards of a mip, given the volume, its encoding, the number of its chunks and their shape.
Choose = Callable[[Volume, str, Vec3[int], Vec3[int]], Sharding]


def _layer(volume: Volume, options: PrecomputedOptions, choose: Choose | None = None) -> _Layer:
    """Return the metadata of a volume, with shards if `choose` is given; raise if it cannot be written."""
    if volume.resolution_nm is None:
        raise ValueError("A precomputed volume needs a voxel size: pass resolution_nm (and translation_nm).")
    dtype = _stored_as(volume)
    channels = int(np.prod(volume.array.shape[3:], dtype=np.int64))
    own = form_of_source(volume) if options.copy == "exact" else None
    encoding = options.encoding_of(volume.name, volume.labels, dtype, channels, own.encoding if own else None)
    chunk = Vec3.of(options.chunk or (own.chunk if own else default_chunks(volume.array.dtype.itemsize)))

    def sharding_of(choose: Choose, level: Level) -> Sharding:
        return choose(volume, encoding, level.shape.ceil_div(chunk), chunk.minimum(level.shape))

    def shard_of(choose: Choose, level: Level) -> Vec3[int]:
        return sharding_of(choose, level).box(level.shape.ceil_div(chunk)) * chunk

    multiscale = multiscale_of(
        volume,
        options.levels,
        (chunk.x, chunk.y, chunk.z),
        shard_of=None if choose is None else partial(shard_of, choose),
    )
    multiscale = _copying(multiscale, options, ChunkForm(encoding, dtype, channels, chunk))
    options.check_chunk(encoding, multiscale.layouts[0].chunk)
    scales = [
        {
            "encoding": encoding,
            "chunk_sizes": [list(chunk)],
            "key": "_".join(map(str, resolution)),
            "resolution": resolution,
            "voxel_offset": _voxel_offset(level),
            "size": list(level.shape),
        }
        | ({"compressed_segmentation_block_size": list(SEGMENTATION_BLOCK)} if encoding == LABEL_ENCODINGS[0] else {})
        | ({} if choose is None else {"sharding": sharding_of(choose, level).entry})
        for level in multiscale.export.levels
        for resolution in [[_number(value) for value in level.resolution_nm or ()]]
    ]
    info: JsonObject = {
        "num_channels": channels,
        "type": "segmentation" if volume.labels and dtype.startswith("u") else "image",
        "data_type": dtype,
        "scales": scales,
    }
    properties = _segment_properties(volume)
    if properties is not None:
        info["segment_properties"] = PROPERTIES
    beside = {} if properties is None else {f"{PROPERTIES}/info": properties}
    return _Layer(multiscale, info, beside, provenance(volume), options)


def _copying(multiscale: Multiscale, options: PrecomputedOptions, form: ChunkForm) -> Multiscale:
    """Return a volume of which those levels are copied that can be; raise if all were to be, and cannot."""
    if options.copy == "never" or options.quality is not None:
        return multiscale
    export = multiscale.export
    reasons = [
        why_not_copied(volume, form)
        if export.may_be_written_by(level, multiscale.layouts[level].chunk)
        else f"voxels of level {level + 1} are made of two chunks of {tuple(form.chunk)}"
        for level, volume in enumerate(export.volumes)
    ]
    if options.copy == "exact":
        for volume, reason in zip(export.volumes, reasons, strict=True):
            common, total = (0, 0) if reason else chunks_in_common(volume, form.chunk)
            cut = f"{total - common:,} of its {total:,} chunks are cut by the bounds, or lie outside of the source"
            if reason or common < total:
                raise ValueError(
                    f"copy='exact' cannot copy the {volume.name}: {reason or cut}. Change that, or pass copy='auto', "
                    "which encodes such chunks again."
                )
    return replace(multiscale, export=replace(export, copied=tuple(not reason for reason in reasons)))


def _stored_as(volume: Volume) -> str:
    """Return the data type in which voxels are stored: of signed ids, which are never negative, the unsigned one.

    Raises
    ------
    TypeError, ValueError
        Precomputed volumes cannot hold the data type, or there is a negative id.
    """
    dtype = str(volume.stored_dtype)
    if dtype == "bool":
        return "uint8"
    if volume.labels and dtype.startswith("int") and not volume.is_assumed:
        if volume.held is not None and volume.held.min() < 0:
            raise ValueError(
                f"The {volume.name} ({dtype}) is taken for ids, and holds {volume.held.min()}: ids are not negative. "
                "Pass kind='image' if its voxels are intensities."
            )
        return f"u{dtype}"
    if dtype not in DTYPES:
        ids = " Pass kind='segmentation' if these are ids, which are not negative: uint64 holds them."
        raise TypeError(
            f"Precomputed volumes hold {', '.join(DTYPES)}; got {dtype}.{ids if volume.labels else ''} Convert other "
            "voxels first: array.astype(...)."
        )
    return dtype


def _voxel_offset(level: Level) -> list[int]:
    """Return the index of the first voxel of a level; raise if it is not whole."""
    resolution = level.resolution_nm or Vec3(1.0, 1.0, 1.0)
    exact = level.translation_nm.map(lambda centre, size: centre / size - 0.5, resolution)
    offset = [round(value) for value in exact]
    if not np.allclose(exact, offset, rtol=0, atol=1e-3):
        if level.step == (1, 1, 1):
            raise ValueError(
                f"The volume would begin at voxel {tuple(round(value, 3) for value in exact)} of {resolution} nm, and "
                "precomputed volumes begin at whole voxels. translation_nm is the centre of the first voxel: "
                f"{tuple(size / 2 for size in resolution)} of a volume that begins at voxel 0."
            )
        raise ValueError(
            f"A level of {resolution} nm would begin at voxel {tuple(round(value, 3) for value in exact)}, and mips of "
            "precomputed volumes begin at whole voxels. Choose bounds that begin at a multiple of the coarsest level's "
            "factor, fewer levels, or levels='source'."
        )
    return offset


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def _segment_properties(volume: Volume) -> bytes | None:
    """Return the segment properties of the source, if the ids are the source's own."""
    rule = None if volume.source is None else volume.source.cutout.labels
    if volume.source is None or volume.relabel or rule is None or rule.query is not None:
        return None
    properties = open_volume(volume.source.cutout.path).segment_properties()
    return None if properties is None else properties[1]
