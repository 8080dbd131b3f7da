"""Write Neuroglancer precomputed volumes, encoded by CloudVolume's codecs, with the same pyramid as OME-Zarr.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from imagery_dask.export.multiscale.level_layout import default_chunks
from imagery_dask.export.multiscale.levels import LevelStore
from imagery_dask.export.multiscale.volumes import (
    Multiscale,
    VolumeExport,
    multiscale_of,
    volume_previews,
    volume_reads,
)
from imagery_dask.export.precomputed.precomputed_level import PrecomputedLevel
from imagery_dask.export.precomputed.precomputed_options import COMPRESSIBLE, LABEL_ENCODINGS, PrecomputedOptions
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
        resolution_nm=resolution_nm, translation_nm=translation_nm, kind=kind, relabel=relabel,
    )  # fmt: skip
    return execute(precomputed_export(data, url, options), RunOptions(
        cluster=cluster, workers=workers, max_workers=max_workers, progress=progress,
        overwrite=overwrite, repair=repair, redo_missing=redo_missing,
        block_mib=block_mib, max_missing=max_missing,
        max_requests=max_requests, report=report,
    ))  # fmt: skip


def _objects(export: PrecomputedExport) -> int:
    """Return the number of chunks and metadata files."""
    total = 0
    for layer in export.layers:
        for scale in layer.info["scales"]:
            total += Vec3.of(scale["size"]).ceil_div(scale["chunk_sizes"][0]).prod()
        total += 2 + len(layer.beside)
    return total


class PrecomputedExport(VolumeExport):
    """An export to precomputed volumes."""

    kind = "precomputed"
    format = OutputFormat(volume_reads, _objects, VolumeExport.notes, volume_previews)

    def __init__(
        self, data: Any, url: str | os.PathLike[str], options: PrecomputedOptions, *, in_root: bool = True
    ) -> None:
        """Lay out an export; without `in_root`, the one variable of a dataset lies in a folder, as two of them do."""
        self._data = data
        volumes = as_volumes(data, options.resolution_nm, options.translation_nm, options.kind)
        volumes = relabelled(volumes, options.relabel)
        options.check_names([volume.name for volume in volumes])
        self.layers = [_layer(volume, options) for volume in volumes]
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
        super().__init__([layer.multiscale for layer in self.layers], options, fields)
        self.target = VolumeTarget(url.removeprefix("precomputed://") if isinstance(url, str) else url)

    def earlier(self) -> Iterator[Self]:
        """Yield the export as version 0.1 wrote it: the one variable of a dataset in a folder."""
        if self._is_lone:
            yield type(self)(self._data, self.url, self.options, in_root=False)

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

    def __init__(self, data: Mapping[str, Any], url: str | os.PathLike[str], options: PrecomputedOptions) -> None:
        self.target = VolumesTarget(url.removeprefix("precomputed://") if isinstance(url, str) else url)
        super().__init__(data, lambda name, one: PrecomputedExport(one, self.place(self.url, name), options), options)


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
        gzips = self.info["scales"][0]["encoding"] in COMPRESSIBLE
        compress = self.options.compress
        if compress == "auto":
            compress = "gzip" if files.folder is None else None
        return [
            PrecomputedLevel(
                files=files,
                key=scale["key"],
                start=Vec3.of(scale["voxel_offset"]),
                stop=Vec3.of(scale["voxel_offset"]) + scale["size"],
                chunk=Vec3.of(scale["chunk_sizes"][0]),
                encoding=scale["encoding"],
                dtype=self.info["data_type"],
                channels=self.info["num_channels"],
                compress=compress if gzips else None,
                quality=self.options.quality,
            )
            for scale in self.info["scales"]
        ]


def _layer(volume: Volume, options: PrecomputedOptions) -> _Layer:
    """Return the metadata of a volume; raise if it cannot be written."""
    if volume.resolution_nm is None:
        raise ValueError("A precomputed volume needs a voxel size: pass resolution_nm (and translation_nm).")
    multiscale = multiscale_of(volume, options.levels, options.chunk)
    dtype = _stored_as(volume)
    channels = int(np.prod(volume.array.shape[3:], dtype=np.int64))
    encoding = options.encoding_of(volume.name, volume.labels, dtype, channels)
    options.check_chunk(encoding, multiscale.layouts[0].chunk)
    scales = [
        {
            "encoding": encoding,
            "chunk_sizes": [list(options.chunk or default_chunks(volume.array.dtype.itemsize))],
            "key": "_".join(map(str, resolution)),
            "resolution": resolution,
            "voxel_offset": _voxel_offset(level),
            "size": list(level.shape),
        }
        | ({"compressed_segmentation_block_size": list(SEGMENTATION_BLOCK)} if encoding == LABEL_ENCODINGS[0] else {})
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
