"""Normalize paths of sources to cloud paths."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from imagery_dask.errors import SourceError
from imagery_dask.model.chunkedgraph import GRAPHENE, graphene_address
from imagery_dask.urls import is_loopback, redacted, server_of
from imagery_dask.validate import expanded_path

__all__ = ["check_scheme", "named_by_info", "normalize_path"]

READABLE = (
    "gs",
    "s3",
    "https",
    "http",
    "file",
    "mem",
    "middleauth+https",
    "middleauth+http",
    "ngauth+https",
)
OTHER_FORMATS = (
    "zarr",
    "zarr2",
    "zarr3",
    "n5",
    "boss",
    "brainmaps",
    "deepzoom",
    "nggraph",
    "render",
    "dvid",
)


def normalize_path(path: str) -> str:
    """Return the cloud path of a source; local folders become ``file://`` paths.

    Raises
    ------
    TypeError, ValueError, SourceError
        If `path` is not a path, its scheme is unknown, or its format is neither precomputed nor graphene.
    """
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str) or not path.strip():
        raise TypeError(f"A source is a path such as 'precomputed://gs://bucket/layer'; got {path!r}.")
    if not _exists(path):  # names of folders may begin or end with a space
        path = path.strip()
    scheme, separator, _ = path.partition("://")
    if separator and scheme in OTHER_FORMATS:
        raise SourceError(f"{path!r} is a {scheme} volume; only precomputed and graphene volumes can be read.")
    if not path.startswith(GRAPHENE):
        check_scheme(path.removeprefix("precomputed://"), READABLE)
        _check_host(path)
    path = path.rstrip("/")
    if "://" not in path:
        return f"precomputed://file://{Path(expanded_path(path)).resolve()}"
    if path.startswith(GRAPHENE):
        server, table = graphene_address(path)
        return f"{GRAPHENE}{server}/segmentation/table/{table}"
    return path if path.startswith("precomputed://") else f"precomputed://{path}"


def _check_host(path: str) -> None:
    try:
        server_of(path)
    except ValueError as error:
        raise ValueError(
            f"{redacted(path)!r} is not a URL ({error}): [ and ] enclose an IPv6 address; in a password they are %5B "
            "and %5D."
        ) from None


def check_scheme(url: str, known: Collection[str]) -> None:
    """Raise if a URL begins with no known scheme; cloud-files takes ``s4://b/k`` for the local folder ``s4:/b/k``.

    Parameters
    ----------
    url : str
        A URL or a local path.
    known : collection of str
        Schemes in lower case. Aliases of cloud-files (``matrix://``) are always known.

    Raises
    ------
    ValueError
        If the scheme is unknown, is followed by one slash, or by no name.
    """
    scheme, separator, name = url.partition(":")
    if not separator or "/" in scheme or not name.startswith("/") or _exists(url):
        return
    slashes = len(name) - len(name.lstrip("/"))
    reason = ""
    if slashes == 1 and scheme.lower() in known:
        reason = f"write {scheme.lower()}:// with two slashes"
    elif slashes > 1 and scheme not in known and not _is_alias(scheme):
        reason = f"give a folder, or a URL that begins with {', '.join(f'{one}://' for one in known)}"
    elif slashes > 1 and not name.strip("/"):
        reason = "it names no bucket, server or folder"
    if reason:
        raise ValueError(f"{redacted(url)!r} is not understood: {reason}.")


def _is_alias(scheme: str) -> bool:
    from cloudfiles import paths

    paths.update_aliases_from_file()
    return scheme in paths.ALIASES


def _exists(path: str) -> bool:
    """Return True if a path is that of a local folder or file, exactly as it is written."""
    return os.path.exists(path.removeprefix("precomputed://").removeprefix("file://"))


def named_by_info(path: str, field: str, target: object) -> str:
    """Return the cloud path that a field of a volume's info names.

    An info is written by others. It can neither have a token sent to another server, nor have files of this machine
    read, unless it is one of them.

    Parameters
    ----------
    path : str
        Where the info was read from.
    field : str
        ``redirect`` of a flat volume, or ``data_dir`` of a graph.
    target : object
        The value of the field.

    Raises
    ------
    SourceError
        If it names a path that the user must name.
    """
    named = target if isinstance(target, str) else ""
    plain = named.strip().removeprefix("precomputed://")
    scheme, separator, rest = plain.partition("://")
    is_local = path.removeprefix("precomputed://").startswith("file://") or (
        path.startswith(GRAPHENE) and is_loopback(path.removeprefix(GRAPHENE))
    )
    reason = ""
    if not separator and not (is_local and named.strip()):
        reason = "is no path of a volume"
    elif not separator and not plain.startswith(("/", "~")):
        reason = "is a relative path"
    elif scheme in ("file", "mem", "") and not is_local:
        reason = "is on this machine, and the info is not"
    elif scheme == "graphene":
        reason = "is a dynamic segmentation"
    elif scheme.startswith(("middleauth+", "ngauth+")) and not _has_token(path, plain):
        reason = "asks for a token to be sent to another server"
    elif rest.startswith(("http://", "https://")) and not _has_token(path, plain):
        reason = "asks for keys to be sent to another server"
    if reason:
        raise SourceError(
            f"The {field} in the info of {path!r}, {target!r}, {reason}. If you trust it, give it as source."
        )
    try:
        return normalize_path(named)
    except (TypeError, ValueError) as error:
        raise SourceError(f"The {field} in the info of {path!r}, {target!r}, cannot be read: {error}") from None


def _has_token(path: str, target: str) -> bool:
    """Return True if a target is on the server of a path to which the user has a token, or keys, sent."""
    text = path.removeprefix("precomputed://")
    asked = text.startswith((GRAPHENE, "middleauth+", "ngauth+", "s3://http"))
    return asked and server_of(text.removeprefix(GRAPHENE)) == server_of(target)
