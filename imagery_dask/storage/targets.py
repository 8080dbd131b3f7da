"""Targets of exports: check what exists at a URL, and replace or remove it."""

from __future__ import annotations

import os
import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Self
from uuid import uuid4

from imagery_dask.annotations import EachProcess, JsonObject
from imagery_dask.serialization import json_object
from imagery_dask.sources.volumes.addresses import check_scheme
from imagery_dask.storage.atomic_files import BUCKETS, WRITABLE, Files, records_folder
from imagery_dask.storage.buckets import clear_errors, files_at, parse_bucket_url, s3_store
from imagery_dask.storage.store_files import (
    METADATA,
    RECORDS,
    ROOT_IDS,
    ZarrFiles,
    first_foreign,
    is_metadata,
    is_partial,
    names_in,
    resembles_volume_chunk,
    resembles_zarr_chunk,
    volume_files,
)
from imagery_dask.validate import expanded_path

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["FolderTarget", "StoreTarget", "TargetInPlace", "VolumeTarget", "VolumesTarget", "check_process"]


class TargetInPlace:
    """A target among other files, of which only those of the same names are replaced, each at once."""

    __slots__ = ()

    def recover(self) -> None:
        """Do nothing: only single files are renamed."""

    def swap(self, url: str) -> None:
        """Do nothing: only single files are renamed."""

    def clear(self, url: str) -> None:
        """Do nothing: files stay until they are replaced."""
        del url

    def check_replaceable(self) -> None:
        """Do nothing: only files of the same names are replaced."""

    def discard(self) -> None:
        """Do nothing: a run that has not begun has written nothing."""


class FolderTarget(ABC):
    """The URL of a store to write.

    A local store that is replaced stays unchanged until the new one, written beside it, is renamed to its name. Buckets
    cannot rename: there the old store is removed before the new one is written.

    Parameters
    ----------
    url : str or path
        A local folder, a bucket, or memory.

    Raises
    ------
    TypeError, ValueError
        If `url` is not a path or URL.
    """

    KIND = "store"

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = _checked_url(url)

    # The folder is the store.
    owns_folder = True

    @property
    def folder(self) -> str:
        """Folder or bucket that is written to."""
        return self.url

    @property
    def is_local(self) -> bool:
        """True if the URL is a local folder."""
        return "://" not in self.url

    def occupied(self) -> bool:
        """Return True if a store of this kind exists.

        Only the names at the root of a store are listed.

        Raises
        ------
        FileExistsError
            If something else exists at the URL.
        """
        with clear_errors(self.url):
            is_store = self._opens()
            if not is_store and not self._anything():
                return False
            strange = self._stranger() if is_store else None
        if not is_store or strange is not None:
            what = f"holds {strange!r}, which is not of a {self.KIND}" if is_store else f"is not a {self.KIND}"
            raise FileExistsError(f"{self.url} exists and {what}: it will not be replaced; choose another name.")
        return True

    def refusal(self, why: str = "") -> FileExistsError:
        """Return the error for a store that exists already."""
        message = f"{self.url} exists already; choose another name, or pass overwrite=True (--overwrite)."
        return FileExistsError(f"{message} {why}".strip())

    def holds(self, url: str, written: bool) -> bool:
        """Return True if the store of a run exists, perhaps without its metadata; it does before a block is written."""
        del written
        with clear_errors(url):
            store = type(self)(url)
            return store._opens() or store._remains()

    def beside(self, run: str) -> str:
        """Return the URL at which a run writes a replacement: beside a local store, or at the same URL in a bucket."""
        if not self.is_local:
            return self.url
        path = Path(self.url)
        return str(path.with_name(f".{path.name}.incoming-{run}"))

    def check_writable(self) -> None:
        """Raise if the URL cannot be written, found by writing a file beside it and removing it."""
        with clear_errors(self.url):
            if self.is_local:
                folder = next(parent for parent in Path(self.url).parents if parent.exists())
                with TemporaryFile(dir=folder):
                    return
            # In the folder of the records, which is in the bucket even for a store at its root.
            files, probe = records_folder(self.url), f".probe-{uuid4().hex}"
            files.put(probe, b"")
            files.delete([probe])

    def at(self, url: str) -> Self:
        """Return a target of the same kind at another URL."""
        return type(self)(url)

    def check_workers(self, workers: EachProcess) -> None:
        """Raise if the workers cannot write to the target; those that share a disk are asked later."""
        check_process(self.url, workers)
        if parse_bucket_url(self.url).scheme in BUCKETS:
            workers.run(self.check_writable)

    def recover(self) -> None:
        """Undo a replacement that was interrupted between its two renames; remove leftovers of finished ones."""
        if not self.is_local:
            return
        path = Path(self.url)
        for old in path.parent.glob(f".{escape(path.name)}.replaced-*"):
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(old, path)

    def swap(self, url: str) -> None:
        """Replace the target by a store that was written beside it."""
        old = url.replace(".incoming-", ".replaced-")
        if os.path.exists(self.url):
            os.rename(self.url, old)
        os.rename(url, self.url)
        shutil.rmtree(old, ignore_errors=True)

    def clear(self, url: str) -> None:
        """Remove the store at a URL, complete or not."""
        if self.is_local:
            shutil.rmtree(url, ignore_errors=True)
            return
        with clear_errors(url):
            type(self)(url)._remove()

    def discard(self) -> None:
        """Remove the empty store of a run that was not begun.

        Raises
        ------
        FileExistsError
            There is something else than metadata.
        """
        with clear_errors(self.url):
            is_empty = next(names_in(self.url), None) is None
            foreign = first_foreign(self.url, is_metadata)
        if foreign:
            raise FileExistsError(
                f"{self.url} holds {_listed(foreign)}, which an export that had not begun cannot have written: it will "
                "not be removed; choose another name, or move it away."
            )
        if self.is_local or not is_empty:
            self.clear(self.url)

    def check_replaceable(self) -> None:
        """Raise if the store at the URL holds files that are not part of it, however deep; all names are listed.

        Raises
        ------
        FileExistsError
            With the first few of these names.
        """
        with clear_errors(self.url):
            foreign = first_foreign(self.url, self._has())
        if foreign:
            raise FileExistsError(
                f"{self.url} holds {_listed(foreign)}, which is not of the {self.KIND} of an export: it will not be "
                "replaced. Move this away, or choose another name."
            )

    def _stranger(self) -> str | None:
        files, path = files_at(self.url)
        files.invalidate_cache()
        names = sorted(str(name).rstrip("/").rpartition("/")[2] for name in files.ls(path, detail=False))
        # Partial files of killed processes do not count.
        names = [name for name in names if not (is_partial(name) or name == RECORDS)]
        return next((name for name in names if not self._owns(files, f"{path}/{name}", name)), None)

    def _anything(self) -> bool:
        return _anything_at(self.url)

    def _remains(self) -> bool:
        """Return True if there are files of a store of this kind, and nothing else; its metadata may be lost."""
        return self._anything() and not first_foreign(self.url, self._resembles, 1)

    def _content(self, name: str) -> bytes | None:
        """Return the content of a file of the store, or None."""
        files, path = files_at(self.url)
        try:
            return bytes(files.cat_file(f"{path}/{name}"))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    @abstractmethod
    def _has(self) -> Callable[[str], bool]:
        """Return a function that tells whether a file is part of the store that exists."""

    @abstractmethod
    def _resembles(self, name: str) -> bool:
        """Return True if a file has the name of one of a store of this kind."""

    @abstractmethod
    def _opens(self) -> bool:
        """Return True if a store of this kind exists."""

    @abstractmethod
    def _owns(self, files: AbstractFileSystem, path: str, name: str) -> bool:
        """Return True if a name at the store's root is part of the store."""

    @abstractmethod
    def _remove(self) -> None:
        """Remove the store."""


