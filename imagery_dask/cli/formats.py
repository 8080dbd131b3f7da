"""Export formats on the command line; their flags are made from the fields of the formats' option dataclasses."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from imagery_dask.annotations import Keywords
from imagery_dask.cli.files.config_files import config_option
from imagery_dask.cli.flags.param_types import CodecType, ColorsType, LevelsType, ShapeType, ShardingType, WindowType
from imagery_dask.cli.flags.region_flags import REGION_OPTIONS, one_of_bounds, region_data, region_options, same_moment
from imagery_dask.cli.run_flags import RUN_OPTIONS
from imagery_dask.export.core.writer_arguments import Flag, flags_of
from imagery_dask.export.images.image_options import ImageOptions
from imagery_dask.export.precomputed.precomputed_options import PrecomputedOptions
from imagery_dask.export.zarr.zarr_options import ZarrOptions

if TYPE_CHECKING:
    from imagery_dask.export.core.base import Export

__all__ = ["FORMATS", "Format", "block_option", "click_options", "options_from"]

Given = Keywords
Decorator = Callable[[Any], Any]
Options = TypeVar("Options")

# Options of exports that plans do not have, as a file of options names them.
OF_EXPORTS = tuple(name.replace("_", "-") for name in RUN_OPTIONS)
SYNTAX: dict[str, Callable[..., click.ParamType[Any]]] = {
    "shape": ShapeType, "levels": LevelsType, "window": WindowType, "colors": ColorsType,
    "codec": CodecType, "sharding": ShardingType,
}  # fmt: skip
NONE = "none"


def block_option(command: Any) -> Any:
    """Add ``--block-mib`` to a command."""
    return click.option(
        "--block-mib",
        type=click.FloatRange(0, min_open=True),
        metavar="MIB",
        help="Size of the blocks of an export.  [default: 32]",
    )(command)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of exports, and how it appears on the command line."""

    #: Name of the subcommand.
    name: str
    #: Name of its argument in the help text.
    argument: str
    #: Help text.
    text: str
    #: Dataclass of the options of the format.
    options: type
    #: Function that makes the export from the URL and the given options; it removes those that it uses.
    build: Callable[[str, Given], Export]
    #: Flags that are not fields of `options`.
    extra_flags: tuple[Decorator, ...] = ()

    def command(self, run: Any, shared_flags: Decorator, text: str) -> click.Command:
        """Return a command with flags for region and format and `shared_flags`; it calls ``run(out, **flags)``."""

        def of_bounds(out: str, **flags: Any) -> None:
            run(out, **(flags | one_of_bounds(click.get_current_context())))

        command = shared_flags(of_bounds)
        for option in reversed([*click_options(self.options), *self.extra_flags]):
            command = option(command)
        return click.command(self.name, help=text)(
            click.argument("out", metavar=self.argument)(config_option(region_options(command), OF_EXPORTS))
        )


# ------------------------------------------------------------------------------------------- flags from fields and back


def click_options(options: type) -> Iterator[Decorator]:
    """Yield the flags of a dataclass of options, as decorators of a command."""
    for field, kind in _typed_fields(options):
        for name, flag in flags_of(field.metadata).items():
            yield _click_option(_dashed(name, field.name), kind, field.default, flag)


def _click_option(name: str, kind: object, default: object, flag: Flag) -> Decorator:
    if kind is bool:
        on = f"--{name}/--no-{name}" if default else f"--{name}"
        return click.option(on, is_flag=True, default=default, show_default=bool(default), help=flag.help)
    if flag.default is not None:
        default = flag.default
    keywords: Keywords = {}
    words = flag.choices or tuple(_words(kind, default))
    if flag.syntax:
        keywords["type"] = SYNTAX[flag.syntax](*flag.choices)
    elif words:
        keywords["type"], default = click.Choice(words), None if default is None else str(default)
    elif int in _alternatives(kind):
        keywords |= {"type": click.IntRange(flag.minimum, flag.maximum), "metavar": "N"}
    else:
        keywords["type"] = float
    return click.option(f"--{name}", default=default, show_default=default is not None, help=flag.help, **keywords)


def options_from(options: type[Options], given: Given, **other_fields: object) -> Options:
    """Return a dataclass made of its flags and `other_fields`; its flags are removed from `given`."""
    values = dict(other_fields)
    for field, kind in _typed_fields(options):
        flags = flags_of(field.metadata)
        read = {name: given.pop(_dashed(name, field.name).replace("-", "_")) for name in flags}
        if "" in flags:
            words, value = _words(kind, field.default), read[""]
            values[field.name] = words.get(value, value) if words else value
        elif flags:
            values[field.name] = {name: word for name, word in read.items() if word is not None}
    return options(**values)


