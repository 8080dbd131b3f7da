"""``imagery-dask verify``: check an export for damage."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from imagery_dask.cli.param_types import MissingType
from imagery_dask.cli.run_flags import cluster_options, ended_as_interrupted, named_cluster

if TYPE_CHECKING:
    from imagery_dask.export.verify import VerifyReport

__all__ = ["verify"]

NOT_AS_WRITTEN = 1
SHOWN = 20


@click.command()
@click.argument("out")
@click.option("--sample", type=MissingType(), default=None, metavar="P%",
              help="Percentage of the blocks to check, chosen at random.  [default: 1%]")  # fmt: skip
@click.option("--all", "look_at_all", is_flag=True, help="Check all blocks.")
@click.option("--source/--no-source", default=True, show_default=True,
              help="Also compute 1% of the checked blocks, at least four, again from the source.")  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Seed of the random choice, to check the same blocks again.")
@cluster_options
def verify(
    out: str,
    sample: Any,
    look_at_all: bool,
    source: bool,
    seed: int | None,
    cluster: str | None,
    workers: int | Literal["auto"] | None,
    max_workers: int | None,
    wait: float,
    retire_before: float | None,
) -> None:
    r"""Read the export OUT back and compare it with its receipts.

    Lists the blocks whose bytes have changed or whose chunks or files are missing. The exit code is 1 if there are
    such blocks, or if blocks are not written yet.

    \b
    Examples:
      imagery-dask verify OUT.zarr
      imagery-dask verify OUT.zarr --all --no-source --workers 8
      imagery-dask verify s3://bucket/OUT --sample 5% --cluster cluster.yaml
    """
    from imagery_dask.export.verify import verify_export

    if look_at_all and sample is not None:
        raise click.UsageError("--all and --sample exclude each other.")
    if isinstance(sample, int):
        raise click.UsageError(f"--sample must be a percentage of the blocks, such as 1%; got {sample}.")
    fraction = None if look_at_all else 0.01 if sample is None else sample
    with ended_as_interrupted():
        report = verify_export(
            out, sample=fraction, source=source, seed=seed, cluster=named_cluster(cluster, workers), workers=workers,
            max_workers=max_workers, wait_s=wait, retire_before_s=retire_before,
        )  # fmt: skip
    _show(report, out)
    sys.exit(0 if report.ok else NOT_AS_WRITTEN)


def _show(report: VerifyReport, out: str) -> None:
    click.echo(
        f"{out}: {report.checked:,} of {report.blocks:,} blocks read back in {report.seconds:.1f} s, "
        f"{report.from_source:,} of them computed again from the source"
    )
    if report.unwritten:
        click.echo(f"  {report.unwritten:,} blocks are not written yet: run the same export again to resume", err=True)
    damaged, changed, unread = len(report.damaged), len(report.source_changed), len(report.unread)
    if report.metadata:
        click.echo(f"  {len(report.metadata):,} metadata files of the store DAMAGED", err=True)
    elif not (damaged or changed or unread):
        click.echo("  the others are as written" if report.unwritten else "  all as written")
        return
    if damaged:
        click.echo(f"  {damaged:,} blocks DAMAGED", err=True)
    if changed:
        click.echo(f"  {changed:,} blocks for which the SOURCE CHANGED", err=True)
    if unread:
        click.echo(f"  {unread:,} blocks could NOT BE READ: the store or the source did not answer", err=True)
    for block in report.named[:SHOWN]:
        click.echo(f"    {block.name}: {block.reason}", err=True)
    if len(report.named) > SHOWN:
        click.echo(f"    and {len(report.named) - SHOWN} more", err=True)
    if report.metadata:
        click.echo(
            f"  To write these files again: imagery-dask export --plan {out} --repair; then verify again, since blocks "
            "cannot be read without them", err=True,
        )  # fmt: skip
    elif damaged or changed:
        click.echo(f"  To write these blocks again: imagery-dask export --plan {out} --repair", err=True)
