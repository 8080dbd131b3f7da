"""``imagery-dask view``: sources and exports in Neuroglancer."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from imagery_dask.cli.flags.param_types import RootIdsType
from imagery_dask.cli.flags.source_flags import datastack_options, source_client, timestamp_option

if TYPE_CHECKING:
    from imagery_dask.client import ImageryClient
    from imagery_dask.viewer.served import ServedVolume
    from imagery_dask.viewer.served_stores import ServedStore

__all__ = ["view"]

FOREVER_S = 3600.0


@click.command()
@click.argument("places", metavar="[SOURCE_OR_OUT]...", nargs=-1)
@datastack_options
@click.option("--version", "versions", type=int, multiple=True, metavar="N",
              help="Materialization version to show: of the datastack, or of version stores, whose versions are shown "
                   "side by side.")  # fmt: skip
@timestamp_option
@click.option(
    "--bounds",
    nargs=6,
    type=float,
    metavar="X0 Y0 Z0 X1 Y1 Z1",
    help="Region to show: lower corner (inclusive) and upper corner (exclusive).  [default: all]",
)
@click.option(
    "--resolution",
    nargs=3,
    type=float,
    metavar="RX RY RZ",
    help="Resolution in which the bounds are given, nm per voxel.  [default: that of the first layer]",
)
@click.option("--root-ids", type=RootIdsType(), default="all", show_default=True, help="Objects to select.")
@click.option(
    "--browser/--no-browser", default=True, show_default=True,
    help="Open a browser; the address is printed in any case.",
)  # fmt: skip
def view(
    places: tuple[str, ...],
    datastack: str | None,
    server: str | None,
    versions: tuple[int, ...],
    timestamp: str | None,
    bounds: tuple[float, ...] | None,
    resolution: tuple[float, ...] | None,
    root_ids: Any,
    browser: bool,
) -> None:
    r"""Show sources and exports in Neuroglancer, served from this machine to this machine.

    Each SOURCE_OR_OUT is a precomputed volume, a dynamic segmentation (graphene://), an export to OME-Zarr or
    precomputed, or a version store, on disk or in a bucket. Layers lie over each other in the given order, and versions
    of one store side by side. The server runs until Ctrl-C.

    \b
    Examples:
      imagery-dask view OUT.zarr
      imagery-dask view gs://bucket/em OUT --bounds 1000 1000 50 1512 1512 60
      imagery-dask view --datastack minnie65_public --version 1300 --root-ids 864691135396580129
      imagery-dask view OUT.versions --version 1078 --version 1300
    """
    if not places and datastack is None:
        raise ValueError("Give what to show: sources, exports, or a --datastack.")
    stores = [place for place in places if datastack is None and _is_version_store(place, bool(versions))]
    if datastack is None and (server is not None or (versions and not stores)):
        raise ValueError("--server and --version need a --datastack; --version may also be of a version store.")
    if datastack is not None and len(versions) > 1:
        raise ValueError(f"One version of a datastack is shown; got {', '.join(map(str, versions))}.")
    from imagery_dask.geometry.vec import Vec3
    from imagery_dask.model.arguments import corners
    from imagery_dask.viewer.launch import launch, open_browser
    from imagery_dask.viewer.served_stores import found_in
    from imagery_dask.viewer.states import Place

    served: list[ServedVolume | ServedStore] = []
    panels: list[list[str]] = []
    if datastack is not None:
        version = versions[0] if versions else None
        served += _volumes(source_client(datastack, server, version, timestamp), root_ids)
    for place in places:
        if place in stores:
            of_store, shown_together = _versions(place, versions, timestamp)
            served, panels = [*served, *of_store], [*panels, *shown_together]
            continue
        found_stores, sources = found_in(place)
        clients = [_client(source, timestamp if datastack is None else None) for source in sources]
        found: list[ServedVolume | ServedStore] = [*found_stores]
        found += [volume for client in clients for volume in _volumes(client, root_ids)]
        served += [replace(one, name=f"{os.path.basename(place.rstrip('/'))} {one.name}") for one in found]
    segments = () if root_ids in ("all", None) else tuple(root_ids)
    if segments and not any(one.kind == "segmentation" for one in served):
        raise ValueError("--root-ids need a segmentation; give one as SOURCE.")
    at = None
    if bounds:
        lower, upper = corners((bounds[:3], bounds[3:]))
        at = Place.of_bounds(Vec3.of(lower), Vec3.of(upper), Vec3.of(resolution or served[0].grid.resolution_nm))
    layers = _distinct(served)
    others = [one.name for one in layers if not any(one.name in names for names in panels)]
    beside = [[*others, *names] for names in panels] if len(panels) > 1 else []
    with launch(layers, at, segments, browser=False, panels=beside) as page:
        opened = browser and open_browser(page.url)
        click.echo(f"Showing at {page.url}" if opened else f"Open {page.url} in a browser on this machine.")
        click.echo("Press Ctrl-C to stop.")
        try:
            while True:
                time.sleep(FOREVER_S)
        except KeyboardInterrupt:
            click.echo("Stopped.")


def _is_version_store(place: str, expected: bool) -> bool:
    """Return True for a version store; places that are not on this machine are only asked if one is expected."""
    from imagery_dask.versions.version_store import FACTS, read_facts

    if "://" not in place:
        return os.path.isfile(os.path.join(os.path.expanduser(place), FACTS))
    if not expected or place.startswith(("precomputed://", "graphene://", "zarr", "n5://")):
        return False
    with suppress(FileNotFoundError):
        read_facts(place)
        return True
    return False


def _versions(
    place: str, versions: tuple[int, ...], timestamp: str | None
) -> tuple[list[ServedVolume], list[list[str]]]:
    """Return the layers of a version store, and which of them are shown side by side."""
    from imagery_dask.versions.opened_versions import open_versions
    from imagery_dask.versions.recorded import Version

    wanted: list[Version] = [*versions, *([] if timestamp is None else [timestamp])]
    return open_versions(place).served(wanted, os.path.basename(place.rstrip("/")))


def _client(source: str, timestamp: str | None) -> ImageryClient:
    from imagery_dask.sources import open_volume

    layer = f"{open_volume(source).layer.told_kind or 'image'}_source"
    return source_client(None, None, None, timestamp, **{layer: source})


def _volumes(client: ImageryClient, root_ids: Any) -> list[ServedVolume]:
    """Return the volumes that show the layers of a client; raise if it has outdated root ids to select."""
    from imagery_dask.client.viewing import selected_objects, served_volumes

    settings = client._settings
    if settings.segmentation is not None:
        selected_objects(settings, root_ids)
    return served_volumes(settings)


def _distinct(served: list[ServedVolume | ServedStore]) -> list[ServedVolume | ServedStore]:
    """Return layers with names that differ."""
    names: dict[str, int] = {}
    for one in served:
        names[one.name] = names.get(one.name, 0) + 1
    counted: dict[str, int] = {}
    distinct = []
    for one in served:
        counted[one.name] = counted.get(one.name, 0) + 1
        distinct.append(one if names[one.name] == 1 else replace(one, name=f"{one.name} {counted[one.name]}"))
    return distinct
