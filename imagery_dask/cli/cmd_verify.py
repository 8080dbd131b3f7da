"""``imagery-dask verify``: check an export, or a volume that another program wrote, for damage."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from imagery_dask.cli.flags.param_types import MissingType
from imagery_dask.cli.run_flags import cluster_options, ended_as_interrupted, named_cluster
from imagery_dask.errors import AccessRefusedError, SourceError, SourceNotFoundError
from imagery_dask.humanize import human_bytes
from imagery_dask.serialization import to_json
from imagery_dask.urls import location_of, redacted

if TYPE_CHECKING:
    from imagery_dask.checking.volume_report import CheckedLevel, ComparedLevels, VolumeReport
    from imagery_dask.export.verify import VerifyReport

__all__ = ["verify"]

NOT_AS_WRITTEN = 1
SHOWN = 20


@click.command()
@click.argument("out")
@click.option("--sample", type=MissingType(), default=None, metavar="P%",
              help="Percentage of the blocks to check, chosen at random.  [default: 1%; all of a volume]")  # fmt: skip
@click.option("--all", "look_at_all", is_flag=True, help="Check all blocks.")
@click.option("--source/--no-source", default=True, show_default=True,
              help="Also compute 1% of the checked blocks, at least four, again from the source.")  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Seed of the random choice, to check the same blocks again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; integers above 2**53 are strings.")
@cluster_options
def verify(
    out: str,
    sample: Any,
    look_at_all: bool,
    source: bool,
    seed: int | None,
    as_json: bool,
    cluster: str | None,
    workers: int | Literal["auto"] | None,
    max_workers: int | None,
    wait: float,
    retire_before: float | None,
) -> None:
    r"""Read the export OUT back and compare it with its receipts; or check a volume OUT of another program.

    For an export, lists the blocks whose bytes have changed or whose chunks or files are missing. The exit code is 1 if
    there are such blocks, or if blocks are not written yet.

    For a precomputed volume, zarr or N5 without records of an export, reads every chunk of every level, and lists those
    that are damaged or missing. Each level is compared with the finer one on samples: mean, mode, median, striding,
    nearest. The exit code is 1 if chunks are damaged or missing, or if no method fits for a level.

    \b
    Examples:
      imagery-dask verify OUT.zarr
      imagery-dask verify OUT.zarr --all --no-source --workers 8
      imagery-dask verify s3://bucket/OUT --sample 5% --cluster cluster.yaml
      imagery-dask verify https://host/foreign.zarr --json
    """
    from imagery_dask.export.registry import has_records

    if look_at_all and sample is not None:
        raise click.UsageError("--all and --sample exclude each other.")
    if isinstance(sample, int):
        raise click.UsageError(f"--sample must be a percentage of the blocks, such as 1%; got {sample}.")
    options: dict[str, Any] = {
        "seed": seed, "cluster": named_cluster(cluster, workers), "workers": workers, "max_workers": max_workers,
        "wait_s": wait, "retire_before_s": retire_before,
    }  # fmt: skip
    location, why = location_of(out), "there are no records of an export beside it"
    try:
        is_export = has_records(location)
    except AccessRefusedError:  # who may not list a bucket can still read a volume in it
        is_export, why = False, "records of an export beside it cannot be looked for, since access is refused"
    if is_export:
        from imagery_dask.export.verify import verify_export

        fraction = None if look_at_all else 0.01 if sample is None else sample
        with ended_as_interrupted():
            of_export = verify_export(location, sample=fraction, source=source, **options)
        if as_json:
            click.echo(json.dumps(to_json(of_export) | {"ok": of_export.ok}))
        else:
            _show(of_export, out)
        sys.exit(0 if of_export.ok else NOT_AS_WRITTEN)
    report = _verify_volume(out, why, sample, as_json, options)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _show_volume(report)
    sys.exit(0 if report.ok else NOT_AS_WRITTEN)


def _verify_volume(out: str, why: str, sample: float | None, as_json: bool, options: dict[str, Any]) -> VolumeReport:
    """Check a volume, and say first why it is not checked as an export."""
    from imagery_dask.checking.check_volume import verify_volume
    from imagery_dask.sources import volumes_at

    try:
        volumes_at(out)
    except (SourceNotFoundError, ValueError, TypeError) as error:
        refused = "" if isinstance(error, SourceNotFoundError) else "and it is no volume that can be checked: "
        raise SourceError(f"There are no records of an export beside {redacted(out)}, {refused}{error}") from error
    click.echo(f"{redacted(out)}: {why}; it is checked as a volume of another program", err=as_json)
    with ended_as_interrupted():
        return verify_volume(out, sample=sample, **options)


def _show_volume(report: VolumeReport) -> None:
    click.echo(f"  {human_bytes(report.read_bytes)} uncompressed read in {report.seconds:.1f} s")
    for level in report.levels:
        _show_level(level)
    for compared in report.compared:
        _show_compared(compared)
    damaged, missing = (sum(getattr(level, name) for level in report.levels) for name in ("damaged", "missing"))
    named = [f"{chunk.key}: {chunk.reason}" for chunk in report.damaged]
    _show_named(damaged, "chunks DAMAGED", named)
    _show_named(missing, "chunks MISSING", report.missing_keys)
    _show_named(report.unread_boxes, "boxes could NOT BE READ: the store did not answer", report.unread)
    if report.ok:
        click.echo("  no damage found")


def _show_level(level: CheckedLevel) -> None:
    if level.skipped:
        click.echo(f"  {level.name}: not read: {level.skipped}")
        return
    of_all = f"{level.read:,} of {level.chunks:,} chunks read, {human_bytes(level.stored_bytes)} stored"
    absent = f", {level.not_stored:,} not stored, which the format allows" if level.not_stored else ""
    click.echo(f"  {level.name} ({level.key or 'the array'}): {of_all}{absent}")
    unsaid = "of these refused or absent: the server answers HTTP 403 in both cases"
    found = [(level.damaged, "DAMAGED"), (level.missing, "MISSING"), (level.refused_or_absent, unsaid)]
    if any(number for number, _ in found):
        click.echo("    " + ", ".join(f"{number:,} {what}" for number, what in found if number))


def _show_compared(compared: ComparedLevels) -> None:
    of = f"  {compared.level} from {compared.finer}"
    if compared.skipped:
        click.echo(f"{of}: not compared: {compared.skipped}")
        return
    fitting = compared.fitting
    method = fitting[0] if fitting else compared.nearest
    tally = compared.methods[method]
    average = tally.distance / (tally.voxels + tally.cut)  # of grey values; 0 of ids
    by = f", on average by {average:.2g}" if average else ""
    share, voxels = compared.share(method), f"{tally.voxels or tally.cut:,} voxels"
    differ = f"{share:.2%} of {voxels} differ{by} in {compared.samples:,} samples"
    if not fitting:
        click.echo(f"{of}: NO METHOD fits; nearest is {method}: {differ}", err=True)
        return
    also = f"; {', '.join(fitting[1:])} fits too" if len(fitting) > 1 else ""
    click.echo(f"{of}: {method} fits: {differ}{also}")
    if tally.cut_differing and tally.voxels:
        click.echo(
            f"    but {tally.cut_differing:,} of {tally.cut:,} at the edges of the volume, where windows are cut"
        )


def _show_named(number: int, what: str, names: list[str]) -> None:
    """List the first of some chunks or boxes, if there are any."""
    if not number:
        return
    click.echo(f"  {number:,} {what}", err=True)
    for name in names[:SHOWN]:
        click.echo(f"    {name}", err=True)
    if number > len(names[:SHOWN]):
        click.echo(f"    and {number - len(names[:SHOWN])} more", err=True)


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
