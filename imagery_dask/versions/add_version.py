"""Add a version to a store: the roots of its supervoxels at another moment; and remove one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from imagery_dask.cards import Card
from imagery_dask.client.cave_queries import open_cave, version_moment
from imagery_dask.config import config
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.writer_arguments import describe_run
from imagery_dask.model.chunkedgraph import GRAPHENE, RootQuery
from imagery_dask.model.moments import Moment, describe_moment, resolve_moment
from imagery_dask.records.runs import records_of
from imagery_dask.run import RunReport
from imagery_dask.sources import open_volume
from imagery_dask.versions.create_store import VersionsReport
from imagery_dask.versions.recorded import find, names_of_tables, recorded_in
from imagery_dask.versions.store_places import StorePlaces, moment_of, name_of
from imagery_dask.versions.tables.root_changes import Lookup, choose_lookup
from imagery_dask.versions.tables.root_table import RootsTable
from imagery_dask.versions.tables.table_export import write_table
from imagery_dask.versions.tables.table_target import remove_pieces
from imagery_dask.versions.version_store import check_splits

if TYPE_CHECKING:
    from caveclient import CAVEclient

__all__ = ["PlannedVersion", "add_version", "find_version", "plan_version", "remove_version", "write_version"]

MAX_REQUESTS = 32


@dataclass(frozen=True)
class PlannedVersion:
    """A version to add, and what that takes.

    Parameters
    ----------
    store : StorePlaces
        Where.
    query : RootQuery
        Graph, moment and version.
    lookup : Lookup
        How its roots are found.
    """

    store: StorePlaces
    query: RootQuery
    lookup: Lookup

    @property
    def name(self) -> str:
        """Name of the version."""
        return name_of(self.query.version, self.query.timestamp)

    def rows(self) -> list[tuple[str, str]]:
        """Return the table that is printed, as labels and text."""
        lookup, most = self.lookup, config.get("graph.batch_ids")
        groups = self.store.supervoxels.open().group_rows
        least = -(-lookup.ids // most) if lookup.ids else 0
        requests = least if lookup.made_from is None else min(least + len(groups) - 1, lookup.ids)
        return [
            ("to", self.store.roots(self.name).url),
            ("version", f"{self.name}, {describe_moment(self.query.timestamp)}"),
            ("how", "full lookup" if lookup.made_from is None else f"delta from {lookup.made_from}"),
            ("ids to send", f"{lookup.ids:,} of {lookup.of:,}"),
            ("requests", f"{lookup.requests:,} were made to find that out, at most {requests + len(groups):,} more"),
            *([("why", lookup.why)] if lookup.why else []),
        ]

    def __repr__(self) -> str:
        return Card("PlannedVersion", self.rows()).text()

    def _repr_html_(self) -> str:
        return Card("PlannedVersion", self.rows()).html()


@describe_run
def add_version(
    url: str | os.PathLike[str],
    *,
    version: int | None = None,
    timestamp: Moment = None,
    client: CAVEclient | None = None,
    max_requests: int | None = None,
    cluster: Any = None,
    workers: int | Literal["auto"] | None = None,
    max_workers: int | None = None,
    progress: bool | Callable[[RunReport], None] = True,
) -> VersionsReport:
    """Add a version to a store: look up the roots of its supervoxels at a later or earlier moment.

    Only supervoxels are looked up whose roots have changed since the version with the nearest moment, if the server
    says which these are. No voxel is read. The same call resumes after an interruption.

    Parameters
    ----------
    url : str or path
        The store.
    version : int, optional
        Materialization version.
    timestamp : datetime, str or number, optional
        Moment, in place of a version; by default now.
    client : caveclient.CAVEclient, optional
        Tells when versions were made; by default a new one of the datastack that the store is of.
    {parameters}

    Returns
    -------
    VersionsReport
        Prints as a table.

    Raises
    ------
    ValueError
        The version does not exist, or the store does not know its datastack.
    SourceError
        There is no store at `url`.
    TargetBusyError
        Another process is writing to the store.
    AccessRefusedError, ServerError, BlockFailedError
        The server of the graph refuses access, or does not answer. Call again to resume.
    """
    options = RunOptions(
        cluster=cluster, workers=workers, max_workers=max_workers, progress=progress, max_requests=max_requests
    )
    store = StorePlaces(url)
    return write_version(store, *find_version(store, version, timestamp, client), options)


def plan_version(
    url: str | os.PathLike[str],
    *,
    version: int | None = None,
    timestamp: Moment = None,
    client: CAVEclient | None = None,
) -> PlannedVersion:
    """Find out what adding a version takes: how many ids are sent. Nothing is written.

    Parameters
    ----------
    url, version, timestamp, client
        As for `add_version`.

    Returns
    -------
    PlannedVersion
        Prints as a table; ``lookup.ids`` is the number of ids to send, of ``lookup.of``.
    """
    store = StorePlaces(url)
    return _planned(store, *find_version(store, version, timestamp, client))


def write_version(store: StorePlaces, version: int | None, timestamp: int, options: RunOptions) -> VersionsReport:
    """Add a version to a store, with a moment that is known."""
    name = name_of(version, timestamp)
    _ = store.facts  # there is a store
    with store.lease():
        table = store.roots(name)
        if table.exists:
            found = find(store.url, name)
            if found.timestamp != timestamp:
                raise ValueError(
                    f"{store.url} has version {name} at {describe_moment(found.timestamp)}, and the server says "
                    f"{describe_moment(timestamp)}: it is of another datastack. Remove it first (versions remove)."
                )
            remove_pieces(table)  # of a process that was killed at the end
            return VersionsReport(store.url, name, {}, (f"{store.url} has version {name} already.",))
        planned = _planned(store, version, timestamp)
        roots = RootsTable(table, store.supervoxels, planned.query, planned.lookup, store.roots)
        report = write_table(roots, options)
    return VersionsReport(store.url, name, {"roots": report}, (f"{planned.lookup}.",))


def _planned(store: StorePlaces, version: int | None, timestamp: int) -> PlannedVersion:
    """Return how the roots of a version are found, from those of the version with the nearest moment."""
    facts, name = store.facts, name_of(version, timestamp)
    graph = facts.graph
    # Which refuses a graph that this program cannot read any more, and a server that does not answer.
    check_splits(open_volume(f"{GRAPHENE}{graph.server}/segmentation/table/{graph.table}", fresh=True).layer)
    query = RootQuery(graph, timestamp, None, MAX_REQUESTS, version)
    known = [one for one in recorded_in(store.url) if one.name != name]
    if not known:
        rows = store.supervoxels.open().rows
        return PlannedVersion(store, query, Lookup(rows, rows, why="there is no other version"))
    nearest = min(known, key=lambda one: abs(one.timestamp - timestamp))
    return PlannedVersion(
        store, query, choose_lookup(store.roots(nearest.name), nearest.name, nearest.timestamp, query)
    )


def find_version(
    store: StorePlaces, version: int | None, timestamp: Moment, client: CAVEclient | None
) -> tuple[int | None, int]:
    """Return a version and its moment, which the server tells; now if neither is given."""
    version, moment = moment_of(version, timestamp)
    if moment is not None:
        return version, moment
    if version is None:
        return None, resolve_moment(None)
    facts = store.facts
    if client is None:
        if facts.datastack is None:
            raise ValueError(
                f"{store.url} was made of a graph, without a datastack, so that it is not known when version {version} "
                "was made. Give a timestamp, or a client (--datastack)."
            )
        client = open_cave(facts.datastack, facts.cave_server)
    return version, version_moment(client, version)


def remove_version(url: str | os.PathLike[str], *, version: int | None = None, timestamp: Moment = None) -> str:
    """Remove a version of a store; its supervoxels and other versions stay.

    Parameters
    ----------
    url : str or path
        The store.
    version, timestamp
        The version, or its moment.

    Returns
    -------
    str
        Name of the version.

    Raises
    ------
    ValueError
        The store has no such version, or no other one.
    TargetBusyError
        Another process is writing to the store.
    """
    store = StorePlaces(url)
    _ = store.facts
    with store.lease():
        found = find(store.url, version, timestamp)
        if len(names_of_tables(store.url)) == 1:
            raise ValueError(
                f"{found.title} is the only version of {store.url}: without it, nothing can be read. Remove the folder "
                "to remove the store."
            )
        table = store.roots(found.name)
        table.remove()
        remove_records(store, found.name)
    return found.name


def remove_records(store: StorePlaces, name: str) -> None:
    """Remove the records of a version that was removed."""
    files = records_of(store.roots(name).url)
    if files is None:
        return
    files.delete(list(files.names()))
    if (folder := files.folder) is not None and folder.is_dir():
        for inner in [*folder.iterdir(), folder]:
            inner.rmdir()
