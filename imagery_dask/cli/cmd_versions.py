"""``imagery-dask versions``: one export of supervoxels, and the roots of each version."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagery_dask.cli.flags.param_types import MissingType
from imagery_dask.cli.flags.region_flags import box_options
from imagery_dask.cli.flags.source_flags import datastack_client, parsed_moment, source_client
from imagery_dask.cli.formats import block_option, click_options, options_from
from imagery_dask.cli.run_flags import SOME_BLOCKS_FAILED, failing, limit_options, print_report, run_options_of
from imagery_dask.cli.version_reading import diff, materialize
from imagery_dask.humanize import human_bytes
from imagery_dask.model.moments import describe_moment
from imagery_dask.versions.store_options import StoreOptions

if TYPE_CHECKING:
    from imagery_dask.versions.create_store import NewStore, VersionsReport

__all__ = ["versions"]

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def versions() -> None:
    r"""Keep a region of a dynamic segmentation at several moments, and read each without a server.

    OUT is a folder or a place in a bucket, with the supervoxels as OME-Zarr (OUT/volume.zarr), and a table of their
    roots in Parquet for each version (OUT/roots/1078.parquet).

    \b
    Examples:
      imagery-dask versions create OUT --datastack minnie65_public --version 1078 \
          --bounds 120000 110000 20000 121024 111024 20064
      imagery-dask versions add OUT --version 1300
      imagery-dask versions list OUT
    """


def which(command: Command) -> Command:
    """Add the options that name a version to a command."""
    for option in reversed((
        click.option("--version", "version", type=int, metavar="N", help="Materialization version."),
        click.option("--timestamp", metavar="WHEN", help="Moment: ISO 8601 (UTC), seconds since 1970, or now."),
    )):  # fmt: skip
        command = option(command)
    return command


stop_layers = click.option(
    "--stop-layer", "stop_layers", type=int, multiple=True, metavar="N",
    help="Record ids of this layer too, 2 for L2 ids. May be repeated.",
)  # fmt: skip
REPAIR = (
    "To write lost or damaged voxels again: imagery-dask verify {out}/volume.zarr, then imagery-dask export --plan "
    "{out}/volume.zarr --repair. A damaged version is removed and added again."
)
dry_run = click.option("--dry-run", is_flag=True, help="Print what would be read and sent, and write nothing.")


# --------------------------------------------------------------------------------------------------------- create


def _create(out: str, image: bool, dry_run: bool, **flags: Any) -> None:
    options = options_from(StoreOptions, flags)
    store = _new_store(out, image, options, flags)
    run_options = run_options_of(**flags)
    if dry_run:
        _show_plan(store, flags["block_mib"])
        return
    with failing(out):
        _show(store.write(run_options))


def _new_store(out: str, image: bool, options: StoreOptions, flags: dict[str, Any]) -> NewStore:
    from imagery_dask.versions.create_store import new_store

    bounds = flags.pop("bounds")
    if not bounds:
        raise click.UsageError("Missing option '--bounds'.")
    source, moment = flags.pop("image_source"), {name: flags.pop(name) for name in ("version", "timestamp")}
    client = source_client(
        flags.pop("datastack"), flags.pop("server"), **moment, resolution=flags.pop("resolution") or None,
        image_source=source, segmentation_source=flags.pop("segmentation_source"), missing=flags.pop("missing"),
        imagery=image or source is not None, max_requests=flags["max_requests"] or 32,
    )  # fmt: skip
    return new_store(
        client, out, (bounds[:3], bounds[3:]), version=None, timestamp=None, image=image or source is not None,
        resolution=None, image_mip=flags.pop("image_mip"), segmentation_mip=flags.pop("segmentation_mip"),
        options=options, stop_layers=flags.pop("stop_layers"),
    )  # fmt: skip


def _show_plan(new: NewStore, block_mib: float | None) -> None:
    from imagery_dask.export.planning.estimate import plan_export

    planned = plan_export(new.export, block_mib=block_mib)
    _table([("version", f"{new.name}, {describe_moment(new.query.timestamp)}"), *planned.rows(), *new.rows()])
    for problem in planned.problems:
        click.echo(f"Problem: {problem}", err=True)


def _refused(remedy: str) -> Any:
    """Return the callback of a flag that exports have and version stores do not; its error names the remedy."""

    def refuse(context: click.Context, option: click.Parameter, given: bool) -> None:
        del context
        if given:
            raise click.UsageError(f"{option.opts[0]} is not for version stores. {remedy}")

    return refuse


_REPLACE = (
    "It would remove all versions of OUT: remove OUT yourself, or choose another name. 'versions add' adds a version."
)
_flagged: Any = stop_layers(dry_run(block_option(limit_options(_create))))
for _flag, _remedy in (("--overwrite", _REPLACE), ("--repair", REPAIR.format(out="OUT"))):
    _flagged = click.option(_flag, is_flag=True, hidden=True, expose_value=False, callback=_refused(_remedy))(_flagged)
for _option in reversed([*click_options(StoreOptions)]):
    _flagged = _option(_flagged)
_flagged = click.option("--image", is_flag=True, help="Export the imagery too; --image-source implies it.")(_flagged)

versions.command(
    "create",
    help="""Export the supervoxels of a region to OUT, and look up their roots at a first version.

    Run the same command again to resume, or to see that nothing is left to do. Without --version and --timestamp, the
    first version is the moment of the first call.

    \b
    Examples:
      imagery-dask versions create OUT --datastack minnie65_public --version 1078 \\
          --bounds 120000 110000 20000 121024 111024 20064
      imagery-dask versions create s3://bucket/OUT --segmentation-source graphene://https://host/segmentation/table/T \\
          --timestamp 2026-05-01T12:00:00Z --bounds 0 0 0 2048 2048 512 --max-requests 16
      imagery-dask versions create OUT --datastack minnie65_public --version 1078 --image --dry-run \\
          --bounds 120000 110000 20000 121024 111024 20064""",
)(click.argument("out")(box_options(_flagged)))


# ------------------------------------------------------------------------------------------------------------ add


@versions.command()
@click.argument("out")
@which
@click.option("--datastack", metavar="NAME", help="CAVE datastack of the version.  [default: that of the store]")
@click.option("--server", metavar="URL", help="CAVE server of the datastack.")
@stop_layers
@dry_run
@limit_options
def add(
    out: str, version: int | None, timestamp: str | None, datastack: str | None, server: str | None,
    stop_layers: tuple[int, ...], dry_run: bool, **flags: Any,
) -> None:  # fmt: skip
    r"""Add a version to OUT: the roots of its supervoxels at a later or earlier moment.

    Only supervoxels whose roots have changed since the nearest version of OUT are sent to the server; no voxel is read.
    Run the same command again to resume.

    \b
    Examples:
      imagery-dask versions add OUT --version 1300 --dry-run
      imagery-dask versions add OUT --version 1300
      imagery-dask versions add OUT --timestamp 2026-11-30T12:00:00Z --max-requests 8
    """
    from imagery_dask.versions.add_version import find_version, plan_version, write_version
    from imagery_dask.versions.store_places import StorePlaces

    client, moment = datastack_client(datastack, server), parsed_moment(timestamp)
    if dry_run:
        planned = plan_version(out, version=version, timestamp=moment, stop_layers=stop_layers, client=client)
        _table(planned.rows())
        return
    store, options = StorePlaces(out), run_options_of(**flags)
    with failing(out):
        _show(write_version(store, *find_version(store, version, moment, client), options, stop_layers))


# ------------------------------------------------------------------------------------------------- list, remove, verify


@versions.command("list")
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; integers above 2**53 are strings.")
def list_versions(out: str, as_json: bool) -> None:
    r"""List the versions that OUT has.

    \b
    Examples:
      imagery-dask versions list OUT
      imagery-dask versions list s3://bucket/OUT --json
    """
    from imagery_dask.serialization import to_json
    from imagery_dask.versions.recorded import recorded_in
    from imagery_dask.versions.store_places import StorePlaces

    store = StorePlaces(out)
    _ = store.facts
    found = [
        {"name": one.name, "bytes": store.roots(one.name).nbytes, **one.about.facts} for one in recorded_in(store.url)
    ]
    if as_json:
        click.echo(json.dumps(to_json(found), indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("name", "version", "moment", "rows", "roots", "bytes", "how"):
        table.add_column(head, justify="right" if head in ("version", "rows", "roots", "bytes") else "left")
    for one in found:
        sent, base = one["ids_sent"], one["made_from"]
        table.add_row(
            one["name"], str(one["version"] or ""), describe_moment(one["timestamp"]), f"{one['rows']:,}",
            f"{one['roots']:,}", human_bytes(one["bytes"]), f"{sent:,} ids" + (f", from {base}" if base else ""),
        )  # fmt: skip
    Console().print(table)


@versions.command()
@click.argument("out")
@which
def remove(out: str, version: int | None, timestamp: str | None) -> None:
    r"""Remove a version of OUT; its supervoxels and other versions stay.

    \b
    Examples:
      imagery-dask versions remove OUT --version 1078
    """
    from imagery_dask.versions.add_version import remove_version

    name = remove_version(out, version=version, timestamp=parsed_moment(timestamp))
    click.echo(f"{out}: version {name} is removed")


@versions.command()
@click.argument("out")
@click.option("--sample", type=MissingType(), default=1.0, metavar="P%", show_default="100%",
              help="Percentage of the blocks whose voxels are counted again.")  # fmt: skip
@click.option("--live", type=click.IntRange(min=0), default=0, metavar="N",
              help="Look up the roots of N supervoxels of each version again on the server.")  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Seed of the random choice.")
def verify(out: str, sample: float, live: int, seed: int | None) -> None:
    r"""Read OUT back: the hash of each table, and supervoxels against voxels.

    The exit code is 1 if anything is not as it was written.

    \b
    Examples:
      imagery-dask versions verify OUT
      imagery-dask versions verify OUT --sample 1% --live 1000
    """
    from imagery_dask.versions.verify_store import verify_versions

    if not isinstance(sample, float):
        raise click.UsageError(f"--sample must be a percentage of the blocks, such as 1%; got {sample}.")
    check = verify_versions(out, sample=sample, live=live, seed=seed)
    _table(check.rows())
    click.echo("all as written" if check.ok else f"{len(check.problems)} problems", err=not check.ok)
    if not check.ok:
        click.echo(f"  {REPAIR.format(out=out)}", err=True)
    sys.exit(0 if check.ok else SOME_BLOCKS_FAILED)


# ---------------------------------------------------------------------------------------------------------- printing


versions.add_command(diff)
versions.add_command(materialize)


def _show(report: VersionsReport) -> None:
    for name, one in report.stages.items():
        if one.blocks:
            print_report(one, f"{report.url} {name}")
    for note in report.notes:
        click.echo(f"  note: {note}")
    click.echo(f"{report.url} has version {report.version}")


def _table(rows: Iterable[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, text)
    Console().print(table)
