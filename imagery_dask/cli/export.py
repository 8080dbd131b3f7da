"""``imagery-dask export``: a region of a volume, written block by block on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from imagery_dask.cli.info import human_bytes
from imagery_dask.cli.options import ShapeType
from imagery_dask.cli.region import STORE_OPTIONS, region_dataset, region_options, run_export, store_options
from imagery_dask.export.codecs import Codec
from imagery_dask.export.ome import OmeVersion
from imagery_dask.export.precomputed import IMAGE_ENCODINGS, LABEL_ENCODINGS, to_precomputed
from imagery_dask.export.zarr import to_zarr
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
@store_options
@click.option(
    "--shards",
    type=ShapeType("auto", "none"),
    default="auto",
    show_default=True,
    help="Chunks that make one file: a shape in voxels, auto (32 MiB where there are many chunks), none.",
)
@click.option(
    "--codec",
    type=click.Choice(get_args(Codec)),
    default="blosc-zstd",
    show_default=True,
    help="Compression of chunks.",
)
@click.option("--ome-version", type=click.Choice(get_args(OmeVersion)), default="0.5", show_default=True,
              help="0.5 is zarr v3; 0.4, for older readers, zarr v2.")  # fmt: skip
def export_zarr(
    out: str,
    shards: Any,
    codec: Any,
    ome_version: Any,
    **options: Any,
) -> None:
    """Write a region as OME-Zarr to OUT: imagery at the root, segmentation under labels/segmentation.

    Both are on one grid: that of the finer of the two at the mips that are read.
    """
    _export(to_zarr, out, options, shards=shards, codec=codec, ome_version=ome_version)


@export.command("precomputed")
@click.argument("out")
@region_options
@store_options
@click.option(
    "--image-encoding",
    type=click.Choice(IMAGE_ENCODINGS),
    default="raw",
    show_default=True,
    help="Encoding of imagery.",
)
@click.option(
    "--segmentation-encoding",
    type=click.Choice(LABEL_ENCODINGS),
    help="Encoding of segmentation.  [default: compressed_segmentation; raw for ids of 8 and 16 bits]",
)
@click.option("--quality", type=click.IntRange(0, 100), metavar="N", help="Of jpeg and jxl; compression of png.")
@click.option("--compress", type=click.Choice(["auto", "gzip", "br", "none"]), default="auto", show_default=True,
              help="Further compression of chunks; auto is gzip in buckets, none on a disk.")  # fmt: skip
def export_precomputed(
    out: str,
    image_encoding: str | None,
    segmentation_encoding: str | None,
    quality: int | None,
    compress: Any,
    **options: Any,
) -> None:
    """Write a region as Neuroglancer precomputed volumes to OUT; of two layers, to OUT/image and OUT/segmentation."""
    given = {"image": image_encoding, "segmentation": segmentation_encoding}
    encoding = {name: value for name, value in given.items() if value is not None}
    compress = None if compress == "none" else compress
    _export(to_precomputed, out, options, encoding=encoding, quality=quality, compress=compress)


def _export(write: Callable[..., RunReport], out: str, options: dict[str, Any], **of_format: Any) -> None:
    """Write the region that the options name."""
    of_store = {name: options.pop(name) for name in (*STORE_OPTIONS, "cluster", "workers", "report")}
    data = region_dataset(**options)
    left = "keeps what it had" if of_store["overwrite"] else "is incomplete: export again with --overwrite"
    run_export(lambda: write(data, out, **of_store, **of_format), out, left, print_report)


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
    for note in report.notes:
        click.echo(f"  note: {note}")
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
