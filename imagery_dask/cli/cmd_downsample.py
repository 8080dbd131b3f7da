"""``imagery-dask downsample``: add levels to a volume."""

from __future__ import annotations

from typing import Any

import click

from imagery_dask.cli.formats import block_option, click_options, options_from
from imagery_dask.cli.run_flags import run, run_options
from imagery_dask.export.downsampling.downsample_options import DownsampleOptions

__all__ = ["downsample"]


def _command(url: str, **flags: Any) -> None:
    from imagery_dask.export.downsampling.additions import NothingLeft
    from imagery_dask.export.downsampling.downsample import additions_to

    additions = additions_to(url, options_from(DownsampleOptions, flags))
    if isinstance(additions, NothingLeft):
        click.echo(additions.note)
        return
    run(lambda: additions.export, additions.export.url, then=additions.publish, **flags)
    click.echo(f"  {url} names the new levels now")


_flagged: Any = run_options(_command)
for _option in reversed([*click_options(DownsampleOptions), block_option]):
    _flagged = _option(_flagged)

downsample = click.command(
    "downsample",
    help="""Add levels to the OME-Zarr or precomputed volume URL, in place.

    The new levels are written to the folder URL/downsampled, and what is there is only read. At the end, the metadata
    of the volume names them. Run the same command again to resume, or to see that nothing is left to do.

    Voxels of imagery are averaged; of ids, the most frequent one is taken.

    \b
    Examples:
      imagery-dask downsample em.zarr
      imagery-dask downsample em.zarr/labels/cells --levels 5
      imagery-dask downsample precomputed://s3://bucket/em --levels 4 --cluster cluster.yaml --max-requests 64""",
)(click.argument("url")(_flagged))
