"""Queries to a `CAVEclient`, in the driver only: sources, resolution, token, and the timestamp of a version."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from imagery_dask.errors import REFUSED_STATUS, AccessRefusedError, OutdatedRootsError, ServerError, SourceNotFoundError
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.model.moments import describe_moment, resolve_moment
from imagery_dask.sources import cave_token, token_places
from imagery_dask.sources.files.failures import forget_request
from imagery_dask.sources.graph.graph_server import graph_server
from imagery_dask.validate import integer

if TYPE_CHECKING:
    from caveclient import CAVEclient

__all__ = ["CaveConfiguration", "StaleRoots", "check_root_ids", "open_cave", "read_cave_client", "version_moment"]

StaleRoots = Literal["error", "warn"]
IDS_NAMED = 5


@dataclass(frozen=True, slots=True)
class CaveConfiguration:
    """Values that an `ImageryClient` takes from a CAVEclient."""

    #: Paths from the info service; None for a layer that was not requested.
    image_source: str | None
    segmentation_source: str | None
    #: Viewer resolution of the datastack, nm per voxel (x, y, z).
    resolution: Any
    #: Token of the client.
    token: str | None
    #: Timestamp that the client is pinned to, in whole seconds since 1970.
    moment: int | None
    #: Materialization version that `moment` belongs to.
    version: int | None


def open_cave(datastack: str, server: str | None = None, token: str | None = None) -> CAVEclient:
    """Return a CAVEclient of a datastack that writes nothing to the home directory.

    Raises
    ------
    AccessRefusedError
        When no token is found, or the server refuses it.
    SourceNotFoundError
        When the datastack does not exist.
    ServerError
        When the server does not answer.
    """
    # Imported here because it takes a second, and only clients of a datastack need it.
    from caveclient import CAVEclient
    from caveclient.endpoints import default_global_server_address

    where = server or default_global_server_address
    host = urlsplit(where).netloc
    with _one_line_errors(f"datastack {datastack!r} at {where}", f" Tokens are read from: {token_places(host)}."):
        token = token or cave_token(host)
        return CAVEclient(datastack, server_address=server, auth_token=token, write_server_cache=False)


def read_cave_client(client: CAVEclient, imagery: bool, segmentation: bool) -> CaveConfiguration:
    """Return everything that an `ImageryClient` needs from a CAVEclient.

    Parameters
    ----------
    client : caveclient.CAVEclient
        Client of a datastack.
    imagery, segmentation : bool
        Whether to ask for the source of that layer.
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
    """Return the timestamp of a materialization version, in whole seconds since 1970.

    Raises
    ------
    ValueError
        When the version does not exist; the message lists the latest ones that do.
    """
    integer("version", version)
    with _one_line_errors(f"materialization versions of datastack {client.datastack_name!r}"):
        existing = sorted(int(number) for number in client.materialize.get_versions(expired=True))
        if int(version) not in existing:
            raise ValueError(
                f"Version {version} of datastack {client.datastack_name!r} does not exist. Existing versions: "
                f"{', '.join(map(str, existing[-10:])) or 'none'}."
            )
        return resolve_moment(client.materialize.get_timestamp(int(version)), name="version")


def check_root_ids(query: RootQuery, root_ids: Sequence[int], stale: StaleRoots) -> tuple[int, ...]:
    """Return the ids that were valid root ids at the timestamp of a query; this takes one request.

    Parameters
    ----------
    query : RootQuery
        Graph and timestamp.
    root_ids : sequence of int
        Ids to check; 0 (no object) is dropped without a check.
    stale : {"error", "warn"}
        Whether to raise or to warn if an id did not exist at the timestamp, because of an edit before or after it.

    Returns
    -------
    tuple of int
        Valid ids, in the order given.

    Raises
    ------
    ValueError
        When an id is not a root id of this graph.
    OutdatedRootsError
        When an id was not valid at the timestamp and `stale` is "error"; the message names its successors.
    """
    graph, ids = query.graph, [value for value in root_ids if value]
    invalid = [value for value in ids if not graph.is_root(value)]
    if invalid:
        raise ValueError(
            f"root_ids {_some(invalid)} are not root ids of table {graph.table!r}: root ids have the layer "
            f"{graph.layers} in their first {graph.layer_bits} bits. They may be supervoxel or L2 ids, or belong to "
            "another segmentation."
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
    omitted = f" (and {len(outdated) - IDS_NAMED} more)" if len(outdated) > IDS_NAMED else ""
    message = (
        f"root_ids: {len(outdated)} of {len(ids)} were not valid at {describe_moment(query.timestamp)}: "
        f"{named}{omitted}. Use ids that were valid then, pass the timestamp at which these were valid, or pass "
        "stale_roots='warn' to leave them out."
    )
    if stale == "error":
        raise OutdatedRootsError(message)
    warnings.warn(message, stacklevel=_callers_level())
    invalid_then = set(outdated)
    return tuple(value for value in ids if value not in invalid_then)


def _successors(server: Any, path: str, root_id: int, timestamp: int) -> str:
    """Return ``id -> successors``: the roots at a timestamp that share a lineage with an id."""
    try:
        lineage = server.post_json(
            f"{path}/lineage_graph_multiple", {"root_ids": [root_id]}, {"timestamp_future": timestamp}, attempts=1
        )  # one attempt: for an id that never existed the service answers 500
        # The lineage graph also has roots from edits after the timestamp; leave those out.
        born = {int(node["id"]) for node in lineage["nodes"] if float(node.get("timestamp", 0)) <= timestamp}
        replaced = {int(link["source"]) for link in lineage["links"] if int(link["target"]) in born}
        related = sorted(born - replaced - {root_id})
    except (ServerError, SourceNotFoundError, KeyError, TypeError):
        related = []  # the id never existed in this graph
    return f"{root_id} -> {_some(related)}" if related else f"{root_id} (no known successor)"


def _callers_level() -> int:
    """Return the ``stacklevel`` with which the calling function's warnings point outside of the package."""
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
    """Convert errors of caveclient to errors of this package, with messages of one line and without the token."""
    import requests

    try:
        yield
    except _auth_errors() as error:
        raise AccessRefusedError(
            f"Access was refused to {what}: the token is missing, invalid or expired ({_first_line(error)}).{hint}"
        ) from None
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        forget_request(error)
        if status in REFUSED_STATUS:
            raise AccessRefusedError(f"Access was refused to {what} (HTTP {status}).{hint}") from None
        if status == requests.codes.not_found:
            raise SourceNotFoundError(f"There is no {what} (HTTP 404).") from None
        raise ServerError(f"The server failed for {what} (HTTP {status}).") from None
    except requests.RequestException as error:
        forget_request(error)
        raise ServerError(f"The server of {what} does not answer: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
