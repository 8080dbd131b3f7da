"""Groups and arrays of zarr and N5: the files that describe them, which are asked for together."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import AccessRefusedError, InvalidInfoError
from imagery_dask.serialization import json_object
from imagery_dask.sources.requests.transport import Blob, Request, Transport
from imagery_dask.sources.zarr.array_format import Format

__all__ = ["DESCRIBING", "METADATA", "Node", "read_nodes", "read_root"]

# Larger ones are refused. As many files as there are bytes in flight for are asked for at once: 64.
LARGEST_METADATA = 2**24
# Files that describe a group or an array, and the format that they are of; of several the first counts.
DESCRIBING: dict[str, Format] = {"zarr.json": "zarr3", ".zarray": "zarr2", ".zgroup": "zarr2", "attributes.json": "n5"}
METADATA = tuple(DESCRIBING)
# Where zarr v2 has attributes, which the other formats have in the files above.
ATTRIBUTES = ".zattrs"


@dataclass(frozen=True)
class Node:
    """A group or an array.

    Attributes
    ----------
    name : str
        The file that describes it.
    format : {"zarr2", "zarr3", "n5"}
        Its format.
    array : dict or None
        Metadata of an array; None for a group.
    attributes : dict
        Its attributes.
    modified : str or None
        When the file was modified, if it was read over HTTP and the server says so.
    """

    name: str
    format: Format
    array: JsonObject | None
    attributes: JsonObject
    modified: str | None = None


def read_root(transport: Transport, formats: Collection[str]) -> Node | None:
    """Return the group or array at a path. A group of N5 need not have attributes, if it has a first level."""
    (node,) = read_nodes(transport, [""], formats)
    if node is None and "n5" in formats:
        (first,) = read_nodes(transport, ["s0/"], ("n5",))
        if first is not None and first.array is not None:
            return Node(f"s0/{first.name}", "n5", None, {})
    return node


def read_nodes(
    transport: Transport, prefixes: Collection[str], formats: Collection[str], beside: str | None = None
) -> list[Node | None]:
    """Return the groups and arrays in folders; None where there is none.

    Without a file that is readable `beside`, files that are refused need not exist if another one does.
    """
    describing = [name for name, format_ in DESCRIBING.items() if format_ in formats]
    names = [*describing, *([ATTRIBUTES] if "zarr2" in formats else [])]
    try:
        files = _read(transport, (prefix + name for prefix in prefixes for name in names), beside)
    except AccessRefusedError:
        if beside is not None:
            raise
        files = {key: blob for prefix in prefixes for key, blob in _read_allowed(transport, prefix, describing).items()}
    return [_node(transport.cloudpath, prefix, describing, files) for prefix in prefixes]


def _read(transport: Transport, keys: Iterable[str], beside: str | None) -> dict[str, Blob]:
    """Return the files that exist."""
    requests = [Request(key, most=LARGEST_METADATA, beside=beside) for key in keys]
    return {
        request.key: blob
        for request, blob in transport.get_many(requests)
        if blob is not None and not blob.refused_or_absent
    }


def _read_allowed(transport: Transport, prefix: str, describing: list[str]) -> dict[str, Blob]:
    """Return the first file that describes a folder, and its attributes, asked for one by one.

    Refusals are raised if there is none, or if the server, asked beside it, does not refuse what does not exist.
    """
    refusals: dict[str, AccessRefusedError] = {}
    for name in describing:
        key = prefix + name
        try:
            found = _read(transport, [key], None)
        except AccessRefusedError as error:
            refusals[key] = error
            continue
        if found:
            _read(transport, refusals, key)  # raises where it is a refusal
            return found | (_read(transport, [prefix + ATTRIBUTES], key) if DESCRIBING[name] == "zarr2" else {})
    for refusal in refusals.values():
        raise refusal
    return {}


def _node(path: str, prefix: str, describing: list[str], files: dict[str, Blob]) -> Node | None:
    """Return what the files of a folder describe."""
    name = next((name for name in describing if prefix + name in files), None)
    if name is None:
        return None
    content = _json(path, prefix + name, files)
    if name == "zarr.json":
        attributes, is_array = content.get("attributes") or {}, content.get("node_type") == "array"
        if not isinstance(attributes, dict):
            raise InvalidInfoError(f"The attributes in {prefix}{name} of {path!r} are not a JSON object.")
    elif name == "attributes.json":
        attributes, is_array = content, "dimensions" in content
    else:
        attributes, is_array = _json(path, prefix + ATTRIBUTES, files), name == ".zarray"
    return Node(name, DESCRIBING[name], content if is_array else None, dict(attributes), files[prefix + name].modified)


def _json(path: str, key: str, files: dict[str, Blob]) -> JsonObject:
    """Return the JSON of a file; an empty one if the file does not exist."""
    content = json_object(bytes(files[key].decompressed(LARGEST_METADATA))) if key in files else {}
    if content is None:  # without attributes voxels would have another size
        raise InvalidInfoError(f"{key} of {path!r} is no JSON object.")
    return content
