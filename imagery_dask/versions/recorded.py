"""The versions that a store has: its tables of root ids, found by materialization version, moment or name."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from imagery_dask.errors import SourceError, SourceNotFoundError
from imagery_dask.model.moments import as_unix_seconds, describe_moment, resolve_moment
from imagery_dask.sources.graph.root_tables import IdTable, id_table
from imagery_dask.sources.graph.table_footers import TableFacts, table_facts
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.urls import redacted
from imagery_dask.validate import integer
from imagery_dask.versions.version_store import ROOTS

__all__ = ["Recorded", "Version", "find", "name_of", "names_of_tables", "recorded", "recorded_in"]

#: A materialization version, a moment, or the name of a table.
Version = int | str | datetime

ENDING = ".parquet"
NEAREST = 2
FOOTERS_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class Recorded:
    """A version of a store.

    Parameters
    ----------
    url : str
        Its table.
    name : str
        Name of the table without its ending: the materialization version, or the moment.
    version : int or None
        Materialization version.
    timestamp : int
        Moment, in whole seconds since 1970.
    about : TableFacts
        What the table says of itself.
    """

    url: str
    name: str
    version: int | None
    timestamp: int
    about: TableFacts = field(compare=False, repr=False)

    @property
    def table(self) -> IdTable:
        """The table, opened once per process."""
        return id_table(self.url)

    @property
    def title(self) -> str:
        """What people call it."""
        return describe_moment(self.timestamp) if self.version is None else f"version {self.version}"


def name_of(version: int | None, timestamp: int) -> str:
    """Return the name of a version: its number, or its moment without the colons, which file names cannot have.

    Examples
    --------
    >>> name_of(1078, 1_700_000_000), name_of(None, 1_700_000_000)
    ('1078', '2023-11-14T22-13-20Z')
    """
    return describe_moment(timestamp).replace(":", "-") if version is None else str(version)


def names_of_tables(url: str) -> list[str]:
    """Return the names of the tables of a store."""
    files = Files.at(url)
    with clear_errors(files.url):
        names = list(files.names(f"{ROOTS}/"))
    own = (name.removeprefix(f"{ROOTS}/") for name in names)
    return sorted(name.removesuffix(ENDING) for name in own if name.endswith(ENDING) and not name.startswith("."))


def recorded_in(url: str) -> list[Recorded]:
    """Return the versions of a store, earliest first; this reads the footer of each table, and opens none."""
    with ThreadPoolExecutor(FOOTERS_IN_FLIGHT) as threads:
        found = list(threads.map(lambda name: recorded(url, name), names_of_tables(url)))
    return sorted(found, key=lambda one: (one.timestamp, one.version or 0))


def find(url: str, version: Version | None = None, timestamp: Any = None) -> Recorded:
    """Return the recorded version that a caller means.

    Parameters
    ----------
    url : str
        The store.
    version : int, str or datetime, optional
        A materialization version, the name of a table, or a moment.
    timestamp : datetime, str or number, optional
        A moment, in place of `version`.

    Raises
    ------
    ValueError
        If both or neither are given, or there is no such version; the message names the nearest ones.
    TypeError
        If an argument is something else.
    """
    if (version is None) == (timestamp is None):
        raise ValueError(f"Give one of version and timestamp; got version={version!r} and timestamp={timestamp!r}.")
    if timestamp is not None:
        return _at_moment(url, timestamp)
    if isinstance(version, str) and version.strip().isdecimal():
        version = int(version)
    if isinstance(version, datetime | np.datetime64):
        return _at_moment(url, version)
    if isinstance(version, str):
        if version in names_of_tables(url):
            return recorded(url, version)
        return _at_moment(url, version)
    number = integer("version", version)
    try:
        return recorded(url, str(number))  # without a list, which servers of files do not have
    except SourceNotFoundError:
        versions = [one for one in recorded_in(url) if one.version is not None]
        nearest = sorted(versions, key=lambda one: abs((one.version or 0) - number))[:NEAREST]
        raise _absent(url, f"version {number}", nearest, f"--version {number}") from None


def _at_moment(url: str, timestamp: Any) -> Recorded:
    seconds = as_unix_seconds(timestamp, "timestamp")
    moment, versions = resolve_moment(seconds), recorded_in(url)
    same = [one for one in versions if one.timestamp == moment]
    if same:
        return same[-1]
    before = [one for one in versions if one.timestamp < moment][-1:]
    after = [one for one in versions if one.timestamp > moment][:1]
    text = describe_moment(moment)
    raise _absent(url, f"the moment {text}", before + after, f"--timestamp {text}")


def _absent(url: str, what: str, nearest: Sequence[Recorded], flag: str) -> ValueError:
    def named(one: Recorded) -> str:
        moment = describe_moment(one.timestamp)
        return moment if one.version is None else f"version {one.version} ({moment})"

    have = f"The nearest are {' and '.join(map(named, nearest))}." if nearest else "It has none near it."
    return ValueError(
        f"{redacted(url)} has no record of {what}. {have} 'imagery-dask versions add {redacted(url)} {flag}' adds it."
    )


def recorded(url: str, name: str) -> Recorded:
    """Return the version whose table has a name.

    Raises
    ------
    SourceNotFoundError, SourceError
        There is no such table, or it is of something else.
    """
    table = f"{Files.at(url).url}/{ROOTS}/{name}{ENDING}"
    about = table_facts(table)
    facts = about.facts
    version, timestamp = facts.get("version"), int(facts.get("timestamp") or 0)
    if (own := name_of(version, timestamp)) != name:
        raise SourceError(
            f"{redacted(table)!r} is the table of {own if timestamp else 'no version'}, under the name of another. "
            f"Remove version {name} and add it again."
        )
    return Recorded(table, name, version, timestamp, about)
