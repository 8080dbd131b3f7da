"""URLs of Neuroglancer states: read in every form that viewers write, and made for public viewers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NoReturn
from urllib.parse import parse_qs, quote, unquote, urlsplit

from numpy.typing import ArrayLike

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import ServerError
from imagery_dask.geometry.grid import ratio
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.arguments import bounds_from_center
from imagery_dask.sources.files.failures import brief, forget_request
from imagery_dask.sources.volumes.addresses import is_zarr, normalize_path
from imagery_dask.urls import is_loopback, location_of, redacted, without_secrets
from imagery_dask.validate import sizes, triple
from imagery_dask.viewer.states import GRAPHENE, Form, read_place

__all__ = ["Fetch", "bounds_from_neuroglancer", "link_of", "public_source", "read_state", "viewer_of"]

#: Public viewers by name: URL, and the form of the states that they read.
VIEWERS: dict[str, tuple[str, Form]] = {
    "neuroglancer": ("https://neuroglancer-demo.appspot.com", "present"),
    "spelunker": ("https://spelunker.cave-explorer.org", "present"),
    "flywire": ("https://ngl.flywire.ai", "old"),
    "seunglab": ("https://neuromancer-seung-import.appspot.com", "old"),
}
OLD_HOSTS = {urlsplit(url).netloc for url, form in VIEWERS.values() if form == "old"}
# What pages of other servers can read.
PUBLIC = ("gs://", "s3://", "https://", "middleauth+https://", "ngauth+https://")
# Characters that a fragment may hold as they are.
UNESCAPED = "~@#$&()*!+=:;,.?/'"
# Old viewers wrote ' for " and _ for a comma. Quoted text is kept; with "'" it has no escaped double quotes.
URL_SAFE = re.compile(r"'((?:[^'\\]|\\.)*)'|\"(?:[^\"\\]|\\.)*\"|[_&]")

#: Reads the JSON of a state from its address on a state server.
Fetch = Callable[[str], Any]


def read_state(url_or_state: object, fetch: Fetch | None = None) -> Mapping[str, Any]:
    """Return the state that a link, a JSON text or a mapping holds.

    Parameters
    ----------
    url_or_state : str or mapping
        A link with the state after ``#!``, or with the address of a state server; a state as JSON or as a mapping; or a
        `neuroglancer.ViewerState`.
    fetch : callable, optional
        Reads a state from a state server.

    Raises
    ------
    ValueError
        If the link has no state, or its state is not JSON; the message names the place.
    TypeError
        If the argument is neither.
    """
    if hasattr(url_or_state, "to_json"):
        url_or_state = url_or_state.to_json()
    if isinstance(url_or_state, Mapping):
        return url_or_state
    if not isinstance(url_or_state, str):
        raise TypeError(
            f"A Neuroglancer link is a URL, and a state is JSON or a dict; got {type(url_or_state).__name__}."
        )
    text = url_or_state.strip()
    if text.startswith("{"):
        return _parsed(text)
    parts = urlsplit(text)
    if not parts.netloc:
        raise ValueError(f"{text[:80]!r} is neither a URL, such as 'https://.../#!{{...}}', nor the JSON of a state.")
    address = parse_qs(parts.query).get("json_url", [""])[0]
    fragment = unquote(parts.fragment)
    if not address and fragment.startswith("!") and "://" in fragment.partition("{")[0]:
        address = fragment[1:]
    if address:
        return _object(_no_fetch(address) if fetch is None else fetch(address))
    if not fragment.startswith("!"):
        raise ValueError(
            f"The link {redacted(text)[:80]!r} has no state: a state follows '#!'. Copy the viewer's whole address."
        )
    return _parsed(fragment[1:])


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        return _object(json.loads(text))
    except json.JSONDecodeError as error:
        try:
            return _object(json.loads(URL_SAFE.sub(_plain, text)))
        except json.JSONDecodeError:
            near = text[max(0, error.pos - 20) : error.pos + 20]
            raise ValueError(
                f"The state of the Neuroglancer link is not JSON: {error.msg} at character {error.pos}, near {near!r}. "
                "Links that are cut off by a mail program or a chat end like this; copy the whole address."
            ) from None


def _plain(token: re.Match[str]) -> str:
    """Return a token of an old link as it is in JSON."""
    if token[0] in "_&":
        return ","
    return token[0] if token[1] is None else '"' + token[1].replace("\\'", "'").replace('"', '\\"') + '"'


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"The state of a Neuroglancer link is a JSON object; got {type(value).__name__}.")
    return value


def _no_fetch(address: str) -> NoReturn:
    raise ValueError(
        f"The link names a state on a server, {redacted(address)!r}, which is read with a token. Pass "
        "client=CAVEclient(...) of that server, or open the link and copy the state that its button {} shows."
    )


def bounds_from_neuroglancer(
    url_or_state: object, size: ArrayLike, resolution: ArrayLike | None = None, *, client: Any = None
) -> Any:
    """Return the bounds of a box around the position of a Neuroglancer link.

    Parameters
    ----------
    url_or_state : str or mapping
        A link, or its state as JSON or dict, in the present form (Neuroglancer, Spelunker) or the old one.
    size : array-like of 2 or 3 int
        Size of the box, x, y, z in voxels of `resolution`; two numbers mean one voxel in z.
    resolution : array-like of 3 numbers, optional
        Resolution of the bounds, nm per voxel (x, y, z). By default that of the link, which is also that of a client
        made by `ImageryClient.from_neuroglancer`.
    client : caveclient.CAVEclient, optional
        Reads links whose state is on its server.

    Returns
    -------
    numpy.ndarray of int64, shape (2, 3)
        Lower (inclusive) and upper (exclusive) corner, as from `bounds_from_center`: the voxel at the position is the
        middle one, for an even size the first of the upper half.

    Raises
    ------
    ValueError
        If the link is malformed; the message names the part.
    """
    extent = [int(n) for n in sizes("size", size, whole=True)]
    wanted = None if resolution is None else Vec3.of(triple("resolution", resolution, positive=True))
    place = read_place(read_state(url_or_state, None if client is None else state_server(client)))
    voxel = place.position.map(_voxel_at, place.resolution_nm, place.resolution_nm if wanted is None else wanted)
    return bounds_from_center(voxel, *extent)


def _voxel_at(position: float, own_nm: float, voxel_nm: float) -> int:
    return math.floor(Fraction(repr(position)) * ratio(own_nm, voxel_nm))


def state_server(client: Any) -> Fetch:
    """Return a function that reads states with the token of a CAVEclient, from the client's own state server.

    It raises a ValueError for a state on another server, and a ServerError if the state cannot be read.
    """

    def fetch(address: str) -> Any:
        url = address.removeprefix("middleauth+")
        own = client.state.server_address
        if urlsplit(url).netloc != urlsplit(own).netloc:
            raise ValueError(
                f"The link names a state on {urlsplit(url).netloc or redacted(address)!r}, and this client's token is "
                f"sent to {urlsplit(own).netloc!r} alone. Pass a CAVEclient of that server, or open the link and "
                "copy its state."
            )
        try:
            return client.state.get_state_json(url)
        except Exception as error:  # of requests, and those of caveclient for tokens
            forget_request(error)
            raise ServerError(f"The state {redacted(url)!r} of the link cannot be read: {brief(error)}") from None

    return fetch


# ---------------------------------------- links for public viewers


def viewer_of(viewer: str) -> tuple[str, Form]:
    """Return the URL of a viewer, given by name or URL, and the form of the states that it reads.

    Raises
    ------
    ValueError
        If it is neither a known name nor a URL.
    """
    if viewer in VIEWERS:
        return VIEWERS[viewer]
    parts = urlsplit(viewer) if isinstance(viewer, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"viewer must be {', '.join(map(repr, VIEWERS))} or the URL of a viewer; got {viewer!r}.")
    return viewer.partition("#")[0].rstrip("/"), "old" if parts.netloc in OLD_HOSTS else "present"


def public_source(path: str, form: Form) -> str:
    """Return the URL of a source for a viewer on another server.

    Raises
    ------
    ValueError
        If a page of another server cannot read it, or it has a password or token in it.
    """
    url = normalize_path(path)
    plain = location_of(url).removeprefix(GRAPHENE)
    reason = ""
    if without_secrets(url) != url:
        reason = "its URL has a user, password or query, which the link would tell to everybody"
    elif not plain.startswith(PUBLIC) or is_loopback(plain) or plain.startswith("s3://http"):
        reason = "a page on another server cannot read it"
    if reason:
        raise ValueError(
            f"No link to a public viewer for {redacted(url)!r}: {reason}. Look at it with client.view(...) or "
            "'imagery-dask view', which serve it from this machine."
        )
    if url.startswith(GRAPHENE):
        # The old viewers ask for a token by themselves; the present ones where the URL says so.
        server = plain.removeprefix("middleauth+")
        return f"{GRAPHENE}{server}" if form == "old" else f"{GRAPHENE}middleauth+{server}"
    if is_zarr(url):  # the form that names the format of what is at a place
        scheme, _, place = url.partition("#")[0].partition("://")
        return f"{place}/|{scheme}:"
    return url


def link_of(state: JsonObject, viewer: str) -> str:
    """Return the URL of a state in a viewer."""
    return f"{viewer}/#!{quote(json.dumps(state, separators=(',', ':')), safe=UNESCAPED)}"