def _typed_fields(options: type) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(options)
    return [(field, hints[field.name]) for field in fields(options)]


def _dashed(name: str, field: str) -> str:
    return "-".join(filter(None, (name, field))).replace("_", "-")


def _alternatives(kind: object) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _words(kind: object, default: object) -> dict[Any, Any]:
    """Return the values of a literal type by their words; ``none`` means None if None is not the default."""
    kinds = _alternatives(kind)
    if not all(get_origin(member) is Literal or member is type(None) for member in kinds):
        return {}
    words: dict[Any, Any] = {str(value): value for member in kinds for value in get_args(member)}
    return words | ({NONE: None} if type(None) in kinds and default is not None else {})


# ---------------------------------------------------------------------------------------------------------- the formats


def _region(out: str, given: Given) -> Any:
    """Return the data of the region, or of named regions."""
    region = {name: given.pop(name) for name in REGION_OPTIONS}
    return region_data(**same_moment(out, region, is_new=bool(given.get("overwrite"))))


def _zarr(out: str, given: Given) -> Export:
    from imagery_dask.export.zarr.to_zarr import zarr_export

    options = options_from(ZarrOptions, given)
    return zarr_export(_region(out, given), out, options)


def _precomputed(out: str, given: Given) -> Export:
    from imagery_dask.export.precomputed.to_precomputed import precomputed_export

    options = options_from(PrecomputedOptions, given)
    return precomputed_export(_region(out, given), out, options)


def _png(out: str, given: Given) -> Export:
    from imagery_dask.export.core.region_exports import are_regions
    from imagery_dask.export.images.to_png import slice_export

    what = given["what"]
    root_ids = {} if what == "imagery" else {"root_ids": given["root_ids"]}
    options = options_from(ImageOptions, given, **root_ids)
    region = _region(out, given)
    layer, source = ("image", "--image-source") if what == "imagery" else ("segmentation", "--segmentation-source")
    if any(layer not in one for one in (region.values() if are_regions(region) else [region])):
        raise ValueError(f"--what {what} needs {source}; give it, or choose another --what.")
    return slice_export(region, out, options)


FORMATS = (
    Format(
        "zarr",
        "OUT",
        """Write a region as OME-Zarr to OUT: imagery at the root, segmentation under labels/segmentation.

        A segmentation alone goes to the root. With --regions, OUT has such a group for each region.

        Both are written on the grid of the finer of the two at the mips that are read.

        \b
        Examples:
          imagery-dask export zarr OUT.zarr --image-source gs://bucket/em --bounds 0 0 0 512 512 64
          imagery-dask export zarr OUT.zarr --image-source em --segmentation-source seg --bounds 0 0 0 512 512 64 \\
              --levels auto --root-ids 864691135396580129,864691135396580130
          imagery-dask export zarr OUT.zarr --segmentation-source seg --bounds 0 0 0 512 512 64 --relabel uint32
          imagery-dask export zarr OUT.zarr --datastack minnie65_public --version 1300 \\
              --bounds 120000 110000 20000 121024 111024 20064 --cluster cluster.yaml""",
        ZarrOptions,
        _zarr,
        (block_option,),
    ),
    Format(
        "precomputed",
        "OUT",
        """Write a region as Neuroglancer precomputed to OUT; two layers, to OUT/image and OUT/segmentation.

        With --regions, OUT has a folder for each region.

        \b
        Examples:
          imagery-dask export precomputed OUT --image-source gs://bucket/em --bounds 0 0 0 512 512 64
          imagery-dask export precomputed s3://bucket/OUT --image-source em --bounds 0 0 0 512 512 64 --levels 3 \\
              --image-encoding jpeg --quality 90""",
        PrecomputedOptions,
        _precomputed,
        (block_option,),
    ),
    Format(
        "png",
        "PREFIX",
        """Write each slice of a region as a picture file; PREFIX is a path or URL with the start of the file names.

        With --regions, PREFIX is a folder, with a folder for each region, whose name begins those of its files.

        If both sources are given, all pictures are on the grid of the finer of the two at the mips that are read.

        \b
        Examples:
          imagery-dask export png slices/em --image-source gs://bucket/em --bounds 0 0 0 512 512 64
          imagery-dask export png slices/em --image-source em --segmentation-source seg --bounds 0 0 0 512 512 64 \\
              --what overlay --slice-axis z""",
        ImageOptions,
        _png,
    ),
)
