"""The formats that a region can be exported to: their options, and the export that these mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import click

from imagery_dask.cli.param_types import ColorsType, LevelsType, ShapeType, WindowType
from imagery_dask.cli.region import REGION_OPTIONS, region_dataset, region_options, same_moment
from imagery_dask.export.core.base import Export
from imagery_dask.export.images.image_options import MAX_FILES, ImageOptions
from imagery_dask.export.images.to_png import SliceExport
from imagery_dask.export.precomputed.precomputed_options import IMAGE_ENCODINGS, LABEL_ENCODINGS, PrecomputedOptions
from imagery_dask.export.precomputed.to_precomputed import PrecomputedExport
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import Codec, OmeVersion, ZarrOptions

__all__ = ["FORMATS", "Format"]

Options = dict[str, Any]

STORE = (
    click.option(
        "--chunks",
        type=ShapeType(),
        help="Chunks of the output.  [default: 128,128,128; 64,64,64 for 32 and 64 bit voxels]",
    ),
    click.option(
        "--levels",
        type=LevelsType(),
        default="1",
        show_default=True,
        help="Levels of the pyramid; auto: down to 512 voxels; source: the mips of the source.",
    ),
    click.option("--block-mib", type=float, metavar="MIB", help="Size of a task's block.  [default: 32]"),
)
ZARR = (
    click.option(
        "--shards",
        type=ShapeType("auto", "none"),
        default="auto",
        show_default=True,
        help="Chunks that make one file: a shape in voxels, auto (32 MiB where there are many chunks), none.",
    ),
    click.option(
        "--codec",
        type=click.Choice(get_args(Codec)),
        default="blosc-zstd",
        show_default=True,
        help="Compression of chunks.",
    ),
    click.option(
        "--ome-version",
        type=click.Choice(get_args(OmeVersion)),
        default="0.5",
        show_default=True,
        help="0.5 is zarr v3; 0.4, for older readers, zarr v2.",
    ),
)
PRECOMPUTED = (
    click.option(
        "--image-encoding",
        type=click.Choice(IMAGE_ENCODINGS),
        default="raw",
        show_default=True,
        help="Encoding of imagery.",
    ),
    click.option(
        "--segmentation-encoding",
        type=click.Choice(LABEL_ENCODINGS),
        help="Encoding of segmentation.  [default: compressed_segmentation; raw for ids of 8 and 16 bits]",
    ),
    click.option("--quality", type=click.IntRange(0, 100), metavar="N", help="Of jpeg and jxl; compression of png."),
    click.option(
        "--compress",
        type=click.Choice(["auto", "gzip", "br", "none"]),
        default="auto",
        show_default=True,
        help="Further compression of chunks; auto is gzip in buckets, none on a disk.",
    ),
)
PNG = (
    click.option(
        "--what",
        type=click.Choice(("imagery", "masks", "labels", "overlay")),
        default="imagery",
        show_default=True,
        help="Grey values; a picture of each object; ids as values, with a table; objects over imagery.",
    ),
    click.option(
        "--slice-axis",
        type=click.Choice(["x", "y", "z"]),
        default="z",
        show_default=True,
        help="Axis along which the region is cut.",
    ),
    click.option(
        "--names",
        type=click.Choice(["reference", "absolute"]),
        default="reference",
        show_default=True,
        help="PREFIX_slice_0_imagery.png, or PREFIX_imagery_z021360.png with the slice's voxel index.",
    ),
    click.option(
        "--format", type=click.Choice(["png", "tiff"]), default="png", show_default=True, help="Kind of the files."
    ),
    click.option("--window", type=WindowType(), help="Voxel values that become black and white."),
    click.option(
        "--bits",
        type=click.Choice(["8", "16"]),
        default="8",
        show_default=True,
        help="Depth of the grey values that --window makes.",
    ),
    click.option(
        "--tile",
        type=click.IntRange(min=1),
        metavar="N",
        help="Write tiles of at most N rows and columns.  [default: whole planes]",
    ),
    click.option("--colors", type=ColorsType(), help="Colors of masks and overlays: lines id,r,g,b."),
    click.option("--alpha", type=float, default=0.2, show_default=True, help="Strength of an overlay's colors."),
    click.option("--outline", is_flag=True, help="Draw outlines of objects."),
    click.option(
        "--merge-outline/--no-merge-outline",
        default=True,
        show_default=True,
        help="Draw no outline between objects that touch.",
    ),
    click.option(
        "--width",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        metavar="N",
        help="Width of outlines in pixels.",
    ),
    click.option(
        "--max-files",
        type=click.IntRange(min=1),
        default=MAX_FILES,
        show_default=True,
        metavar="N",
        help="Refuse to write more files.",
    ),
)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of exports on the command line.

    Parameters
    ----------
    name : str
        Name of the command.
    place : str
        Name of its argument.
    text : str
        What it writes.
    options : tuple of callable
        Decorators of its own options.
    build : callable
        Makes the export from the place and all options; it takes those that are its own.
    """

    name: str
    place: str
    text: str
    options: Sequence[Callable[[Any], Any]]
    build: Callable[[str, Options], Export]

    def command(self, run: Any, more: Callable[[Any], Any], text: str) -> click.Command:
        """Make a command of the format's options and others, that calls ``run(out, **options)``."""
        run = more(run)
        for option in reversed(self.options):
            run = option(run)
        return click.command(self.name, help=text)(click.argument("out", metavar=self.place)(region_options(run)))


