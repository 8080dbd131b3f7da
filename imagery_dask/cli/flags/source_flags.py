"""Options that select a datastack and a timestamp, and the client that they make; shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from caveclient import CAVEclient

    from imagery_dask.client import ImageryClient

__all__ = [
    "cave_options", "datastack_client", "datastack_options", "parsed_moment", "source_client", "timestamp_option"
]  # fmt: skip

Command = TypeVar("Command", bound=Callable[..., Any])


def timestamp_option(command: Command) -> Command:
    """Add ``--timestamp`` to a command."""
    text = "Timestamp to show: ISO 8601 (UTC), seconds since 1970, or now."
    return click.option("--timestamp", metavar="WHEN", help=text)(command)


def datastack_options(command: Command) -> Command:
    """Add the options that select a datastack of a CAVE server to a command."""
    for option in reversed(
        (
            click.option("--datastack", metavar="NAME", help="CAVE datastack whose imagery and segmentation to use."),
            click.option("--server", metavar="URL", help="CAVE server.  [default: the global server]"),
        )
    ):
        command = option(command)
    return command


def cave_options(command: Command) -> Command:
    """Add the options that select a datastack of a CAVE server, and a timestamp, to a command."""
    version = click.option("--version", "version", type=int, metavar="N", help="Materialization version to show.")
    return datastack_options(version(timestamp_option(command)))


def datastack_client(datastack: str | None, server: str | None) -> CAVEclient:
    """Return the CAVEclient of a datastack, or None without a datastack."""
    if datastack is None:
        if server is not None:
            raise ValueError("--server needs --datastack, the name of a datastack on it.")
        return None
    from imagery_dask.client.cave_queries import open_cave

    return open_cave(datastack, server)


def source_client(
    datastack: str | None, server: str | None, version: int | None, timestamp: str | None, **options: Any
) -> ImageryClient:
    """Return the client that the options select; `options` are keywords of `ImageryClient`."""
    from imagery_dask.client import ImageryClient

    if version is not None and datastack is None:
        raise ValueError(f"--version needs --datastack: version={version} needs a CAVEclient, which that makes.")
    if version is not None and timestamp is not None:
        raise ValueError("Give --version or --timestamp, not both.")
    client = datastack_client(datastack, server)
    return ImageryClient(client, version=version, timestamp=parsed_moment(timestamp), **options)


def parsed_moment(timestamp: str | None) -> str | float | None:
    """Return a timestamp of the command line: a number where it is one."""
    # Eight digits are a date in ISO 8601 basic format (20240131), not seconds since 1970.
    if timestamp is not None and timestamp.replace(".", "", 1).isdigit() and len(timestamp) != 8:
        return float(timestamp)
    return timestamp
