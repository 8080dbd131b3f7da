"""Whether two URLs name the same folder, or one that lies in the other, however they are written."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from imagery_dask.storage.buckets import parse_bucket_url, s3_endpoint
from imagery_dask.urls import file_url, is_loopback, location_of, name_in_url
from imagery_dask.validate import expanded_path

__all__ = ["Overlap", "overlap"]

Overlap = Literal["is", "lies in", "contains"]
# Addresses of buckets over HTTPS: path style, and with the bucket in the host.
GOOGLE = re.compile(r"(?:(?P<bucket>.+)\.)?storage\.(?:googleapis|cloud\.google)\.com")
AMAZON = re.compile(r"(?:(?P<bucket>.+)\.)?s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?")
DEFAULT_PORTS = (None, 80, 443)


def overlap(url: str, other: str) -> Overlap | None:
    """Return how a folder lies to another one.

    Parameters
    ----------
    url, other : str
        Local paths or URLs, with or without ``precomputed://``; links are followed.

    Returns
    -------
    {"is", "lies in", "contains"} or None
        What the first does to the second; None if they have nothing in common.

    Examples
    --------
    >>> overlap("gs://bucket/em/out", "precomputed://https://storage.googleapis.com/bucket/em/")
    'lies in'
    """
    storage, path = _parsed(url)
    other_storage, other_path = _parsed(other)
    if storage != other_storage:
        return None
    if storage == ("file", ""):
        return _of_folders(Path(path), Path(other_path))
    first, second = [part for part in path.split("/") if part], [part for part in other_path.split("/") if part]
    if first == second:
        return "is"
    if first[: len(second)] == second:
        return "lies in"
    return "contains" if second[: len(first)] == first else None


def _of_folders(folder: Path, other: Path) -> Overlap | None:
    if _is_same(folder, other):
        return "is"
    if any(_is_same(parent, other) for parent in folder.parents):
        return "lies in"
    return "contains" if any(_is_same(parent, folder) for parent in other.parents) else None


def _is_same(folder: Path, other: Path) -> bool:
    """Return True for the same folder, also by two mounts, or by names that the file system does not distinguish."""
    if folder == other:
        return True
    try:
        return os.path.samefile(folder, other)
    except OSError:  # one of them does not exist
        return False


def _parsed(url: str) -> tuple[tuple[str, str], str]:
    """Return where a URL is stored, and its path there."""
    url = location_of(url).removeprefix("middleauth+").partition("|")[0]
    if url.startswith(("s3://http://", "s3://https://")):  # with another server
        url = url.removeprefix("s3://")
    if url.startswith(("http://", "https://")):
        return _of_address(url)
    parsed = parse_bucket_url(url)
    if parsed.scheme == "file":
        return ("file", ""), os.path.realpath(expanded_path(parsed.path))
    if parsed.scheme == "s3":
        return _of_address(f"{s3_endpoint(parsed)}/{parsed.bucket}/{name_in_url(parsed.path)}")
    return (parsed.scheme, parsed.bucket), parsed.path


def _of_address(url: str) -> tuple[tuple[str, str], str]:
    address = urlsplit(file_url(url, ""))
    path = posixpath.normpath(f"/{unquote(address.path)}").lstrip("/")
    host = "localhost" if is_loopback(url) else address.hostname or ""
    for service, pattern in (("gs", GOOGLE), ("s3", AMAZON)):
        if match := pattern.fullmatch(host):
            bucket, _, inside = (f"{match['bucket']}/{path}" if match["bucket"] else path).partition("/")
            return (service, bucket), inside
    return ("http", host if address.port in DEFAULT_PORTS else f"{host}:{address.port}"), path
