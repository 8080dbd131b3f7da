"""``imagery-dask demo``: an export from start to end, of a small volume that the command makes itself."""

from __future__ import annotations

import time
from pathlib import Path

import click

from imagery_dask.cli.run_flags import print_report

__all__ = ["demo"]


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True, help="Folder to write to."
)
@click.option("--cave", is_flag=True, help="Show a dynamic segmentation at two timestamps instead.")
def demo(out: Path, cave: bool) -> None:
    r"""Make a small EM-like volume, export it to OME-Zarr on a local cluster, and write pictures of it.

    \b
    Examples:
      imagery-dask demo
      imagery-dask demo --cave --out cave-demo
    """
    if cave:
        _cave_demo(out)
        return
    from imagery_dask.demo import run_demo

    started = time.perf_counter()
    result = run_demo(out, lambda text: click.echo(text))
    print_report(result.report, str(result.zarr))
    click.echo(f"\nDone in {time.perf_counter() - started:.0f} s. Look at:")
    click.echo(f"  {result.overlay}   one slice with its segmentation")
    click.echo(f"  {result.slices[0].parent}   {len(result.slices)} slices of imagery")
    click.echo(f"  {result.zarr}   OME-Zarr: imagery, and labels/segmentation")
    click.echo("The same export as a command, to adapt to your own volume:")
    click.echo(
        f"  imagery-dask export zarr OUT.zarr --image-source {result.volumes.image_source} "
        f"--segmentation-source {result.volumes.segmentation_source} "
        f"--bounds {' '.join(str(v) for corner in result.bounds for v in corner)}"
    )


def _cave_demo(out: Path) -> None:
    from imagery_dask.demo import run_cave_demo

    started = time.perf_counter()
    result = run_cave_demo(out, lambda text: click.echo(text))
    for store, report in zip(result.stores, result.reports, strict=True):
        print_report(report, str(store))
    click.echo(f"\nDone in {time.perf_counter() - started:.0f} s. Edits replaced {result.changed} objects. Look at:")
    click.echo(f"  {result.picture}   the same slice at {result.moments[0]} and at {result.moments[1]}")
    for store, moment in zip(result.stores, result.moments, strict=True):
        click.echo(f"  {store}   at {moment}")
