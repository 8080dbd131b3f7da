"""Options that say which region is exported, and the data that they name; shared by all exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagery_dask.annotations import Keywords
from imagery_dask.cli.param_types import RootIdsType
from imagery_dask.cli.source_flags import cave_options, source_client

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["REGION_OPTIONS", "region_dataset", "region_options", "same_moment"]

REGION_OPTIONS = (
    "image_source", "segmentation_source", "datastack", "server", "version", "timestamp", "stale_roots", "bounds",
    "resolution", "image_mip", "segmentation_mip", "root_ids", "missing",
)  # fmt: skip
Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS = (
    click.option("--image-source", metavar="URL", help="Imagery to export, a CloudVolume path."),
    click.option("--segmentation-source", metavar="URL", help="Segmentation to export, on the same voxels."),
    cave_options,
    click.option("--stale-roots", type=click.Choice(["error", "warn"]), default="error", show_default=True,
                 help="What --root-ids do that were no root ids at the moment shown."),
    click.option("--bounds", nargs=6, type=float, required=True, metavar="X0 Y0 Z0 X1 Y1 Z1",
                 help="Region, upper corner exclusive."),
    click.option("--resolution", nargs=3, type=float, metavar="RX RY RZ",
                 help="Resolution of the bounds, nm per voxel."),
    click.option("--image-mip", type=int, metavar="N", help="Level of the imagery."),
    click.option("--segmentation-mip", type=int, metavar="N", help="Level of the segmentation."),
    click.option("--root-ids", type=RootIdsType(), default="all", show_default=True, help="Objects to keep."),
    click.option("--missing", type=click.Choice(["fill", "error"]), default="fill", show_default=True,
                 help="What a storage chunk that does not exist becomes: 0 and counted, or a failed block."),
)  # fmt: skip


def region_options(command: Command) -> Command:
    """Give a command the options of `region_dataset` (`REGION_OPTIONS`)."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def region_dataset(
    *,
    image_source: str | None,
    segmentation_source: str | None,
    datastack: str | None,
    server: str | None,
    version: int | None,
    timestamp: str | None,
    stale_roots: Any,
    bounds: tuple[float, ...],
    resolution: tuple[float, ...] | None,
    image_mip: int | None,
    segmentation_mip: int | None,
    root_ids: Any,
    missing: Any,
) -> xr.Dataset:
    """Region that the options name, on the grid of the finer of its layers at the mips that are read."""
    client = source_client(
        datastack, server, version, timestamp, resolution=resolution or None, image_source=image_source,
        segmentation_source=segmentation_source, image_mip=image_mip, segmentation_mip=segmentation_mip,
        missing=missing, stale_roots=stale_roots
    )  # fmt: skip
    if client.segmentation_source is None and (root_ids != "all" or segmentation_mip is not None):
        raise ValueError("--root-ids and --segmentation-mip need a segmentation; give --segmentation-source.")
    data = client.dataset((bounds[:3], bounds[3:]), root_ids=root_ids, scale_to_bounds=False)
    _check_inside(data)
    return data


def same_moment(out: str, region: Keywords) -> Keywords:
    """Take the moment of the export that is there, where the options name none: "now" is another one each time."""
    dynamic = region["datastack"] is not None or "graphene://" in (region["segmentation_source"] or "")
    if not dynamic or region["timestamp"] is not None or region["version"] is not None:
        return region
    from imagery_dask.export.registry import run_at

    try:
        moment = run_at(out).plan["decides"].get("segmentation timestamp")
    except FileNotFoundError:
        return region
    return region if moment is None else region | {"timestamp": str(moment)}


def _check_inside(data: xr.Dataset) -> None:
    """Refuse to write zeros only: bounds beside the volume are in another resolution than was meant."""
    from imagery_dask.arrays.lazy import source_of

    for name, variable in data.data_vars.items():
        source = source_of(variable.data)
        if source is None:
            continue
        volume = source.cutout.mip.grid
        if source.cutout.target.at(volume.resolution_nm).intersection(volume).size == 0:
            raise ValueError(
                f"--bounds lie outside the {name}: at {volume.resolution_nm} nm, where it has voxels {volume.start} to "
                f"{volume.stop}, they are voxels {source.cutout.target.at(volume.resolution_nm).start} to "
                f"{source.cutout.target.at(volume.resolution_nm).stop}. Check --resolution, in which bounds are given."
            )
