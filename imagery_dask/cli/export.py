"""``imagery-dask export``: a region of a volume, written block by block on a cluster."""

from __future__ import annotations

import sys
from typing import Any

import click
import xarray as xr

from imagery_dask.cli.info import human_bytes
from imagery_dask.cli.options import ChunksType, RootIdsType
from imagery_dask.cli.sources import cave_options, source_client
from imagery_dask.errors import BlockFailedError, SourceError
from imagery_dask.export.zarr import to_zarr
from imagery_dask.lazy import source_of
from imagery_dask.run import RunReport
from imagery_dask.sources import ReadCounts

__all__ = ["export", "print_report"]

SOME_BLOCKS_FAILED = 1
INTERRUPTED = 130
FAILURES_SHOWN = 10


@click.group()
def export() -> None:
    """Write a region of imagery and segmentation."""


@export.command("zarr")
@click.argument("out")
@click.option("--image-source", metavar="URL", help="Imagery to export, a CloudVolume path.")
@click.option("--segmentation-source", metavar="URL", help="Segmentation to export, on the same voxels.")
@cave_options
@click.option("--stale-roots", type=click.Choice(["error", "warn"]), default="error", show_default=True,
              help="What --root-ids do that were no root ids at the moment shown.")  # fmt: skip
@click.option(
    "--bounds", nargs=6, type=float, required=True, metavar="X0 Y0 Z0 X1 Y1 Z1", help="Region, upper corner exclusive."
)
@click.option("--resolution", nargs=3, type=float, metavar="RX RY RZ", help="Resolution of the bounds, nm per voxel.")
@click.option("--image-mip", type=int, metavar="N", help="Level of the imagery.")
@click.option("--segmentation-mip", type=int, metavar="N", help="Level of the segmentation.")
@click.option("--root-ids", type=RootIdsType(), default="all", show_default=True, help="Objects to keep.")
@click.option("--chunks", type=ChunksType(), help="Chunks of the output.  [default: 128,128,128; 64,64,64 for ids]")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Workers to start.  [default: one per core]")
@click.option("--cluster", default="local", show_default=True, metavar="local|FILE|ADDRESS", help="Where to run.")
@click.option("--missing", type=click.Choice(["fill", "error"]), default="fill", show_default=True,
              help="What a storage chunk that does not exist becomes: 0 and counted, or a failed block.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace OUT when it exists.")
def export_zarr(
    out: str,
    image_source: str | None,
    segmentation_source: str | None,
    datastack: str | None,
    server: str | None,
    version: int | None,
    timestamp: str | None,
    stale_roots: Any,
    bounds: tuple[float, ...],
    resolution: tuple[float, ...] | None,
    image_mip: int | None,
    segmentation_mip: int | None,
    root_ids: Any,
    chunks: tuple[int, int, int] | None,
    workers: int | None,
    cluster: str,
    missing: Any,
    overwrite: bool,
) -> None:
    """Write a region as OME-Zarr to OUT: imagery at the root, segmentation under labels/segmentation.

    Both are on one grid: that of the finer of the two at the mips that are read.
    """
    client = source_client(
        datastack, server, version, timestamp, resolution=resolution or None, image_source=image_source,
        segmentation_source=segmentation_source, image_mip=image_mip, segmentation_mip=segmentation_mip,
        missing=missing, stale_roots=stale_roots,
    )  # fmt: skip
    if client.segmentation_source is None and (root_ids != "all" or segmentation_mip is not None):
        raise ValueError("--root-ids and --segmentation-mip need a segmentation; give --segmentation-source.")
    data = client.dataset((bounds[:3], bounds[3:]), root_ids=root_ids, scale_to_bounds=False)
    _check_inside(data)
    try:
        report = to_zarr(data, out, chunks=chunks, overwrite=overwrite, cluster=cluster, workers=workers)
    except BlockFailedError as error:
        print_report(error.report, out)
        sys.exit(SOME_BLOCKS_FAILED)
    except SourceError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(SOME_BLOCKS_FAILED)
    except KeyboardInterrupt:
        left = "keeps what it had" if overwrite else "is incomplete: export again with --overwrite"
        click.echo(f"Interrupted; {out} {left}.", err=True)
        sys.exit(INTERRUPTED)
    print_report(report, out)


def _check_inside(data: xr.Dataset) -> None:
    """Refuse to write zeros only: bounds beside the volume are in another resolution than was meant."""
    for name, variable in data.data_vars.items():
        source = source_of(variable.data)
        if source is None:
            continue
        volume = source.cutout.mip.grid
        if source.cutout.target.at(volume.resolution_nm).intersection(volume).size == 0:
            raise ValueError(
                f"--bounds lie outside the {name}: at {volume.resolution_nm} nm, where it has voxels {volume.start} to "
                f"{volume.stop}, they are voxels {source.cutout.target.at(volume.resolution_nm).start} to "
                f"{source.cutout.target.at(volume.resolution_nm).stop}. Check --resolution, in which bounds are given."
            )


def print_report(report: RunReport, out: str) -> None:
    """Say what was done, and everything that went wrong."""
    counts = report.counts
    click.echo(f"{out}: {report.done} of {report.blocks} blocks, {report.voxels:,} voxels")
    click.echo(
        f"  {human_bytes(report.written_bytes)} written in {report.seconds:.1f} s ({report.mb_per_s:.0f} MB/s); "
        f"{counts.chunks:,} storage chunks read ({human_bytes(counts.stored_bytes)} stored)"
    )
    click.echo(f"  source chunks missing: {counts.missing}" + (" (filled with 0):" if counts.missing else ""))
    for key in counts.missing_keys[:FAILURES_SHOWN]:
        click.echo(f"    {key}")
    if counts.missing > FAILURES_SHOWN:
        click.echo(f"    and {counts.missing - FAILURES_SHOWN} more")
    if counts.root_requests or counts.zero_roots:
        _print_roots(counts)
    if report.failures:
        click.echo(f"  {report.failures} blocks FAILED:", err=True)
        for failed in report.failed[:FAILURES_SHOWN]:
            click.echo(f"    {failed.name}: {failed.reason}", err=True)
        if report.failures > FAILURES_SHOWN:
            click.echo(f"    and {report.failures - FAILURES_SHOWN} more", err=True)


def _print_roots(counts: ReadCounts) -> None:
    click.echo(f"  supervoxels looked up: {counts.ids_sent:,} in {counts.root_requests:,} requests")
    ids = ", ".join(map(str, counts.zero_root_ids[:FAILURES_SHOWN]))
    more = f" and {counts.zero_roots - FAILURES_SHOWN} more" if counts.zero_roots > FAILURES_SHOWN else ""
    click.echo(f"  supervoxels without a root: {counts.zero_roots}" + (f" (written as 0): {ids}{more}" if ids else ""))
