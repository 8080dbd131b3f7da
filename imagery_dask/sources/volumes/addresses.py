"""Normalize paths of sources to cloud paths."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from imagery_dask.errors import SourceError
from imagery_dask.model.chunkedgraph import GRAPHENE, graphene_address
from imagery_dask.urls import FORMATS, is_loopback, location_of, redacted, server_of
from imagery_dask.validate import expanded_path

__all__ = ["ZarrAddress", "check_scheme", "is_zarr", "named_by_info", "normalize_path"]

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
# Formats of chunked arrays, by the beginning of a path; "zarr" finds out the version.
ZARR = {"zarr": ("zarr3", "zarr2"), "zarr2": ("zarr2",), "zarr3": ("zarr3",), "n5": ("n5",)}
# Files of a folder that hold its metadata, and the beginning of its path.
METADATA = {
    "info": "precomputed", "zarr.json": "zarr3", ".zarray": "zarr2", ".zgroup": "zarr2", ".zattrs": "zarr2",
    "attributes.json": "n5",
}  # fmt: skip
# Names of folders that are of a format.
NAMED_ZARR = re.compile(r"\.(zarr|n5)(?=/|$)", re.IGNORECASE)
# Neuroglancer's way to name the format behind a path.
PIPED = re.compile(r"^(?P<at>.*?)/?\|(?P<format>zarr|zarr2|zarr3|n5):(?P<inside>[^|]*)$")
OPTIONS = re.compile(r"#(?=(?:resolution|voxel_offset|axes)=)")
OTHER_FORMATS = (
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
        If `path` is not a path, its scheme is unknown, or its format cannot be read.
    """
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str) or not path.strip():
        raise TypeError(f"A source is a path such as 'precomputed://gs://bucket/layer'; got {path!r}.")
    if not _exists(path):  # names of folders may begin or end with a space
        path = path.strip()
    scheme, separator, _ = path.partition("://")
    if separator and scheme in OTHER_FORMATS:
        raise SourceError(f"{path!r} is a {scheme} volume; precomputed, graphene, zarr and N5 volumes can be read.")
    if is_zarr(found := _format_first(path)):
        return _normalize_zarr(found)
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


@dataclass(frozen=True)
class ZarrAddress:
    """Where a volume of zarr or N5 is, and what its metadata does not say.

    Parameters
    ----------
    location : str
        Cloud path of the group or array.
    formats : tuple of str
        Formats that it may have: "zarr3", "zarr2" or "n5".
    resolution_nm : tuple of 3 float or None
        Voxel size of the first level (x, y, z); None takes it from the metadata.
    voxel_offset : tuple of 3 float or None
        First voxel of the first level.
    axes : str or None
        Names of the axes in the order of the array, a letter each: ``"czyx"``.
    """

    location: str
    formats: tuple[str, ...]
    resolution_nm: tuple[float, ...] | None = None
    voxel_offset: tuple[float, ...] | None = None
    axes: str | None = None

    @classmethod
    def parse(cls, path: str) -> ZarrAddress:
        """Return the parts of a path such as ``zarr3://s3://bucket/em.zarr#resolution=4,4,40&voxel_offset=0,0,0``.

        Raises
        ------
        ValueError
            If an option is unknown, or no three numbers.
        """
        scheme, _, rest = path.partition("://")
        location, *options = OPTIONS.split(rest, maxsplit=1)
        given: dict[str, str] = {}
        for option in options[0].split("&") if options else ():
            name, _, value = option.partition("=")
            if name not in ("resolution", "voxel_offset", "axes"):
                raise ValueError(f"{path!r}: {name!r} is unknown; resolution, voxel_offset and axes can be given.")
            given[name] = value
        return cls(
            location, ZARR[scheme], _three(path, "resolution", given), _three(path, "voxel_offset", given),
            given.get("axes"),
        )  # fmt: skip


def is_zarr(path: str) -> bool:
    """Return True if a path begins with the name of zarr or N5."""
    return path.partition("://")[0] in ZARR


def _three(path: str, name: str, given: dict[str, str]) -> tuple[float, ...] | None:
    if name not in given:
        return None
    try:
        x, y, z = (float(number) for number in given[name].split(","))
    except ValueError:
        raise ValueError(f"{path!r}: {name} is three numbers, such as {name}=4,4,40; got {given[name]!r}.") from None
    if name == "resolution" and not min(x, y, z) > 0:
        raise ValueError(f"{path!r}: resolution is three positive numbers of nanometers; got {given[name]!r}.")
    return x, y, z


def _format_first(path: str) -> str:
    """Return a path with its format at the beginning, where it names it in another way, or what is there says it."""
    piped = PIPED.match(path)
    if piped is not None:
        return f"{piped['format']}://{piped['at']}" + (f"/{piped['inside']}" if piped["inside"] else "")
    if path.startswith((*(f"{name}://" for name in FORMATS), GRAPHENE)):
        return path
    plain = OPTIONS.split(path, maxsplit=1)[0]
    if "://" not in plain or plain.startswith("file://"):
        folder = Path(expanded_path(plain.removeprefix("file://")))
        there = next((format_ for name, format_ in METADATA.items() if (folder / name).exists()), "precomputed")
        return path if there == "precomputed" else f"{there}://{path}"
    named = NAMED_ZARR.findall(plain)
    return f"{named[-1].lower()}://{path}" if named else path


def _normalize_zarr(path: str) -> str:
    scheme, _, rest = path.partition("://")
    location, *options = OPTIONS.split(rest, maxsplit=1)
    check_scheme(location, READABLE)
    _check_host(location)
    location = location.rstrip("/")
    if "://" not in location:
        location = f"file://{Path(expanded_path(location)).resolve()}"
    found = "#".join([f"{scheme}://{location}", *options])
    ZarrAddress.parse(found)
    return found


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
    return os.path.exists(location_of(path).removeprefix("file://"))


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
    if is_zarr(plain):  # behind which a path of this machine, or a token, would not be seen below
        reason = "is no precomputed volume"
    elif not separator and not (is_local and named.strip()):
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
