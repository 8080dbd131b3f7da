"""What a `CAVEclient` says, in the driver only: sources, resolution, token, and the moment of a version."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import requests

from imagery_dask.errors import AccessRefusedError, OutdatedRootsError, ServerError, SourceNotFoundError
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.model.moments import describe_moment, resolve_moment
from imagery_dask.sources import cave_token, token_places
from imagery_dask.sources.failures import forget_request
from imagery_dask.sources.graph_server import graph_server
from imagery_dask.validate import integer

if TYPE_CHECKING:
    from caveclient import CAVEclient

__all__ = ["CaveConfiguration", "StaleRoots", "check_root_ids", "open_cave", "read_cave_client", "version_moment"]

StaleRoots = Literal["error", "warn"]
IDS_NAMED = 5


@dataclass(frozen=True, slots=True)
class CaveConfiguration:
    """What an `ImageryClient` takes from a CAVEclient.

    Parameters
    ----------
    image_source, segmentation_source : str or None
        Paths from the info service; None for a layer that is not wanted.
    resolution : array-like
        The datastack's viewer resolution, nm.
    token : str or None
        Token of the client.
    moment, version : int or None
        Whole second that the client is pinned to, and the materialization version that it is the moment of.
    """

    image_source: str | None
    segmentation_source: str | None
    resolution: Any
    token: str | None
    moment: int | None
    version: int | None


def open_cave(datastack: str, server: str | None = None, token: str | None = None) -> CAVEclient:
    """Return a CAVEclient of a datastack, which writes nothing to the home directory.

    Raises
    ------
    AccessRefusedError, SourceNotFoundError, ServerError
        When there is no token or it is refused, the datastack does not exist, or the server does not answer.
    """
    # Takes a second to import, and only clients of a datastack need it.
    from caveclient import CAVEclient
    from caveclient.endpoints import default_global_server_address

    where = server or default_global_server_address
    host = urlsplit(where).netloc
    with _one_line_errors(f"datastack {datastack!r} at {where}", f" Tokens are looked for in: {token_places(host)}."):
        token = token or cave_token(host)
        return CAVEclient(datastack, server_address=server, auth_token=token, write_server_cache=False)


def read_cave_client(client: CAVEclient, imagery: bool, segmentation: bool) -> CaveConfiguration:
    """Ask a CAVEclient for everything that an `ImageryClient` needs.

    Parameters
    ----------
    client : caveclient.CAVEclient
        The client.
    imagery, segmentation : bool
        Which layers are wanted.
    """
    with _one_line_errors(f"datastack {client.datastack_name!r} at {client.server_address}"):
        return CaveConfiguration(
            client.info.image_source() if imagery else None,
            client.info.segmentation_source() if segmentation else None,
            client.info.viewer_resolution(),
            client.auth.token,
            _pinned_moment(client),
            client.version,
        )


def version_moment(client: CAVEclient, version: int) -> int:
    """Whole second of a materialization version.

    Raises
    ------
    ValueError
        When there is no such version; the message names those that exist.
    """
    integer("version", version)
    with _one_line_errors(f"materialization versions of datastack {client.datastack_name!r}"):
        existing = sorted(int(number) for number in client.materialize.get_versions(expired=True))
        if int(version) not in existing:
            raise ValueError(
                f"Version {version} of datastack {client.datastack_name!r} does not exist; there are "
                f"{', '.join(map(str, existing[-10:])) or 'none'}."
            )
        return resolve_moment(client.materialize.get_timestamp(int(version)), name="version")


def check_root_ids(query: RootQuery, root_ids: Sequence[int], stale: StaleRoots) -> tuple[int, ...]:
    """Make sure, with one request, that ids were roots at a query's moment.

    Parameters
    ----------
    query : RootQuery
        The graph, and the moment.
    root_ids : sequence of int
        Ids that the caller asks for; 0 is no object and passes.
    stale : {"error", "warn"}
        What to do about an id that an edit has replaced, or that did not exist yet.

    Returns
    -------
    tuple of int
        Those that were.

    Raises
    ------
    ValueError
        For an id that is no root id of this graph.
    OutdatedRootsError
        For outdated ids, with their successors, when `stale` is "error".
    """
    graph, ids = query.graph, [value for value in root_ids if value]
    strangers = [value for value in ids if not graph.is_root(value)]
    if strangers:
        raise ValueError(
            f"root_ids {_some(strangers)} are no root ids of table {graph.table!r}: these have the layer "
            f"{graph.layers} in their first {graph.layer_bits} bits. They may be supervoxel or L2 ids, or of another "
            "segmentation."
        )
    if not ids:
        return ()
    path = f"/segmentation/api/v1/table/{graph.table}"
    server, at = graph_server(graph.server), {"timestamp": query.timestamp}
    latest = server.post_json(f"{path}/is_latest_roots", {"node_ids": ids}, at)["is_latest"]
    outdated = [value for value, current in zip(ids, latest, strict=True) if not current]
    if not outdated:
        return tuple(ids)
    named = "; ".join(_successors(server, path, value, query.timestamp) for value in outdated[:IDS_NAMED])
    more = f" (and {len(outdated) - IDS_NAMED} more)" if len(outdated) > IDS_NAMED else ""
    message = (
        f"root_ids: {len(outdated)} of {len(ids)} were no root ids at {describe_moment(query.timestamp)}: "
        f"{named}{more}. Take the ids of that moment, give the timestamp at which yours were valid, or pass "
        "stale_roots='warn' to go on without them."
    )
    if stale == "error":
        raise OutdatedRootsError(message)
    warnings.warn(message, stacklevel=_callers_level())
    gone = set(outdated)
    return tuple(value for value in ids if value not in gone)


def _successors(server: Any, path: str, root_id: int, timestamp: int) -> str:
    """Say which roots of a moment have to do with an id."""
    try:
        lineage = server.post_json(
            f"{path}/lineage_graph_multiple", {"root_ids": [root_id]}, {"timestamp_future": timestamp}, attempts=1
        )  # one attempt: to an id that it never had the service answers 500
        # The service follows an edit after the moment too, if what it replaced was born before.
        born = {int(node["id"]) for node in lineage["nodes"] if float(node.get("timestamp", 0)) <= timestamp}
        replaced = {int(link["source"]) for link in lineage["links"] if int(link["target"]) in born}
        related = sorted(born - replaced - {root_id})
    except (ServerError, SourceNotFoundError, KeyError, TypeError):
        related = []  # an id that the graph never had
    return f"{root_id} -> {_some(related)}" if related else f"{root_id} (no successor is known)"


def _callers_level() -> int:
    """Return the stacklevel, for the function that calls this, of the first frame outside of the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("imagery_dask."):
        level, frame = level + 1, frame.f_back
    return level


