"""Check a version store: its tables against their hashes, each other, the voxels, and the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagery_dask.annotations import Array
from imagery_dask.cards import Card
from imagery_dask.cluster import cores
from imagery_dask.errors import SourceError
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.model.graph_ids import SupervoxelIds
from imagery_dask.sources import look_up_roots
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.validate import whole_number
from imagery_dask.versions.create_store import supervoxel_table
from imagery_dask.versions.recorded import names_of_tables, recorded
from imagery_dask.versions.store_places import StorePlaces
from imagery_dask.versions.tables.root_table import HASHED
from imagery_dask.versions.tables.supervoxel_table import BOX, COLUMNS, ROW
from imagery_dask.versions.tables.table_files import ColumnsHash, TableFile, groups_of
from imagery_dask.versions.version_store import StoreFacts

__all__ = ["VersionsCheck", "verify_versions"]

ID = "supervoxel"


@dataclass
class VersionsCheck:
    """What was found in a store.

    Parameters
    ----------
    url : str
        The store.
    tables : int
        Tables that were read whole.
    supervoxels : int
        Rows of the table of supervoxels.
    blocks : int
        Groups of graph chunks whose voxels were counted again.
    asked : int
        Roots that the server was asked for again.
    problems : list of str
        What is wrong, as sentences.
    """

    url: str
    tables: int = 1
    supervoxels: int = 0
    blocks: int = 0
    asked: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return True if nothing is wrong."""
        return not self.problems

    def rows(self) -> list[tuple[str, str]]:
        """Return the table that is printed, as labels and text."""
        asked = f"{self.asked:,} roots asked for again" if self.asked else "not asked"
        return [
            ("tables", f"{self.tables:,} read whole"),
            ("supervoxels", f"{self.supervoxels:,}; voxels of {self.blocks:,} blocks counted again"),
            ("server", asked),
            *(("problem", problem) for problem in self.problems),
        ]

    def __repr__(self) -> str:
        return Card(f"VersionsCheck: {self.url}: {'ok' if self.ok else 'DAMAGED'}", self.rows()).text()


def verify_versions(
    url: str | os.PathLike[str], *, sample: float = 1.0, live: int = 0, seed: int | None = None
) -> VersionsCheck:
    """Read a store back: the hash of each table, supervoxels against voxels, and a few roots against the server.

    Parameters
    ----------
    url : str or path
        The store.
    sample : float
        Share of the blocks whose voxels are counted again.
    live : int
        Supervoxels of each version whose roots the server is asked for again; 0 needs no server.
    seed : int, optional
        Of the random choice of blocks and supervoxels.

    Returns
    -------
    VersionsCheck
        ``ok``, and the ``problems``.

    Raises
    ------
    SourceError
        There is no store at `url`.
    """
    whole_number("live", live, least=0)
    store, random = StorePlaces(url), np.random.default_rng(seed)
    facts, check = store.facts, VersionsCheck(store.url)
    with clear_errors(store.url):
        supervoxels = store.supervoxels
        check.problems += _wrong_table(supervoxels, facts.ids, list(COLUMNS))
        compared = not check.problems
        if compared:
            check.supervoxels = supervoxels.open().rows
        for name in names_of_tables(store.url):
            table = store.roots(name)
            problems = list(_wrong_version(store.url, name, facts)) or list(_wrong_table(table, facts.ids, HASHED))
            check.tables += 1
            if compared and not problems and not _has_all(table, supervoxels):
                problems.append(f"{table.url} does not have all supervoxels of {supervoxels.url}.")
            if live and not problems:
                version = recorded(store.url, name)
                query = RootQuery(facts.graph, version.timestamp, None, version=version.version)
                check.asked += min(live, table.open().rows)
                problems += _wrong_roots(table, query, live, random)
            check.problems += problems
        if compared:
            check.problems += _wrong_counts(store, facts, check, sample, random)
    return check


def _wrong_version(url: str, name: str, facts: StoreFacts) -> Iterator[str]:
    try:
        said = recorded(url, name).table.facts
    except SourceError as error:
        yield str(error)
        return
    if said["table"] != facts.graph.table:
        yield f"{url} is of the graph {facts.graph.table}, and its version {name} of {said['table']}."