def _taken(options: Options, *names: str) -> Options:
    return {name: options.pop(name) for name in names}


def _region(out: str, options: Options) -> Any:
    region = _taken(options, *REGION_OPTIONS)
    if not options.get("overwrite"):
        region = same_moment(out, region)
    return region_dataset(**region)


def _zarr(out: str, options: Options) -> Export:
    of_format = _taken(options, "chunks", "levels", "shards", "codec", "ome_version")
    return ZarrExport(_region(out, options), out, ZarrOptions(**of_format))


def _precomputed(out: str, options: Options) -> Export:
    given = {name: options.pop(f"{name}_encoding") for name in ("image", "segmentation")}
    encoding = {name: value for name, value in given.items() if value is not None}
    of_format = _taken(options, "chunks", "levels", "quality", "compress")
    of_format["compress"] = None if of_format["compress"] == "none" else of_format["compress"]
    return PrecomputedExport(_region(out, options), out, PrecomputedOptions(encoding=encoding, **of_format))


def _png(out: str, options: Options) -> Export:
    of_format = _taken(
        options,
        "what",
        "slice_axis",
        "names",
        "format",
        "window",
        "tile",
        "colors",
        "alpha",
        "outline",
        "merge_outline",
        "width",
        "max_files",
    )
    bits = int(options.pop("bits"))
    if of_format["what"] != "imagery":
        of_format["root_ids"] = options["root_ids"]
    return SliceExport(_region(out, options), out, ImageOptions(bits=bits, **of_format))  # type: ignore[arg-type]


FORMATS = (
    Format(
        "zarr",
        "OUT",
        """Write a region as OME-Zarr to OUT: imagery at the root, segmentation under labels/segmentation.

        Both are on one grid: that of the finer of the two at the mips that are read.""",
        (*STORE, *ZARR),
        _zarr,
    ),
    Format(
        "precomputed",
        "OUT",
        "Write a region as Neuroglancer precomputed volumes to OUT; of two layers, to OUT/image and OUT/segmentation.",
        (*STORE, *PRECOMPUTED),
        _precomputed,
    ),
    Format(
        "png",
        "PREFIX",
        """Write each slice of a region as a picture file; PREFIX is a path or URL that ends with the start of names.

        With both sources given, pictures of either are on one grid: that of the finer of the two at the mips that are
        read.""",
        PNG,
        _png,
    ),
)
