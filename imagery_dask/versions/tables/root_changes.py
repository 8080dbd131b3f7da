"""Which roots have changed between two moments, by ``delta_roots``, and which supervoxels need to be looked up again.

A supervoxel whose root at one moment did not end before a later moment has the same root then. So from the roots at one
moment follow those at another, if the few supervoxels are looked up whose roots ended (for a later moment), or had not
begun (for an earlier one); and those without a root. Roots that were made with the graph, and not by an edit, are in no
list: moments before the first edit are looked up in full.

Services differ in what they say of an interval. All say which roots of its beginning ended in it (``old_roots``), and
which roots of its end began in it (``new_roots``); some also list those that began and ended inside. Some count edits
at exactly the end of the interval, others do not. Edits have times in milliseconds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from imagery_dask.errors import AccessRefusedError, ServerError, SourceNotFoundError
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.model.moments import as_unix_seconds, describe_moment
from imagery_dask.sources.graph.graph_server import graph_server
from imagery_dask.sources.graph.root_tables import IdTable
from imagery_dask.sources.requests.throttle import request_slots
from imagery_dask.versions.tables.table_files import TableFile, groups_of

__all__ = ["Lookup", "changed_roots", "choose_lookup"]

Ids = NDArray[np.uint64]
MILLISECOND = 0.001
# An interval that a server refuses is halved so often, each half in a request of its own.
HALVINGS = 5
ATTEMPTS = 2
_logger = logging.getLogger("imagery_dask")


@dataclass(frozen=True, slots=True)
class Lookup:
    """How the roots of a version are found.

    Parameters
    ----------
    ids, of : int
        Supervoxels that are sent to the server, and all supervoxels.
    made_from : str or None
        Version from which all others are taken; None if all are sent.
    changed : ndarray of uint64
        Roots of `made_from` whose supervoxels are sent, ascending.
    requests : int
        Requests to find that out.
    why : str
        Why all are sent; "" otherwise.
    """

    ids: int
    of: int
    made_from: str | None = None
    changed: Ids = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    requests: int = 0
    why: str = ""

    def __str__(self) -> str:
        if self.made_from is None:
            return f"full lookup: {self.ids:,} ids to send" + (f" ({self.why})" if self.why else "")
        return f"delta from {self.made_from}: {self.ids:,} of {self.of:,} ids to send"


def choose_lookup(supervoxels: TableFile, table: TableFile, name: str, timestamp: int, query: RootQuery) -> Lookup:
    """Return how the roots of a query are found from those of a version, which takes a few requests.

    Parameters
    ----------
    supervoxels : TableFile
        The table of supervoxels.
    table : TableFile
        Roots of the version.
    name, timestamp
        Its name and moment.
    query : RootQuery
        The graph and the other moment.
    """
    known = table.open()
    of = supervoxels.open().rows
    try:
        if query.timestamp < timestamp and (since := oldest_moment(query)) > query.timestamp:
            why = f"edits are known since {describe_moment(since)}, which is later"
            return Lookup(of, of, requests=1, why=why)
        changed, requests = changed_roots(query, timestamp)
    except (ServerError, SourceNotFoundError) as error:
        return Lookup(of, of, why=f"the server does not say which roots changed since {name}: {error}")
    groups = groups_of(supervoxels.open(), ["supervoxel"])
    ids = sum(int(known_roots(known, group["supervoxel"], changed)[1].sum()) for group in groups)
    if ids >= of:
        return Lookup(of, of, requests=requests, why=f"all roots have changed since {name}")
    return Lookup(ids, of, name, changed, requests)


def known_roots(table: IdTable, ids: Ids, changed: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    """Return the roots of supervoxels in the table of another moment, and for which of them the server is asked."""
    known, columns = table.rows_of(ids)
    roots: Ids = columns["root"]
    return roots, np.asarray(~known | np.isin(roots, changed) | (roots == 0))


def oldest_moment(query: RootQuery) -> float:
    """Return the moment since which a graph has edits, in seconds since 1970; its first roots may be as young."""
    graph = query.graph
    answer = graph_server(graph.server).get_json(f"/segmentation/api/v1/table/{graph.table}/oldest_timestamp")
    try:
        return as_unix_seconds(answer["iso"])
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"{graph.server} does not say since when {graph.table} has edits: {answer!r}") from error


def changed_roots(query: RootQuery, known: int) -> tuple[Ids, int]:
    """Return the roots at a known moment that the moment of a query does not have, and others; and the requests made.

    Raises
    ------
    ServerError, SourceNotFoundError
        The server does not answer, not even for short intervals.
    """
    wanted = query.timestamp
    if wanted == known:
        return np.zeros(0, np.uint64), 0
    if wanted > known:
        # Roots that began at exactly `known` are of that moment: the interval begins after it.
        return _listed(query, [(known + MILLISECOND, wanted + MILLISECOND)], "old_roots")
    # Edits at exactly `known`, which some services leave out of the first interval; a longer one would leave out
    # roots that ended a moment later.
    changed, requests = _listed(query, [(wanted, known), (known, known + MILLISECOND)], "new_roots")
    return changed, requests + 1  # that of `oldest_moment`


def _listed(query: RootQuery, intervals: list[tuple[float, float]], key: str) -> tuple[Ids, int]:
    graph, requests = query.graph, 0
    server, path = graph_server(graph.server), f"/segmentation/api/v1/table/{graph.table}/delta_roots"

    def ask(past: float, future: float, halvings: int) -> list[Ids]:
        nonlocal requests
        requests += 1
        # As decimals, which a float that is printed may not be.
        params = {"timestamp_past": f"{past:.3f}", "timestamp_future": f"{future:.3f}"}
        try:
            with request_slots(graph.server, query.max_requests):
                answer = server.get_json(path, params, attempts=ATTEMPTS)
            return [np.array([int(value) for value in answer[key]], np.uint64)]
        except AccessRefusedError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{graph.server}{path} answers without a list of {key}: {error!r}") from error
        except ServerError as error:
            if not halvings or future - past < 2:
                raise
            _logger.info("%s: %s. Half of the interval is asked for.", describe_moment(past), error)
            middle = round((past + future) / 2)
            return [*ask(past, middle, halvings - 1), *ask(middle, future, halvings - 1)]

    lists = [part for past, future in intervals for part in ask(past, future, HALVINGS)]
    return np.unique(np.concatenate(lists)), requests
