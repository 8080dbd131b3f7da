"""Options that say which region is exported and where it runs, and the data that they name; shared by all exports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import xarray as xr

from imagery_dask.cli.options import LevelsType, RootIdsType, ShapeType
from imagery_dask.cli.sources import cave_options, source_client
from imagery_dask.errors import BlockFailedError, SourceError
from imagery_dask.lazy import source_of
from imagery_dask.run import RunReport

__all__ = ["STORE_OPTIONS", "region_dataset", "region_options", "run_export", "store_options"]

SOME_BLOCKS_FAILED = 1
INTERRUPTED = 130

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
    click.option("--workers", type=click.IntRange(min=1), metavar="N",
                 help="Workers to start.  [default: one per core]"),
    click.option("--cluster", default="local", show_default=True, metavar="local|FILE|ADDRESS", help="Where to run."),
    click.option("--missing", type=click.Choice(["fill", "error"]), default="fill", show_default=True,
                 help="What a storage chunk that does not exist becomes: 0 and counted, or a failed block."),
    click.option("--report", metavar="FILE",
                 help="Write a report as an HTML page: throughput, state of each block, pictures, failures."),
)  # fmt: skip


STORE = (
    click.option("--chunks", type=ShapeType(),
                 help="Chunks of the output.  [default: 128,128,128; 64,64,64 for 32 and 64 bit voxels]"),
    click.option("--levels", type=LevelsType(), default="1", show_default=True,
                 help="Levels of the pyramid; auto: down to 512 voxels; source: the mips of the source."),
    click.option("--block-mib", type=float, metavar="MIB", help="Size of a task's block.  [default: 32]"),
    click.option("--overwrite", is_flag=True, help="Replace OUT when it exists."),
)  # fmt: skip
STORE_OPTIONS = ("chunks", "levels", "block_mib", "overwrite")


def store_options(command: Command) -> Command:
    """Give a command the options that all writers of volumes have (`STORE_OPTIONS`)."""
    for option in reversed(STORE):
        command = option(command)
    return command


def region_options(command: Command) -> Command:
    """Give a command the options of `region_dataset`, and ``--workers``, ``--cluster`` and ``--report``."""
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


def run_export(write: Callable[[], RunReport], out: str, left: str, show: Callable[[RunReport, str], None]) -> None:
    """Write, show the report, and leave with the exit code that says what went wrong.

    Parameters
    ----------
    write : callable
        Does the export.
    out : str
        Where to.
    left : str
        What an interrupt leaves of it, after "Interrupted; OUT".
    show : callable
        Prints a report.
    """
    try:
        report = write()
    except BlockFailedError as error:
        show(error.report, out)
        sys.exit(SOME_BLOCKS_FAILED)
    except SourceError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(SOME_BLOCKS_FAILED)
    except KeyboardInterrupt:
        click.echo(f"Interrupted; {out} {left}.", err=True)
        sys.exit(INTERRUPTED)
    show(report, out)


def _check_inside(data: xr.Dataset) -> None:
    """Refuse to write zeros only: bounds beside the volume are in another resolution than was meant."""
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
