"""``imagery-dask export``: a region of a volume, written block by block on a cluster."""

from __future__ import annotations

from typing import Any

import click

from imagery_dask.cli.info import human_bytes
from imagery_dask.cli.options import ChunksType
from imagery_dask.cli.region import region_dataset, region_options, run_export
from imagery_dask.export.zarr import DEFAULT_CHUNKS, to_zarr
from imagery_dask.run import RunReport
from imagery_dask.sources import ReadCounts

__all__ = ["export", "print_report"]

FAILURES_SHOWN = 10


@click.group()
def export() -> None:
    """Write a region of imagery and segmentation."""


@export.command("zarr")
@click.argument("out")
@region_options
@click.option(
    "--chunks", type=ChunksType(), default=DEFAULT_CHUNKS, help="Chunks of the output.  [default: 128,128,128]"
)
@click.option("--overwrite", is_flag=True, help="Replace OUT when it exists.")
def export_zarr(
    out: str,
    chunks: tuple[int, int, int],
    overwrite: bool,
    cluster: str,
    workers: int | None,
    **region: Any,
) -> None:
    """Write a region as OME-Zarr to OUT: imagery at the root, segmentation under labels/segmentation.

    Both are on one grid: that of the finer of the two at the mips that are read.
    """
    data = region_dataset(**region)
    left = "keeps what it had" if overwrite else "is incomplete: export again with --overwrite"
    run_export(
        lambda: to_zarr(data, out, chunks=chunks, overwrite=overwrite, cluster=cluster, workers=workers),
        out, left, print_report,
    )  # fmt: skip


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
