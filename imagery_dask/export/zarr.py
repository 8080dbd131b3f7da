"""OME-Zarr: any dask array or xarray object, written block by block.

Arrays are stored with axes (c,) z, y, x. A block of a cutout is Fortran-ordered x, y, z, so that its transpose is what
zarr wants, for free.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import uuid4

import numpy as np
import zarr
from distributed import Client, get_worker
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from imagery_dask.blocks import SPLIT_ABOVE
from imagery_dask.cluster import connect
from imagery_dask.export import ome
from imagery_dask.export.inputs import Volume, as_volumes
from imagery_dask.export.progress import progress_bar
from imagery_dask.export.target import StoreTarget
from imagery_dask.grid import XYZ
from imagery_dask.lazy import described
from imagery_dask.plan import BlockPlan, Region
from imagery_dask.run import BlockTask, RunReport, run_blocks

__all__ = ["ZarrBlock", "to_zarr"]

DEFAULT_CHUNKS = (128, 128, 128)
# Three blocks must fit beside each other in a worker with 1 GB and other things to do.
BLOCK_BYTES = 32 * 2**20
# A small export is cut finer than memory asks for, so that no thread waits for the last block of another.
BLOCKS_PER_THREAD = 4
SMALL_BLOCK_BYTES = 4 * 2**20
PIPELINE = "zarrs.ZarrsCodecPipeline"


def to_zarr(
    data: Any,
    url: str | os.PathLike[str],
    *,
    chunks: Sequence[int] = DEFAULT_CHUNKS,
    resolution_nm: Sequence[float] | None = None,
    translation_nm: Sequence[float] | None = None,
    overwrite: bool = False,
    cluster: Any = None,
    workers: int | None = None,
    progress: bool | Callable[[RunReport], None] = True,
) -> RunReport:
    """Write an array, or imagery with its segmentation, as OME-Zarr 0.5.

    Reading, computing and writing a block is one task; a bounded window of them is on the cluster at a time.

    Parameters
    ----------
    data : dask.array.Array, numpy.ndarray, xarray.DataArray or xarray.Dataset
        Axes x, y, z (two or three of them; DataArrays in any order) and optionally channels. A dataset has the
        variables ``image`` and ``segmentation``, either or both.
    url : str or path
        Where to write: a local folder or what fsspec opens. An array goes to the root of the store; a dataset's image
        to the root and its segmentation under ``labels/segmentation``.
    chunks : sequence of 3 int
        Chunk shape x, y, z of the output.
    resolution_nm, translation_nm : sequence of 3 float, optional
        Voxel size, and centre of the first voxel, x, y, z in nm. Cutouts and DataArrays with coordinates have their
        own; an array without any is written without units.
    overwrite : bool
        Replace a zarr store that exists. On a local disk the new one is written beside it and takes its place when it
        is there, so that `data` may be read from what is replaced; in a bucket the old one is removed first.
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
        For chunks or data that cannot be written. Nothing has been written then.
    BlockFailedError
        When blocks failed; all others have been written, and its ``report`` names the failed ones.
    AccessRefusedError
        When the source refuses access; the export ends at once.
    """
    volumes = as_volumes(data, resolution_nm, translation_nm)
    shape = _chunk_shape(chunks)
    target = StoreTarget(url, overwrite)
    with connect(cluster, workers) as client, target as store:
        _create(store, volumes, shape)
        wanted, most = _block_bytes(client, volumes), SPLIT_ABOVE * BLOCK_BYTES
        plans = [volume.plan(shape, wanted, most) for volume in volumes]
        total = sum(len(plan) for plan in plans)
        with _shown(progress, total) as on_progress:
            report = run_blocks(client, _tasks(store, volumes, plans), total, on_progress)
    report.voxels = sum(math.prod(volume.array.shape) for volume in volumes)
    report.raise_for_failures()
    return report


@dataclass(frozen=True, slots=True)
class ZarrBlock:
    """Task that computes one block and writes it.

    Parameters
    ----------
    name : str
        Shown on the dashboard.
    pieces : tuple of (region, callable)
        Which voxels, x, y, z, and what gives them as x, y, z(, c); one after another.
    store, path : str
        Where the array is.
    run : str
        Names the run: a store that is overwritten is another store, although its path is the same.
    """

    name: str
    pieces: tuple[tuple[Region, Callable[[], NDArray[Any]]], ...]
    store: str
    path: str
    run: str

    def __call__(self) -> int:
        """Compute and write; each piece covers whole chunks, so that no other task touches them."""
        written = 0
        for region, read in self.pieces:
            block = read()
            selection = tuple(reversed(region))
            if block.ndim == 4:
                selection = (slice(None), *selection)
            _open(self.store, self.path, self.run, _threads(), os.getpid())[selection] = block.T
            written += int(block.nbytes)
        return written


def _tasks(store: str, volumes: list[Volume], plans: list[BlockPlan]) -> Iterator[BlockTask]:
    run = uuid4().hex
    for volume, plan in zip(volumes, plans, strict=True):
        for (x, y, z), region in plan:
            name = f"read+write {volume.name} z{z} y{y} x{x}"
            pieces = tuple((piece, volume.reader(piece)) for piece in plan.pieces(region))
            yield ZarrBlock(name, pieces, store, f"{volume.group}0", run)


@lru_cache(maxsize=64)
def _open(store: str, path: str, run: str, threads: int, process: int) -> Any:
    del run, process  # part of the key: neither an overwritten store nor a parent's connections are taken up again
    with zarr.config.set({"codec_pipeline.path": PIPELINE, "threading.max_workers": threads}):
        return zarr.open_array(store, path=path, mode="r+", zarr_format=3)


def _threads() -> int:
    """Threads for encoding: those of the dask worker, since its own and the codecs' would multiply."""
    try:
        return int(get_worker().state.nthreads)
    except ValueError:
        return 1


