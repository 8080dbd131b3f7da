"""OME-Zarr: any dask array or xarray object, written block by block, with its pyramid.

Arrays are stored with axes (c,) z, y, x. A block of a cutout is Fortran-ordered x, y, z, so that its transpose is what
zarr wants, for free.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import zarr
from numpy.typing import NDArray

from imagery_dask.arguments import whole_triple
from imagery_dask.cluster import connect
from imagery_dask.export import ome
from imagery_dask.export.codecs import Codec, checked_codec, compressor
from imagery_dask.export.display import display
from imagery_dask.export.inputs import as_volumes
from imagery_dask.export.levels import VolumeLevels, plan_levels, write_levels
from imagery_dask.export.progress import shown
from imagery_dask.export.provenance import KEY, provenance, what_was_missing
from imagery_dask.export.stacks import Stack, block_bytes_of, stack_of
from imagery_dask.export.stores import check_process, check_reachable, create_group, open_store
from imagery_dask.export.target import StoreTarget
from imagery_dask.export.writing import BlockArray, open_array
from imagery_dask.plan import Region
from imagery_dask.pyramid import Levels, checked_levels
from imagery_dask.run import RunReport

__all__ = ["to_zarr"]


def to_zarr(
    data: Any,
    url: str | os.PathLike[str],
    *,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | Literal["auto"] | None = "auto",
    levels: Levels = 1,
    codec: Codec = "blosc-zstd",
    ome_version: ome.OmeVersion = "0.5",
    block_mib: float | None = None,
    resolution_nm: Sequence[float] | None = None,
    translation_nm: Sequence[float] | None = None,
    overwrite: bool = False,
    cluster: Any = None,
    workers: int | None = None,
    progress: bool | Callable[[RunReport], None] = True,
) -> RunReport:
    """Write an array, or imagery with its segmentation, as OME-Zarr.

    Reading, computing and writing a block is one task; a bounded window of them is on the cluster at a time.

    Parameters
    ----------
    data : dask.array.Array, numpy.ndarray, xarray.DataArray or xarray.Dataset
        Axes x, y, z (two or three of them; DataArrays in any order) and optionally channels. A dataset has the
        variables ``image`` and ``segmentation``, either or both.
    url : str or path
        Where to write: a local folder or what fsspec opens. An array goes to the root of the store; a dataset's image
        to the root and its segmentation under ``labels/segmentation``.
    chunks : sequence of 3 int, optional
        Chunk shape x, y, z of the output. By default 128 along each axis for 8 and 16 bit voxels, 64 for others.
    shards : sequence of 3 int, "auto" or None
        Shard shape, whole chunks: one object each. ``"auto"`` makes shards of about 32 MiB where there are more than
        1,024 chunks; None makes every chunk an object. OME-Zarr 0.4 has no shards. Levels that are made together with
        the one above them have shards of the same region.
    levels : int, "auto" or "source"
        How many levels the pyramid has. Each is the mean (imagery) or the most frequent id (labels) of two voxels of
        the level above, along those axes whose voxels are finest. ``"auto"`` adds levels until none is longer than 512
        voxels; ``"source"`` copies the source's own coarser mips.
    codec : {"blosc-zstd", "zstd", "gzip", "none"}
        Compression of chunks. Empty chunks are not stored.
    ome_version : {"0.5", "0.4"}
        OME-Zarr 0.5 is zarr v3; 0.4, for older readers, zarr v2.
    block_mib : float, optional
        Size of the blocks that tasks work on, in MiB. By default 32, less where that leaves workers idle. A block is at
        least one shard.
    resolution_nm, translation_nm : sequence of 3 float, optional
        Voxel size, and centre of the first voxel, x, y, z in nm. Cutouts and DataArrays with coordinates have their
        own; an array without any is written without units.
    overwrite : bool
        Replace a zarr store that exists. On a local disk the new one is written beside it and takes its place when all
        of it is there, so that `data` may be read from what is replaced; in a bucket the old one is removed first.
    cluster : optional
        See `imagery_dask.cluster.connect`. By default the current dask client, or threads of this process. A script
        that starts worker processes (``"local"``) needs Python's ``if __name__ == "__main__":`` guard.
    workers : int, optional
        How many workers to start, where a cluster is started.
    progress : bool or callable
        Show a progress bar (default), or call with the `RunReport` after each block.

    Returns
    -------
    RunReport
        Blocks, voxels, bytes, seconds, storage chunks missing.

    Raises
    ------
    FileExistsError
        When there is something at `url` and `overwrite` is False.
    ValueError, TypeError
        For chunks, shards, levels or data that cannot be written. Nothing has been written then.
    BlockFailedError
        When blocks failed; all others of their level have been written, and its ``report`` names the failed ones.
    AccessRefusedError
        When the source refuses access; the export ends at once.
    """
    layout = _Options(chunks, shards, checked_levels(levels), checked_codec(codec), ome_version)
    stacks = [
        stack_of(volume, layout.levels, layout.chunks, layout.shards)
        for volume in as_volumes(data, resolution_nm, translation_nm)
    ]
    exports = [stack.export for stack in stacks]
    block_bytes = block_bytes_of(block_mib)
    target = StoreTarget(url, overwrite)
    # Looked at before anything is made: a source that cannot be read leaves no store behind.
    shown_as = [None if stack.volume.labels else display(stack.volume) for stack in stacks]
    with connect(cluster, workers) as client:
        check_process(target.store, client)
        plans = plan_levels(client, exports, block_bytes)
        with target as store:
            _create(store, stacks, shown_as, layout)
            check_reachable(store, client)
            places = [_stores(store, stack, layout) for stack in stacks]
            report = write_levels(client, exports, plans, places, partial(shown, progress))
            _close(store, stacks, report)
            if target.keeps_old:  # a whole store is not replaced by one with holes
                report.raise_for_failures()
    report.notes += _unseen(exports)
    report.raise_for_failures()
    return report


class _Options:
    """What `to_zarr` was asked for, checked as far as it can be without the data."""

    def __init__(self, chunks: Any, shards: Any, levels: Levels, codec: Codec, version: ome.OmeVersion) -> None:
        self.chunks = None if chunks is None else whole_triple("chunks", chunks)
        self.shards, self.levels, self.codec, self.version = shards, levels, codec, version
        self.zarr_format = ome.zarr_format_of(version)
        if self.zarr_format == 2:
            if shards not in (None, "auto"):
                raise ValueError("OME-Zarr 0.4 (zarr v2) has no shards; pass shards=None, or ome_version='0.5'.")
            self.shards = None


# --------------------------------------------------------------------------- the store


@dataclass(frozen=True, slots=True)
class ZarrLevel:
    """One array of a store.

    Parameters
    ----------
    store, path : str
        Where the array is.
    zarr_format : int
        2 or 3.
    run : str
        Names the run: a store that is overwritten is another store, although its path is the same.
    """

    store: str
    path: str
    zarr_format: Literal[2, 3]
    run: str

    def write(self, region: Region, voxels: NDArray[Any]) -> None:
        """Write voxels x, y, z(, c) to a region of whole chunks."""
        array = self._array()
        array.write_block(self._selection(region, array.shape), voxels.T)

    def read(self, region: Region) -> NDArray[Any]:
        """Voxels of a region as x, y, z(, c)."""
        array = self._array()
        return array.read(self._selection(region, array.shape)).T

    def _array(self) -> BlockArray:
        return open_array(self.store, self.path, run=self.run, zarr_format=self.zarr_format)

    @staticmethod
    def _selection(region: Region, shape: tuple[int, ...]) -> tuple[slice, ...]:
        return (*(slice(0, length) for length in shape[:-3]), *reversed(region))


def _stores(store: str, stack: Stack, options: _Options) -> list[ZarrLevel]:
    run = uuid4().hex
    paths = [f"{stack.volume.group}{index}" for index in range(len(stack.layouts))]
    return [ZarrLevel(store, path, options.zarr_format, run) for path in paths]


def _create(store: str, stacks: list[Stack], shown_as: list[dict[str, Any] | None], options: _Options) -> None:
    """Make the groups, their metadata and the empty arrays."""
    version = options.version
    labels = [stack for stack in stacks if stack.volume.group]
    images = [pair for pair in zip(stacks, shown_as, strict=True) if not pair[0].volume.group]
    root = create_group(store, options.zarr_format)
    for stack, omero in images:
        volume, levels = stack.volume, stack.export.levels
        if volume.labels and not volume.channels:
            attributes = ome.label_attributes(version, volume.name, levels, of_image=False)
        else:
            attributes = ome.image_attributes(version, volume.name, volume.channels, levels, omero)
        _create_levels(root, stack, attributes, options)
    if labels:
        folder = root.create_group("labels")
        folder.attrs.update(ome.labels_attributes(version, [stack.volume.name for stack in labels]))
        for stack in labels:
            attributes = ome.label_attributes(version, stack.volume.name, stack.export.levels, bool(images))
            _create_levels(folder.create_group(stack.volume.name), stack, attributes, options)


def _create_levels(group: Any, stack: Stack, attributes: dict[str, Any], options: _Options) -> None:
    volume = stack.volume
    group.attrs.update(attributes | {KEY: provenance(volume)})
    ahead = tuple(int(n) for n in volume.array.shape[3:])
    for index, layout in enumerate(stack.layouts):
        group.create_array(
            str(index),
            shape=(*ahead, *reversed(layout.level.shape)),
            chunks=(*ahead, *reversed(layout.chunk)),
            shards=None if layout.shard is None else (*ahead, *reversed(layout.shard)),
            dtype=volume.array.dtype,
            compressors=compressor(options.codec, options.zarr_format),
            fill_value=0,
            chunk_key_encoding=None if options.zarr_format == 3 else {"name": "v2", "separator": "/"},
            dimension_names=None if options.zarr_format == 2 else [*"c" * len(ahead), "z", "y", "x"],
        )


def _unseen(exports: Sequence[VolumeLevels]) -> Iterator[str]:
    """Say what viewers do not show."""
    for export in exports:
        volume = export.volumes[0]
        if volume.array.dtype in (np.int64, np.bool_):
            yield (
                f"{volume.name}: Neuroglancer shows no zarr array of {volume.array.dtype}; it shows ids as uint64 "
                "(convert_to_int64=False) and masks as uint8."
            )


def _close(store: str, stacks: list[Stack], report: RunReport) -> None:
    """Say in the store what was missing."""
    for stack in stacks:
        group = zarr.open_group(open_store(store), path=stack.volume.group.rstrip("/"), mode="r+")
        made: Any = group.attrs[KEY]
        group.attrs[KEY] = made | what_was_missing(report, stack.volume.name)
