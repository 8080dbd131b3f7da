"""Options that select the region to export, shared by all formats, and the dataset that they select."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagery_dask.annotations import Keywords
from imagery_dask.cli.flags.param_types import RegionsType, RootIdsType
from imagery_dask.cli.flags.source_flags import cave_options, parsed_moment, source_client
from imagery_dask.humanize import human_share

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["REGION_OPTIONS", "box_options", "one_of_bounds", "region_data", "region_options", "same_moment"]

REGION_OPTIONS = (
    "image_source", "segmentation_source", "versions", "datastack", "server", "version", "timestamp", "stale_roots",
    "bounds", "regions", "resolution", "image_mip", "segmentation_mip", "root_ids", "sparse", "missing",
    "as_segmentation",
)  # fmt: skip
Box = tuple[tuple[float, ...], tuple[float, ...]]
Command = TypeVar("Command", bound=Callable[..., Any])

SOURCES = (
    click.option("--image-source", metavar="URL", help="Imagery to read: precomputed, zarr or N5."),
    click.option("--segmentation-source", metavar="URL", help="Ids to read: precomputed, zarr, N5 or graphene://."),
)  # fmt: skip
BOUNDS = click.option(
    "--bounds", nargs=6, type=float, metavar="X0 Y0 Z0 X1 Y1 Z1",
    help="Lower corner (inclusive) and upper corner (exclusive) of the region.",
)  # fmt: skip
READING = (
    click.option("--resolution", nargs=3, type=float, metavar="RX RY RZ",
                 help="Resolution in which the bounds are given, nm per voxel."),
    click.option("--image-mip", type=int, metavar="N", help="Mip of the imagery to read."),
    click.option("--segmentation-mip", type=int, metavar="N", help="Mip of the segmentation to read."),
)  # fmt: skip
MISSING = click.option(
    "--missing", type=click.Choice(["fill", "error"]), default="fill", show_default=True,
    help="If a storage chunk does not exist: fill it with 0 and count it, or fail the block.",
)  # fmt: skip
OPTIONS = (
    *SOURCES,
    click.option("--versions", metavar="STORE",
                 help="Version store to export from, without a server; --version or --timestamp says which version."),
    click.option("--as-segmentation", is_flag=True,
                 help="Read --segmentation-source as ids even if its info says that it is an image."),
    cave_options,
    click.option("--stale-roots", type=click.Choice(["error", "warn"]), default="error", show_default=True,
                 help="If --root-ids were not valid at the timestamp: stop with an error, or warn and leave them out."),
    BOUNDS,
    click.option("--regions", type=RegionsType(), metavar="FILE",
                 help="Instead of --bounds, named regions: a CSV file with columns name,x0,y0,z0,x1,y1,z1, or bounds "
                      "by name in JSON. Each of them becomes a group (zarr) or folder of its name in OUT."),
    *READING,
    click.option("--root-ids", type=RootIdsType(), default="all", show_default=True,
                 help="Objects to keep; none writes the ids as stored (supervoxel ids)."),
    click.option("--sparse", is_flag=True,
                 help="Read only the graph chunks that hold --root-ids; the graph server lists them, once per object. "
                      "A version store lists them itself, and is always read so."),
    MISSING,
)  # fmt: skip


def region_options(command: Command) -> Command:
    """Add the options of `region_data` (`REGION_OPTIONS`) to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def box_options(command: Command) -> Command:
    """Add the options that select sources, a moment and one box to a command."""
    for option in reversed((*SOURCES, cave_options, BOUNDS, *READING, MISSING)):
        command = option(command)
    return command


def one_of_bounds(context: click.Context) -> Keywords:
    """Return the bounds, or the bounds by name, that a command was given; the other one is None.

    On the command line, each of them replaces the other one of a file of options. The context has the result too.

    Raises
    ------
    click.UsageError
        Both are given, or neither.
    ValueError
        There is something else than boxes.
    """
    from imagery_dask.cli.files.region_files import read_regions, regions_of

    names = ("bounds", "regions")
    line = [
        name for name in names
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]  # fmt: skip
    given = line or [name for name in names if context.params[name]]
    if len(given) > 1:
        raise click.UsageError("--bounds and --regions exclude each other: a file of regions has the bounds.", context)
    if not given:
        raise click.UsageError("Missing option '--bounds' or '--regions'.", context)
    chosen = {name: context.params[name] if name in given else None for name in names}
    if (regions := chosen["regions"]) is not None:
        chosen["regions"] = regions_of(regions) if isinstance(regions, dict) else read_regions(str(regions))
    context.params |= chosen
    return chosen