def _create(store: str, volumes: list[Volume], chunks: XYZ) -> None:
    """Make the groups, their metadata and the empty arrays."""
    labels = [volume for volume in volumes if volume.group]
    images = [volume for volume in volumes if not volume.group]
    root = zarr.create_group(store, zarr_format=3)
    for volume in images:
        attributes = ome.image_attributes(volume.name, volume.channels, volume.resolution_nm, volume.translation_nm)
        _create_array(root, volume, chunks, attributes)
    if labels:
        folder = root.create_group("labels")
        folder.attrs.update(ome.labels_attributes([volume.name for volume in labels]))
        for volume in labels:
            attributes = ome.label_attributes(volume.name, volume.resolution_nm, volume.translation_nm, bool(images))
            _create_array(folder.create_group(volume.name), volume, chunks, attributes)


def _create_array(group: Any, volume: Volume, chunks: XYZ, attributes: dict[str, Any]) -> None:
    made_of = {} if volume.source is None else {"imagery_dask": described(volume.source.cutout)}
    group.attrs.update(attributes | made_of)
    shape, axes = list(reversed(volume.shape)), ["z", "y", "x"]
    chunk = [min(size, length) for size, length in zip(reversed(chunks), shape, strict=True)]
    if volume.channels:
        shape, chunk, axes = [volume.array.shape[3], *shape], [volume.array.shape[3], *chunk], ["c", *axes]
    group.create_array(
        "0",
        shape=tuple(shape),
        chunks=tuple(chunk),
        dtype=volume.array.dtype,
        # Level 1 costs a third of zarr's default and EM hardly compresses better with more.
        compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
        fill_value=0,
        dimension_names=axes,
    )


def _block_bytes(client: Client, volumes: list[Volume]) -> int:
    """Size of blocks: as large as memory allows, small enough that every thread gets some."""
    threads = int(sum(client.nthreads().values()))
    total = sum(int(volume.array.nbytes) for volume in volumes)
    share = total // (BLOCKS_PER_THREAD * max(1, threads))
    return min(BLOCK_BYTES, max(SMALL_BLOCK_BYTES, share))


def _chunk_shape(chunks: Sequence[int]) -> XYZ:
    values = np.asarray(chunks)
    if values.shape != (3,) or not np.issubdtype(values.dtype, np.integer) or not (values > 0).all():
        raise ValueError(f"chunks must be three whole numbers above 0 (x, y, z); got {chunks!r}.")
    x, y, z = (int(value) for value in values)
    return (x, y, z)


def _shown(
    progress: bool | Callable[[RunReport], None], total: int
) -> AbstractContextManager[Callable[[RunReport], None] | None]:
    if callable(progress):
        return nullcontext(progress)
    return progress_bar(total) if progress else nullcontext(None)