def _wrong_table(table: TableFile, layout: SupervoxelIds, hashed: list[str]) -> Iterator[str]:
    found, rows, last = ColumnsHash(hashed), 0, -1
    try:
        opened = table.open()
        for group in groups_of(opened, list(dict.fromkeys((*opened.columns, *hashed)))):
            found.add(group)
            ids = group["supervoxel"]
            if int(ids[0]) <= last or (ids[1:] <= ids[:-1]).any():
                yield f"{table.url} is not sorted by supervoxel."
            if not np.array_equal(group["chunk"], layout.chunks_of(ids)):
                yield f"{table.url} has other graph chunks than its supervoxels."
            rows, last = rows + len(ids), int(ids[-1])
    except SourceError as error:
        yield str(error)
        return
    if found.hexdigest() != opened.facts.get("hash") or rows != opened.facts.get("rows"):
        yield f"{table.url} is not as it was written: its hash, or its number of rows, differs."


def _has_all(table: TableFile, supervoxels: TableFile) -> bool:
    """Return True if a version has all supervoxels of a store; it may have others, which were split since."""
    opened = table.open()
    return all(opened.rows_of(group[ID])[0].all() for group in groups_of(supervoxels.open(), [ID]))


def _wrong_roots(table: TableFile, query: RootQuery, live: int, random: np.random.Generator) -> Iterator[str]:
    """Compare the roots of some supervoxels, chosen at random, with the server's."""
    opened = table.open()
    starts = np.cumsum([0, *opened.group_rows])
    chosen = np.sort(random.choice(starts[-1], min(live, int(starts[-1])), replace=False))
    for group in np.unique(np.searchsorted(starts, chosen, side="right") - 1):
        rows = opened.group(int(group), HASHED)
        at = chosen[(chosen >= starts[group]) & (chosen < starts[group + 1])] - starts[group]
        wrong = look_up_roots(query, rows["supervoxel"][at]) != rows["root"][at]
        if wrong.any():
            first = int(rows["supervoxel"][at][wrong][0])
            yield f"{table.url}: the server has other roots for {int(wrong.sum())} of {len(at)} supervoxels ({first})."


def _wrong_counts(
    store: StorePlaces, facts: StoreFacts, check: VersionsCheck, sample: float, random: np.random.Generator
) -> list[str]:
    """Compare the table of supervoxels with the voxels of some blocks."""
    try:
        export = supervoxel_table(store, facts)
    except SourceError as error:
        return [str(error)]
    blocks = export.blocks()
    chosen = random.permutation(len(blocks))[: max(1, round(sample * len(blocks)))]
    check.blocks = len(chosen)
    # Rows without voxels are found too: a shard that is lost has no supervoxels.
    inside = np.zeros(len(blocks) + 1, np.int64)
    for group in groups_of(store.supervoxels.open(), BOX):
        inside += np.bincount(_blocks_around(group, blocks, facts) + 1, minlength=len(inside))

    def wrong(number: int) -> str | None:
        _, region = blocks[number]
        try:
            rows = export.counted(region)
        except SourceError as error:
            return str(error)
        known = stored_rows(store.supervoxels, rows["supervoxel"])
        if len(known) == len(rows):
            own = _blocks_around(known, blocks, facts) == number
            if (
                np.array_equal(known[own], rows[own])
                and own.sum() == inside[number + 1]
                and (known["voxels"] >= rows["voxels"]).all()
            ):
                return None
        box = ", ".join(f"{part.start}..{part.stop}" for part in region)
        return f"{store.supervoxels.url} does not agree with the voxels {box} of {store.volume}."

    with ThreadPoolExecutor(cores()) as threads:
        return [problem for problem in threads.map(wrong, chosen.tolist()) if problem is not None]


def _blocks_around(rows: Any, blocks: BlockPlan, facts: StoreFacts) -> Array:
    """Return the number of the block that holds all of a supervoxel, for each row; -1 where none does."""
    first, last = [], []
    for axis, edges in enumerate(blocks.edges):
        edge = np.array(edges) + facts.bounds[0][axis]
        first.append(np.searchsorted(edge, rows[BOX[axis]], side="right") - 1)
        last.append(np.searchsorted(edge, rows[BOX[axis + 3]], side="left") - 1)
    numbers = np.ravel_multi_index(tuple(first), tuple(blocks.counts), mode="clip", order="F")
    return np.where((np.array(first) == np.array(last)).all(axis=0), numbers, -1)


def stored_rows(table: TableFile, ids: Array) -> Array:
    """Return the rows that a table has of supervoxels (ascending)."""
    names = list(ROW.names or ())
    known, columns = table.open().rows_of(ids, names[1:])
    rows = np.zeros(len(ids), ROW)
    for name, values in {"supervoxel": ids, **columns}.items():
        rows[name] = values
    return np.asarray(rows[known])
