"""Add a version to a store: the roots of its supervoxels at another moment; and remove one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from imagery_dask.cards import Card
from imagery_dask.client.cave_queries import open_cave, version_moment
from imagery_dask.config import config
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.writer_arguments import describe_run
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.model.moments import Moment, describe_moment, resolve_moment
from imagery_dask.records.runs import records_of, runs_in
from imagery_dask.run import RunReport
from imagery_dask.sources.graph.root_tables import column_of_layer
from imagery_dask.versions.create_store import VersionsReport, checked_layers
from imagery_dask.versions.recorded import find, name_of, names_of_tables, recorded_in
from imagery_dask.versions.split_supervoxels import follow_splits, splits_since
from imagery_dask.versions.store_places import StorePlaces, moment_of
from imagery_dask.versions.tables.root_changes import Lookup, choose_lookup
from imagery_dask.versions.tables.root_table import RootsTable
from imagery_dask.versions.tables.table_export import write_table
from imagery_dask.versions.tables.table_target import remove_pieces

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
    split_chunks : int
        Graph chunks whose supervoxels were split, which are read again first.
    stop_layers : tuple of int
        Layers whose ids are recorded too.
    """

    store: StorePlaces
    query: RootQuery
    lookup: Lookup
    split_chunks: int = 0
    stop_layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the version."""
        return name_of(self.query.version, self.query.timestamp)

    def rows(self) -> list[tuple[str, str]]:
        """Return the table that is printed, as labels and text."""
        lookup, split, most = self.lookup, self.split_chunks, config.get("graph.batch_ids")
        # Each row group is asked for by itself.
        requests = min(lookup.ids, sum(-(-rows // most) for rows in self.store.supervoxels.open().group_rows))
        return [
            ("to", self.store.roots(self.name).url),
            ("version", f"{self.name}, {describe_moment(self.query.timestamp)}"),
            ("how", "full lookup" if lookup.made_from is None else f"delta from {lookup.made_from}"),
            ("ids to send", f"{lookup.ids:,} of {lookup.of:,}"),
            ("requests", f"{lookup.requests:,} were made to find that out, at most {requests:,} more"),
            *([("why", lookup.why)] if lookup.why else []),
            *(
                ("layer", f"{layer}: the same again, or all ids if {lookup.made_from or 'nothing'} does not have it")
                for layer in self.stop_layers
            ),
            *([("to read again", f"{split:,} graph chunks with split supervoxels")] if split else []),
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
    stop_layers: Sequence[int] = (),
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
    stop_layers : sequence of int
        Layers whose ids are recorded beside the roots, 2 for L2 ids: `VersionStore.at` returns them by `stop_layer`.
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
    return write_version(store, *find_version(store, version, timestamp, client), options, stop_layers)


def plan_version(
    url: str | os.PathLike[str],
    *,
    version: int | None = None,
    timestamp: Moment = None,
    stop_layers: Sequence[int] = (),
    client: CAVEclient | None = None,
) -> PlannedVersion:
    """Find out what adding a version takes: how many ids are sent. Nothing is written.

    Parameters
    ----------
    url, version, timestamp, stop_layers, client
        As for `add_version`.

    Returns
    -------
    PlannedVersion
        Prints as a table; ``lookup.ids`` is the number of ids to send, of ``lookup.of``.
    """
    store = StorePlaces(url)
    version, moment = find_version(store, version, timestamp, client)
    facts = store.facts
    layers = checked_layers(facts.graph, stop_layers)
    splits = splits_since(store, facts, moment, int(time.time()))
    split_chunks = 0 if splits is None else len(splits.chunks)
    return replace(_planned(store, version, moment), split_chunks=split_chunks, stop_layers=layers)


def write_version(
    store: StorePlaces, version: int | None, timestamp: int, options: RunOptions, stop_layers: Sequence[int] = ()
) -> VersionsReport:
    """Add a version to a store, with a moment that is known."""
    name = name_of(version, timestamp)
    facts = store.facts
    layers = checked_layers(facts.graph, stop_layers)
    with store.lease():
        table = store.roots(name)
        if table.exists:
            found = find(store.url, name)
            if found.timestamp != timestamp:
                raise ValueError(
                    f"{store.url} has version {name} at {describe_moment(found.timestamp)}, and the server says "
                    f"{describe_moment(timestamp)}: it is of another datastack. Remove it first (versions remove)."
                )
            absent = [layer for layer in layers if column_of_layer(layer) not in found.about.columns]
            if absent:
                raise ValueError(
                    f"{store.url} has version {name} without layer {absent[0]}. Remove it first (versions remove), and "
                    "add it again."
                )
            remove_pieces(table)  # of a process that was killed at the end
            return VersionsReport(store.url, name, {}, (f"{store.url} has version {name} already.",))
        stages: dict[str, RunReport] = {}
        notes: list[str] = []
        splits = splits_since(store, facts, timestamp, int(time.time()))
        if splits is not None:
            stages["volume"] = follow_splits(store, facts, splits, options)
            notes.append(f"Supervoxels were split: {len(splits.chunks):,} graph chunks were read again.")
        planned = _planned(store, version, timestamp)
        roots = RootsTable(table, store.supervoxels, planned.query, planned.lookup, store.roots, layers)
        remove_runs(store, name, other_than=roots)
        stages["roots"] = write_table(roots, options)
    return VersionsReport(store.url, name, stages, (*notes, f"{planned.lookup}."))


def _planned(store: StorePlaces, version: int | None, timestamp: int) -> PlannedVersion:
    """Return how the roots of a version are found, from those of the version with the nearest moment."""
    facts, name = store.facts, name_of(version, timestamp)
    query = RootQuery(facts.graph, timestamp, None, MAX_REQUESTS, version)
    known = [one for one in recorded_in(store.url) if one.name != name]
    if not known:
        rows = store.supervoxels.open().rows
        return PlannedVersion(store, query, Lookup(rows, rows, why="there is no other version"))
    nearest = min(known, key=lambda one: abs(one.timestamp - timestamp))
    lookup = choose_lookup(store.supervoxels, store.roots(nearest.name), nearest.name, nearest.timestamp, query)
    return PlannedVersion(store, query, lookup)


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
        names = names_of_tables(store.url)
        # A table that is damaged is removed by its name; it is not opened.
        number, moment = moment_of(version, timestamp)
        name = name_of(number, moment or 0)
        if name not in names:
            name = find(store.url, version, timestamp).name
        if len(names) == 1:
            raise ValueError(
                f"{name} is the only version of {store.url}: without it, nothing can be read. Remove the folder to "
                "remove the store."
            )
        store.roots(name).remove()
        remove_records(store, name)
    return name


def remove_runs(store: StorePlaces, name: str, other_than: RootsTable) -> None:
    """Remove runs of a version that were interrupted and cannot go on: the store has other supervoxels since."""
    files = records_of(store.roots(name).url)
    for run in [] if files is None else runs_in(files):
        if run.plan.get("decides") != other_than.fingerprint_fields:
            run.records.remove()


def remove_records(store: StorePlaces, name: str) -> None:
    """Remove the records of a version that was removed."""
    files = records_of(store.roots(name).url)
    if files is None:
        return
    files.delete(list(files.names()))
    if (folder := files.folder) is not None and folder.is_dir():
        for inner in [*folder.iterdir(), folder]:
            inner.rmdir()
