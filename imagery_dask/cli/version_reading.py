"""``imagery-dask versions diff`` and ``versions materialize``: what a version store gives without a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from imagery_dask.cli.formats import block_option, click_options, options_from
from imagery_dask.cli.run_flags import run, run_options
from imagery_dask.versions.copy_options import CopyOptions

if TYPE_CHECKING:
    from imagery_dask.export.zarr.to_zarr import ZarrExport

__all__ = ["diff", "materialize"]

SHOWN = 10


@click.command()
@click.argument("out")
@click.argument("a")
@click.argument("b")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="PNG to write: a plane before and after, and what has changed.",
)
@click.option("--z", type=int, metavar="Z", help="Plane of the picture, in voxels of level 0.  [default: a busy one]")
@click.option(
    "--csv",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Table to write: which roots became which, with their supervoxels and voxels.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; integers above 2**53 are strings.")
def diff(out: str, a: str, b: str, picture: str | None, z: int | None, csv: str | None, as_json: bool) -> None:
    r"""Compare the versions A and B of the version store OUT: materialization versions, or recorded moments.

    A voxel differs if its root id does. An edit gives every object that it touches a new root id, so that all voxels
    of the object differ.

    \b
    Examples:
      imagery-dask versions diff OUT 1078 1300
      imagery-dask versions diff OUT 1078 1300 --picture changed.png --csv changed.csv
    """  # fmt: skip
    from imagery_dask.serialization import to_json
    from imagery_dask.versions.opened_versions import open_versions

    difference = open_versions(out).diff(a, b)
    if csv is not None:
        difference.table.to_csv(csv, index=False)
    if picture is not None:
        difference.picture(z).save(picture, format="PNG")
    if as_json:
        rows = [dict(zip(difference.table.columns, map(int, row), strict=True))
                for row in difference.table.itertuples(index=False)]  # fmt: skip
        chunks = [int(chunk) for chunk in difference.chunks.index]
        click.echo(json.dumps(to_json({
            "from": difference.before.name, "to": difference.after.name, "voxels": difference.voxels,
            "supervoxels": difference.supervoxels, "roots": rows, "chunks": chunks,
        })))  # fmt: skip
        return
    click.echo(repr(difference))
    largest = difference.table.sort_values("voxels", ascending=False).head(SHOWN)
    if len(largest):
        click.echo(largest.to_string(index=False))
    if len(difference.table) > SHOWN:
        click.echo(f"and {len(difference.table) - SHOWN:,} more; --csv FILE writes all of them")


def _materialize(out: str, copy: str, version: int | None, timestamp: str | None, image: bool, **flags: Any) -> None:
    from imagery_dask.versions.materialize import prepare_copy
    from imagery_dask.versions.opened_versions import open_versions
    from imagery_dask.versions.recorded import find

    store, options = open_versions(out), options_from(CopyOptions, flags)
    recorded = find(store.url, version, timestamp)

    def prepared() -> ZarrExport:
        export, notes = prepare_copy(store, recorded, copy, options, image=image, overwrite=flags["overwrite"])
        for note in notes:
            click.echo(f"{copy}: {note}")
        return export

    run(prepared, copy, **flags)


_flagged: Any = run_options(_materialize)
for _option in reversed([*click_options(CopyOptions), block_option]):
    _flagged = _option(_flagged)
for _option in reversed((
    click.option("--version", type=int, metavar="N", help="Recorded materialization version."),
    click.option("--timestamp", metavar="WHEN", help="Recorded moment, in place of a version: ISO 8601 (UTC)."),
    click.option("--image", is_flag=True, help="Copy the imagery too, if the store has it."),
)):  # fmt: skip
    _flagged = _option(_flagged)

materialize = click.command(
    "materialize",
    help="""Write a version of the version store OUT as an ordinary OME-Zarr COPY, with its pyramid.

    Run it again with another version to update COPY: only blocks in which an id changes, and what is made of them in
    coarser levels, are written again. Readers see each file as it was or as it becomes. Run the same command again to
    resume.

    \b
    Examples:
      imagery-dask versions materialize OUT --version 1078 COPY.zarr
      imagery-dask versions materialize OUT --version 1300 COPY.zarr --workers 8""",
)(click.argument("out")(click.argument("copy")(_flagged)))
