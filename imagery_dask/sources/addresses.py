"""Normalize paths of sources to cloud paths."""

from __future__ import annotations

import os
from pathlib import Path

from imagery_dask.errors import SourceError
from imagery_dask.model.chunkedgraph import GRAPHENE, graphene_address
from imagery_dask.urls import is_loopback, server_of
from imagery_dask.validate import expanded_path

__all__ = ["named_by_info", "normalize_path"]

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
    TypeError, SourceError
        If `path` is not a path, or its format is neither precomputed nor graphene.
    """
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str) or not path.strip():
        raise TypeError(f"A source is a path such as 'precomputed://gs://bucket/layer'; got {path!r}.")
    if not _exists(path):  # names of folders may begin or end with a space
        path = path.strip()
    path = path.rstrip("/")
    scheme, separator, _ = path.partition("://")
    if separator and scheme in OTHER_FORMATS:
        raise SourceError(f"{path!r} is a {scheme} volume; only precomputed and graphene volumes can be read.")
    if "://" not in path:
        return f"precomputed://file://{Path(expanded_path(path)).resolve()}"
    if path.startswith(GRAPHENE):
        server, table = graphene_address(path)
        return f"{GRAPHENE}{server}/segmentation/table/{table}"
    return path if path.startswith("precomputed://") else f"precomputed://{path}"


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
    return normalize_path(named)


def _has_token(path: str, target: str) -> bool:
    """Return True if a target is on the server of a path to which the user has a token, or keys, sent."""
    text = path.removeprefix("precomputed://")
    asked = text.startswith((GRAPHENE, "middleauth+", "ngauth+", "s3://http"))
    return asked and server_of(text.removeprefix(GRAPHENE)) == server_of(target)
