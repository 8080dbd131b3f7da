"""``imagery-dask export png``: slices of a region as picture files."""

from __future__ import annotations

from typing import Any

import click

from imagery_dask.cli.export import print_report
from imagery_dask.cli.options import ColorsType, WindowType
from imagery_dask.cli.region import region_dataset, region_options, run_export
from imagery_dask.export.slices import MAX_FILES, WHATS, to_png

__all__ = ["export_png"]

PICTURE_OPTIONS = (
    "slice_axis", "names", "format", "window", "tile", "colors", "alpha", "outline", "merge_outline", "width",
    "max_files", "overwrite", "report",
)  # fmt: skip


@click.command("png")
@click.argument("prefix")
@region_options
@click.option(
    "--what",
    type=click.Choice(WHATS),
    default="imagery",
    show_default=True,
    help="Grey values; a picture of each object; ids as values, with a table; objects over imagery.",
)
@click.option(
    "--slice-axis",
    type=click.Choice(["x", "y", "z"]),
    default="z",
    show_default=True,
    help="Axis along which the region is cut.",
)
@click.option(
    "--names",
    type=click.Choice(["reference", "absolute"]),
    default="reference",
    show_default=True,
    help="PREFIX_slice_0_imagery.png, or PREFIX_imagery_z021360.png with the slice's voxel index.",
)
@click.option(
    "--format", type=click.Choice(["png", "tiff"]), default="png", show_default=True, help="Kind of the files."
)
@click.option("--window", type=WindowType(), help="Voxel values that become black and white.")
@click.option(
    "--bits",
    type=click.Choice(["8", "16"]),
    default="8",
    show_default=True,
    help="Depth of the grey values that --window makes.",
)
@click.option(
    "--tile",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write tiles of at most N rows and columns.  [default: whole planes]",
)
@click.option("--colors", type=ColorsType(), help="Colors of masks and overlays: lines id,r,g,b.")
@click.option("--alpha", type=float, default=0.2, show_default=True, help="Strength of an overlay's colors.")
@click.option("--outline", is_flag=True, help="Draw outlines of objects.")
@click.option(
    "--merge-outline/--no-merge-outline",
    default=True,
    show_default=True,
    help="Draw no outline between objects that touch.",
)
@click.option(
    "--width",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Width of outlines in pixels.",
)
@click.option(
    "--max-files",
    type=click.IntRange(min=1),
    default=MAX_FILES,
    show_default=True,
    metavar="N",
    help="Refuse to write more files.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of the same names.")
def export_png(
    prefix: str, what: Any, bits: Any, root_ids: Any, cluster: str, workers: int | None, **options: Any
) -> None:
    """Write each slice of a region as a picture file; PREFIX is a path or URL that ends with the start of the names.

    With both sources given, pictures of either are on one grid: that of the finer of the two at the mips that are read.
    """
    pictures = {name: options.pop(name) for name in PICTURE_OPTIONS}
    data = region_dataset(root_ids=root_ids, **options)
    if what != "imagery":
        pictures["root_ids"] = root_ids
    run_export(
        lambda: to_png(data, prefix, what=what, bits=int(bits), cluster=cluster, workers=workers, **pictures),  # type: ignore[arg-type]
        prefix, "is incomplete: export again with --overwrite", print_report,
    )  # fmt: skip