class StoreTarget(FolderTarget):
    """The URL of a zarr store."""

    KIND = "zarr store"

    def _opens(self) -> bool:
        import zarr

        from imagery_dask.storage.zarr_stores import open_store

        try:
            zarr.open(open_store(self.url), mode="r")
        except (FileNotFoundError, ValueError, NotADirectoryError, AttributeError, KeyError, TypeError):
            return False  # also with metadata that are no JSON, or other JSON
        return True

    def _owns(self, files: AbstractFileSystem, path: str, name: str) -> bool:
        if name in METADATA or name == ROOT_IDS or any(files.exists(f"{path}/{metadata}") for metadata in METADATA):
            return True
        if not _is_chunk(name):
            return False
        if files.isdir(path):  # chunks that an interrupted removal left, and nothing else
            inside = (str(entry).rstrip("/").rpartition("/")[2] for entry in files.ls(path, detail=False))
            return all(_is_chunk(entry) for entry in inside)
        return bool(files.exists(f"{path.rpartition('/')[0]}/.zarray"))

    def _has(self) -> Callable[[str], bool]:
        return ZarrFiles(self._content).has

    def _resembles(self, name: str) -> bool:
        return is_metadata(name) or resembles_zarr_chunk(name)

    def _remove(self) -> None:
        _remove(self.url, METADATA)


class _PrecomputedTarget(FolderTarget):
    """A URL of precomputed volumes, which may be in the memory of this process."""

    def check_replaceable(self) -> None:
        """Raise if the volumes at the URL hold files that are not part of them."""
        if not _in_memory(self.url):
            super().check_replaceable()

    def _resembles(self, name: str) -> bool:
        return is_metadata(name) or resembles_volume_chunk(name)

    def _stranger(self) -> str | None:
        return None if _in_memory(self.url) else super()._stranger()

    def _anything(self) -> bool:
        if _in_memory(self.url):
            return next(Files.at(self.url).names(), None) is not None
        return super()._anything()


