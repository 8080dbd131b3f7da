"""Normalize paths of sources to cloud paths."""

from __future__ import annotations

import os
from pathlib import Path

from imagery_dask.errors import SourceError
from imagery_dask.model.chunkedgraph import GRAPHENE, graphene_address

__all__ = ["normalize_path"]

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
    if "://" in path or not os.path.exists(path):  # names of folders may begin or end with a space
        path = path.strip()
    path = path.rstrip("/")
    scheme, separator, _ = path.partition("://")
    if separator and scheme in OTHER_FORMATS:
        raise SourceError(f"{path!r} is a {scheme} volume; only precomputed and graphene volumes can be read.")
    if "://" not in path:
        return f"precomputed://file://{Path(path).expanduser().resolve()}"
    if path.startswith(GRAPHENE):
        server, table = graphene_address(path)
        return f"{GRAPHENE}{server}/segmentation/table/{table}"
    return path if path.startswith("precomputed://") else f"precomputed://{path}"
