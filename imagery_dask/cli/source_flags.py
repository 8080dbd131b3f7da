"""Options that say what is read, and the client that they make; shared by the commands that read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from caveclient import CAVEclient

    from imagery_dask.client import ImageryClient

__all__ = ["cave_options", "datastack_client", "source_client"]

Command = TypeVar("Command", bound=Callable[..., Any])


def cave_options(command: Command) -> Command:
    """Give a command the options that name a datastack of a CAVE server, and a moment."""
    for option in reversed(
        (
            click.option("--datastack", metavar="NAME", help="CAVE datastack that names the sources."),
            click.option("--server", metavar="URL", help="CAVE server.  [default: the global one]"),
            click.option("--version", "version", type=int, metavar="N", help="Materialization version to show."),
            click.option(
                "--timestamp", metavar="WHEN", help="Moment to show: ISO 8601 (UTC), seconds since 1970, or now."
            ),
        )
    ):
        command = option(command)
    return command


def datastack_client(datastack: str | None, server: str | None) -> CAVEclient:
    """Return the CAVEclient that the options name, or None."""
    if datastack is None:
        if server is not None:
            raise ValueError("--server needs --datastack: a server has many.")
        return None
    from imagery_dask.client.cave import open_cave

    return open_cave(datastack, server)


def source_client(
    datastack: str | None, server: str | None, version: int | None, timestamp: str | None, **options: Any
) -> ImageryClient:
    """Make the client that the options name; `options` are those of `ImageryClient`."""
    from imagery_dask.client import ImageryClient

    # Eight digits are a date in ISO's basic form: as seconds they would lie before 1974.
    if timestamp is not None and timestamp.replace(".", "", 1).isdigit() and len(timestamp) != 8:
        moment: str | float | None = float(timestamp)
    else:
        moment = timestamp
    return ImageryClient(datastack_client(datastack, server), version=version, timestamp=moment, **options)