class VolumeTarget(_PrecomputedTarget):
    """The URL of a precomputed volume, or of two of them in folders."""

    KIND = "precomputed volume"
    FOLDERS = ("image", "segmentation")

    def _opens(self) -> bool:
        return any(self._infos())

    def _infos(self) -> list[tuple[str, JsonObject]]:
        """Return the folders and contents of info files, at the root and in the folders."""
        files, infos = Files.at(self.url), []
        for folder in ("", *(f"{name}/" for name in self.FOLDERS)):
            with suppress(NotADirectoryError):
                info = json_object(files.get(f"{folder}info"))
                if info is not None and isinstance(info.get("scales"), list):
                    infos.append((folder, info))
        return infos

    def _has(self) -> Callable[[str], bool]:
        return volume_files(self._infos())

    def _owns(self, files: AbstractFileSystem, path: str, name: str) -> bool:
        if name in self.FOLDERS:
            return bool(files.exists(f"{path}/info"))
        known = {"info", "provenance", "segment_properties", ROOT_IDS}
        for _, info in self._infos():
            known |= {str(scale["key"]).split("/")[0] for scale in info["scales"]}
            known.add(str(info.get("segment_properties", "")))
        return name in known

    def _remove(self) -> None:
        if _in_memory(self.url):
            files = Files.at(self.url)
            files.delete(files.names())
        else:
            _remove(self.url, {"info"})


class VolumesTarget(_PrecomputedTarget):
    """The URL of a folder of precomputed volumes: of one, or two in folders, for each named region."""

    KIND = "folder of precomputed volumes"

    def _regions(self) -> dict[str, VolumeTarget]:
        """Return the volumes that exist, by region."""
        regions = {name: VolumeTarget(f"{self.url}/{name}") for name in self._names()}
        return {name: region for name, region in regions.items() if region._opens()}

    def _names(self) -> list[str]:
        """Return the names of what lies in the folder."""
        if _in_memory(self.url):
            return sorted({name.partition("/")[0] for name in Files.at(self.url).names()})
        files, path = files_at(self.url)
        files.invalidate_cache()
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(str(name).rstrip("/").rpartition("/")[2] for name in files.ls(path, detail=False))
        return []

    def _opens(self) -> bool:
        return bool(self._regions())

    def _has(self) -> Callable[[str], bool]:
        of_region = {name: region._has() for name, region in self._regions().items()}

        def has(name: str) -> bool:
            region, _, file = name.partition("/")
            return is_partial(name) or (region in of_region and of_region[region](file))

        return has

    def _owns(self, files: AbstractFileSystem, path: str, name: str) -> bool:
        return VolumeTarget(f"{self.url}/{name}")._opens()

    def _remove(self) -> None:
        for name in self._names():
            VolumeTarget(f"{self.url}/{name}")._remove()


def _in_memory(url: str) -> bool:
    # `Files` and zarr stores keep separate memories in a process.
    return parse_bucket_url(url).scheme == "memory"


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _is_chunk(name: str) -> bool:
    """Return True for the name of chunks: "c", or (zarr v2) files and folders of numbers."""
    return name == "c" or name.replace(".", "").isdigit()


def _anything_at(url: str) -> bool:
    if "://" not in url:
        return os.path.exists(url) and not (os.path.isdir(url) and not os.listdir(url))
    parsed = parse_bucket_url(url)
    if parsed.scheme == "s3":  # one object is enough: there may be millions
        entries = (entry for batch in s3_store(parsed).list(chunk_size=10) for entry in batch)
        return any(not entry["path"].startswith(RECORDS) for entry in entries)
    files, path = files_at(url)
    files.invalidate_cache()
    return bool(files.exists(path))


def _remove(url: str, last: set[str]) -> None:
    """Remove a store, its metadata last, so that an interrupted removal can be repeated."""
    parsed = parse_bucket_url(url)
    if parsed.scheme == "s3":
        bucket = s3_store(parsed)
        for batch in bucket.list(chunk_size=1000):
            names = [entry["path"] for entry in batch]
            bucket.delete([name for name in names if name not in last and not name.startswith(RECORDS)])
        bucket.delete(sorted(last))
        return
    files, path = files_at(url)
    files.invalidate_cache()
    names = [str(name).rstrip("/") for name in files.ls(path, detail=False)]
    names = [name for name in names if name.rpartition("/")[2] != RECORDS]
    metadata = [name for name in names if name.rpartition("/")[2] in last]
    for name in [name for name in names if name not in metadata] + metadata:
        files.rm(name, recursive=True)


def check_process(url: str, workers: EachProcess) -> None:
    """Raise ValueError if a store is in memory and workers are other processes, which have memories of their own."""
    if parse_bucket_url(url).scheme != "memory":
        return
    if others := set(workers.run(_process_name).values()) - {_process_name()}:
        host, number = min(others)
        raise ValueError(
            f"{url} is in the memory of this process, which the workers do not share (process {number} on {host}); "
            "write to a folder or a bucket, or without a cluster."
        )


def _checked_url(url: str | os.PathLike[str]) -> str:
    if not isinstance(url, (str, os.PathLike)):
        raise TypeError(f"url must be a folder or a URL to write to; got {url!r}.")
    text = os.fspath(url)
    if not text:
        raise ValueError("url is empty; give a folder or a URL to write to.")
    check_scheme(text, WRITABLE)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return text if "://" in text else str(Path(expanded_path(text)).resolve())


def _process_name() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()