def region_data(
    *,
    image_source: str | None,
    segmentation_source: str | None,
    versions: str | None,
    datastack: str | None,
    server: str | None,
    version: int | None,
    timestamp: str | None,
    stale_roots: Any,
    bounds: tuple[float, ...] | None,
    regions: Mapping[str, tuple[float, ...]] | None,
    resolution: tuple[float, ...] | None,
    image_mip: int | None,
    segmentation_mip: int | None,
    root_ids: Any,
    sparse: bool,
    missing: Any,
    as_segmentation: bool,
) -> xr.Dataset | dict[str, xr.Dataset]:
    """Return the region that the options select, on the grid of the finer of its layers at the mips that are read.

    Named regions are returned by name; they show a dynamic segmentation at one moment.
    """
    if versions is not None:
        others = {
            "--image-source": image_source, "--segmentation-source": segmentation_source, "--datastack": datastack,
            "--server": server, "--as-segmentation": as_segmentation or None, "--image-mip": image_mip,
            "--missing error": None if missing == "fill" else missing,
        }  # fmt: skip
        if refused := [flag for flag, value in others.items() if value is not None]:
            raise ValueError(f"--versions has its own sources and levels; leave out {', '.join(refused)}.")
        read = _version_reader(
            versions, version, timestamp, root_ids=root_ids, sparse=sparse, level=segmentation_mip or 0,
            resolution=resolution or None, stale_roots=stale_roots,
        )  # fmt: skip
        return _in_boxes(read, bounds, regions)
    if image_source is None and segmentation_source is None and datastack is None:
        raise ValueError(
            "Give what to export: --image-source, --segmentation-source, or both; a --datastack; or --versions."
        )
    if as_segmentation and segmentation_source is None:
        raise ValueError("--as-segmentation is about --segmentation-source; give it.")
    client = source_client(
        datastack, server, version, timestamp, resolution=resolution or None, image_source=image_source,
        segmentation_source=segmentation_source, image_mip=image_mip, segmentation_mip=segmentation_mip,
        missing=missing, stale_roots=stale_roots, as_segmentation=as_segmentation,
        outside="fill",  # said here, in the words of the command line
    )  # fmt: skip
    if client.segmentation_source is None and (root_ids != "all" or segmentation_mip is not None or sparse):
        raise ValueError("--root-ids, --sparse and --segmentation-mip need a segmentation; give --segmentation-source.")
    if client.image_source is None and image_mip is not None:
        raise ValueError("--image-mip needs imagery; give --image-source.")
    return _in_boxes(
        lambda box: client.dataset(box, root_ids=root_ids, scale_to_bounds=False, sparse=sparse), bounds, regions
    )


def _version_reader(
    url: str, version: int | None, timestamp: str | None, *, root_ids: Any, sparse: bool, **options: Any
) -> Callable[[Box], xr.Dataset]:
    """Return a function that reads a box of a version of a store."""
    from imagery_dask.versions.opened_versions import open_versions

    if sparse and (root_ids is None or isinstance(root_ids, str)):
        raise ValueError("--sparse reads the graph chunks of listed objects; give --root-ids.")
    store, moment = open_versions(url), parsed_moment(timestamp)
    return lambda box: store.at(version, moment, bounds=box, root_ids=root_ids, **options)


def _in_boxes(
    read: Callable[[Box], xr.Dataset],
    bounds: tuple[float, ...] | None,
    regions: Mapping[str, tuple[float, ...]] | None,
) -> xr.Dataset | dict[str, xr.Dataset]:
    """Return what is in the bounds, or in named ones."""

    def data_in(box: tuple[float, ...], said: str) -> xr.Dataset:
        data = read((box[:3], box[3:]))
        _check_inside(data, said)
        return data

    if regions is None:
        return data_in(bounds or (), "--bounds")
    return {name: data_in(box, f"the bounds of {name!r} in --regions") for name, box in regions.items()}


def _is_at_a_moment(region: Keywords) -> bool:
    """Return True if a region shows the same state whenever it is read: it has a moment, or is not dynamic."""
    dynamic = region["datastack"] is not None or "graphene://" in (region["segmentation_source"] or "")
    return not dynamic or region["timestamp"] is not None or region["version"] is not None


def same_moment(out: str, region: Keywords, is_new: bool) -> Keywords:
    """Return the region with the timestamp of the existing export if it has none, since "now" changes between runs.

    Named regions without an export have the same "now".
    """
    if _is_at_a_moment(region):
        return region
    from imagery_dask.export.core.plans import timestamp_in
    from imagery_dask.export.core.run_states import plan_in
    from imagery_dask.export.registry import run_at

    now = None if region["regions"] is None else int(time.time())
    try:
        moment = now if is_new else timestamp_in(plan_in(run_at(out)).fingerprint_fields) or now
    except FileNotFoundError:
        moment = now
    return region if moment is None else region | {"timestamp": str(moment)}


def _check_inside(data: xr.Dataset, said: str) -> None:
    """Raise if the region lies outside the volume, warn if a part of it does.

    The bounds are then probably given in another resolution.
    """
    from imagery_dask.arrays.origins import source_of

    for name, variable in data.data_vars.items():
        source = source_of(variable.data)
        if source is None:
            continue
        cutout, share = source.cutout, source.cutout.share_outside
        if share == 1:
            raise ValueError(
                f"{said} lie outside the {name}: {cutout.where}. Check --resolution, the resolution in which bounds "
                "are given."
            )
        if share > 0:
            click.echo(
                f"Warning: {human_share(share)} of {said} lie outside the {name} ({cutout.where}): they are 0 there.",
                err=True,
            )