def _pinned_moment(client: CAVEclient) -> int | None:
    timestamp: datetime | None = client.timestamp
    return None if timestamp is None else resolve_moment(timestamp)


def _some(ids: Sequence[int]) -> str:
    text = ", ".join(map(str, ids[:IDS_NAMED]))
    return text if len(ids) <= IDS_NAMED else f"{text} and {len(ids) - IDS_NAMED} more"


def _auth_errors() -> tuple[type[Exception], ...]:
    """Return the error that caveclient raises for a missing or refused token, if caveclient is loaded."""
    base = sys.modules.get("caveclient.base")
    return () if base is None else (base.AuthException,)


@contextmanager
def _one_line_errors(what: str, hint: str = "") -> Iterator[None]:
    """Turn what caveclient raises into our errors, each one line and without the token."""
    try:
        yield
    except _auth_errors() as error:
        raise AccessRefusedError(
            f"Access was refused to {what}: the token is missing, wrong or has expired ({_first_line(error)}).{hint}"
        ) from None
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        kinds: dict[int, Callable[[str], Exception]] = {
            401: AccessRefusedError, 403: AccessRefusedError, 404: SourceNotFoundError,
        }  # fmt: skip
        words = {401: "Access was refused to", 403: "Access was refused to", 404: "There is no"}
        more = hint if status in (401, 403) else ""
        text = f"{words.get(status, 'The server failed for')} {what} (HTTP {status}).{more}"
        forget_request(error)
        raise kinds.get(status, ServerError)(text) from None
    except requests.RequestException as error:
        forget_request(error)
        raise ServerError(f"The server of {what} does not answer: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
