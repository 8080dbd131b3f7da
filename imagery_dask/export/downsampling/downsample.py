"""Add levels to a volume that somebody else made, in place.

Buckets cannot rename, so nothing is moved: the new levels are an export of their own, in a folder of the volume, whose
source is the coarsest level that is there. Names of levels may have folders in both formats. At the end, the metadata
of the volume is replaced at once by its own content with the new names::

    volume/info             <- the last file that is written
    volume/8_8_40/          theirs, only read
    volume/downsampled/     the export, with an info of its own
    volume/downsampled.receipts/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.writer_arguments import describe_run
from imagery_dask.export.downsampling.additions import Additions, NothingLeft, writable_location
from imagery_dask.export.downsampling.downsample_options import DownsampleOptions
from imagery_dask.export.execution.execute import execute
from imagery_dask.model.labels import Kind
from imagery_dask.run import RunReport
from imagery_dask.sources import normalize_path, open_volume
from imagery_dask.sources.volumes.addresses import is_zarr

__all__ = ["additions_to", "downsample", "write"]


@describe_run
def downsample(
    url: str | os.PathLike[str],
    *,
    levels: int | Literal["auto"] = "auto",
    kind: Kind | None = None,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | Literal["auto"] | None = "auto",
    codec: str | None = None,
    encoding: str | None = None,
    compress: Literal["auto", "gzip", "br"] | None = "auto",
    quality: int | None = None,
    sharding: Mapping[str, Any] | Literal["auto"] | None = "auto",
    block_mib: float | None = None,
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
    """Add levels to an OME-Zarr or precomputed volume, in place.

    The new levels are written to the folder ``downsampled`` of the volume, and everything that is there is only read.
    At the end, the metadata of the volume is replaced by its own content with the new levels. The same call resumes
    after an interruption, and does nothing when all levels are there.

    Parameters
    ----------
    url : str or path
        The volume, in a folder or a bucket: OME-Zarr 0.4 or 0.5 (an image, or one of its labels), or precomputed.
    levels : int or "auto"
        Number of levels in the end, existing ones included. ``"auto"`` adds levels until no axis is longer than 512
        voxels. Each halves the axes whose voxels are finest.
    kind : {"image", "segmentation"}, optional
        What voxels are: intensities, of which coarser voxels are the mean, or ids, of which they are the most frequent
        one. By default as the volume says; integers of 32 bits and more are ids.
    chunks : sequence of 3 int, optional
        Chunk shape x, y, z. By default that of the coarsest level that is there.
    shards : sequence of 3 int, "auto" or None
        Of zarr v3, as for `to_zarr`. ``"auto"`` makes shards if the coarsest level has them.
    codec : str, optional
        Of zarr, as for `to_zarr`. By default that of the coarsest level, if it is one of these.
    encoding : str, optional
        Of precomputed volumes, as for `to_precomputed`. By default that of the coarsest level.
    compress : {"auto", "gzip", "br"} or None
        Of precomputed volumes, as for `to_precomputed`.
    quality : int, optional
        Of precomputed volumes, as for `to_precomputed`.
    sharding : "auto", None or mapping
        Of precomputed volumes, as for `to_precomputed`.
    {parameters}

    Returns
    -------
    RunReport
        Of the new levels; of no blocks, with a note, if nothing is left to do.

    Raises
    ------
    SourceError
        The volume can only be read, as over HTTP; or its metadata has changed meanwhile.
    ValueError, TypeError
        Levels cannot be added to such a volume. Nothing has been written.
    FileExistsError
        An earlier call with other arguments was interrupted: repeat them, or pass `overwrite`.
    BlockFailedError, AccessRefusedError
        As for `to_zarr`.
    """
    options = DownsampleOptions(
        levels=levels, kind=kind, chunks=chunks, shards=shards, codec=codec, encoding=encoding, compress=compress,
        quality=quality, sharding=sharding,
    )  # fmt: skip
    return write(additions_to(url, options), RunOptions(
        cluster=cluster, workers=workers, max_workers=max_workers, progress=progress,
        overwrite=overwrite, repair=repair, redo_missing=redo_missing,
        block_mib=block_mib, max_missing=max_missing,
        max_requests=max_requests, report=report,
    ))  # fmt: skip


def additions_to(url: str | os.PathLike[str], options: DownsampleOptions) -> Additions | NothingLeft:
    """Return what is left to add to a volume; only its metadata is read.

    Raises
    ------
    SourceError, ValueError, TypeError
        Levels cannot be added to it.
    """
    path = normalize_path(os.fspath(url))
    writable_location(path)  # before anything is read
    path = open_volume(path, fresh=True).path  # with its format, where that was found out
    if is_zarr(path):
        from imagery_dask.export.downsampling.zarr_additions import zarr_additions

        return zarr_additions(path, options)
    from imagery_dask.export.downsampling.precomputed_additions import precomputed_additions

    return precomputed_additions(path, options)


def write(additions: Additions | NothingLeft, options: RunOptions) -> RunReport:
    """Write levels, and let the metadata of their volume name them."""
    if isinstance(additions, NothingLeft):
        return RunReport(0, notes=[additions.note])
    report = execute(additions.export, options)
    additions.publish()
    open_volume(additions.source, fresh=True)  # for this process, which knows it without them
    return report
