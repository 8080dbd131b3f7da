"""Which files of a store an export writes: everything else in it is somebody else's, and is not removed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from imagery_dask.annotations import JsonObject
from imagery_dask.serialization import json_object
from imagery_dask.sources.files.local_files import EXTENSIONS
from imagery_dask.storage.buckets import files_at, parse_bucket_url, s3_store

__all__ = [
    "KEY",
    "METADATA",
    "RECORDS",
    "ROOT_IDS",
    "ZarrFiles",
    "first_foreign",
    "is_metadata",
    "is_partial",
    "names_in",
    "resembles_volume_chunk",
    "resembles_zarr_chunk",
    "volume_files",
]

# Folder of the records in a store that is the root of a bucket.
RECORDS = ".receipts"
METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}
INFOS = {"info", "provenance"}
# Table of the ids of a volume that was written with compact ids, in the folder of the volume.
ROOT_IDS = "root_ids.npy"
# Attribute of the zarr groups that an export writes, and key of the provenance of its precomputed volumes.
KEY = "imagery_dask"
CHUNK = re.compile(r"c(/\d+)*|\d+([./]\d+)*")
# What writers here and zarr's own leave when they are killed: NAME.ID.partial, and folders .partial-RUN-ID of blocks.
PARTIAL = re.compile(r".*[.-][0-9a-f]{8}([0-9a-f]{24})?\.partial|\.partial-[0-9a-z]+-[0-9a-f]{12}|\.probe-[0-9a-f]{32}")
VOLUME_CHUNK = re.compile(r"-?\d+--?\d+_-?\d+--?\d+_-?\d+--?\d+|[0-9a-f]+\.shard")


def is_partial(name: str) -> bool:
    """Return True for what a killed process leaves of a file that it was writing."""
    return any(PARTIAL.fullmatch(part) for part in name.split("/"))


def is_metadata(name: str) -> bool:
    """Return True for a file of an empty store, or what a killed process left of one."""
    return name.rpartition("/")[2] in METADATA | INFOS | {ROOT_IDS} or is_partial(name)


def resembles_zarr_chunk(name: str) -> bool:
    """Return True for the name of a chunk of any array of a store."""
    parts = name.split("/")
    return any(CHUNK.fullmatch("/".join(parts[cut:])) for cut in range(len(parts)))


def resembles_volume_chunk(name: str) -> bool:
    """Return True for the name of a chunk of any mip of a volume."""
    return VOLUME_CHUNK.fullmatch(_plain(name).rpartition("/")[2]) is not None


def names_in(url: str) -> Iterator[str]:
    """Yield the names of all files and objects below a URL, relative to it, without those of records in a bucket."""
    parsed = parse_bucket_url(url)
    if parsed.scheme == "file":
        yield from _local_names(Path(parsed.path))
        return
    if parsed.scheme == "s3":
        entries = (entry for batch in s3_store(parsed).list(chunk_size=1000) for entry in batch)
        # Some servers list folders that became empty, as objects without a byte.
        names = (str(entry["path"]) for entry in entries if entry["size"])
    else:
        files, path = files_at(url)
        files.invalidate_cache()
        start = len(path.strip("/"))
        names = (str(name).strip("/")[start:].lstrip("/") for name in files.find(path))
    yield from (name for name in names if name and not name.startswith(f"{RECORDS}/"))


def _local_names(root: Path) -> Iterator[str]:
    """Yield the names of files, links and devices below a folder; links are not followed."""
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        yield root.name
        return
    folders = [""] if root.is_dir() else []
    while folders:
        folder = folders.pop()
        with suppress(FileNotFoundError), os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                else:
                    yield name


@dataclass
class ZarrFiles:
    """The files of a zarr store.

    Of a store that an export wrote, its own groups and arrays count; of another one, all groups and arrays.

    Parameters
    ----------
    read : callable
        Returns the content of a file of the store, or None.
    """

    read: Callable[[str], bytes | None]
    _nodes: dict[str, JsonObject | None] = field(default_factory=dict)
    _accepted: dict[str, bool] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Return True if a file is part of the store."""
        if is_partial(name):
            return True
        folder, _, base = name.rpartition("/")
        if base in METADATA or base == ROOT_IDS:
            return self._accepts(folder)
        parts = name.split("/")
        return any(
            self._is_array(node)
            for cut in range(len(parts))
            if CHUNK.fullmatch("/".join(parts[cut:])) and self._accepts(node := "/".join(parts[:cut]))
        )

    def _accepts(self, path: str) -> bool:
        if path not in self._accepted:
            self._accepted[path] = self._node(path) is not None and (not self._exported() or self._is_own(path))
        return self._accepted[path]

    def _exported(self) -> bool:
        """Return True if an export wrote the store."""
        return any(KEY in self._attributes(path) for path in ("", "labels/segmentation"))

    def _is_own(self, path: str) -> bool:
        """Return True for a group or array that an export writes."""
        group, _, name = path.rpartition("/")
        if path in ("", "labels") or KEY in self._attributes(path) or (name == "labels" and self._is_own(group)):
            return True
        attributes = self._attributes(group)
        multiscales = attributes.get("ome", attributes).get("multiscales")
        if KEY not in attributes or not isinstance(multiscales, list):
            return False
        return name in {str(dataset.get("path")) for scales in multiscales for dataset in scales.get("datasets", ())}

    def _is_array(self, path: str) -> bool:
        node = self._node(path)
        return node is not None and (node.get("node_type") == "array" or "chunks" in node)

    def _attributes(self, path: str) -> JsonObject:
        attributes = (self._node(path) or {}).get("attributes")
        return attributes if isinstance(attributes, dict) else {}

    def _node(self, path: str) -> JsonObject | None:
        if path not in self._nodes:
            self._nodes[path] = self._read_node(f"{path}/" if path else "")
        return self._nodes[path]

    def _read_node(self, folder: str) -> JsonObject | None:
        for name in ("zarr.json", ".zarray", ".zgroup"):
            node = json_object(self.read(folder + name))
            if node is None:
                continue
            if name == "zarr.json":
                return node
            return node | {"attributes": json_object(self.read(f"{folder}.zattrs"))}
        return None


def volume_files(infos: Sequence[tuple[str, JsonObject]]) -> Callable[[str], bool]:
    """Return a function that tells whether a file is part of precomputed volumes.

    Parameters
    ----------
    infos : sequence of (str, dict)
        Folder of each volume ("" or ending in "/"), and the content of its info file.
    """
    known, scales = set(), set()
    for folder, info in infos:
        known |= {f"{folder}{name}" for name in INFOS | {ROOT_IDS}}
        if info.get("segment_properties"):
            known.add(f"{folder}{info['segment_properties']}/info")
        scales |= {f"{folder}{str(scale['key']).strip('/')}" for scale in info["scales"]}

    def has(name: str) -> bool:
        plain = _plain(name)
        folder, _, base = plain.rpartition("/")
        return plain in known or is_partial(name) or (folder in scales and bool(VOLUME_CHUNK.fullmatch(base)))

    return has


def _plain(name: str) -> str:
    """Return a name without the extension of a compressed file."""
    stem, extension = os.path.splitext(name)
    return stem if extension and extension in EXTENSIONS.values() else name


def first_foreign(url: str, has: Callable[[str], bool], most: int = 3) -> list[str]:
    """Return the names of the first few files below a URL that are not part of the store there."""
    return list(islice((name for name in names_in(url) if not has(name)), most))
