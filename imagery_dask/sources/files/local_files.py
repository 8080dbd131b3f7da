"""Read files of a local folder without importing cloud-files; compressed files have its extensions (``info.gz``)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress

from imagery_dask.urls import location_of
from imagery_dask.validate import expanded_path

__all__ = ["EXTENSIONS", "FORMAT_SUFFIX", "LocalFiles", "local_folder"]

# Neuroglancer's way to name the format of a path.
FORMAT_SUFFIX = "|neuroglancer-precomputed:"
FORMAT_AT_END = re.compile(r"\|[\w-]+:$")

JUST_NOW_NS = 2_000_000_000
EXTENSIONS = {None: "", "gzip": ".gz", "br": ".br", "zstd": ".zstd", "xz": ".xz", "bzip2": ".bz2"}


def local_folder(cloudpath: str) -> str | None:
    """Return the folder of a ``file://`` path, or None for other paths."""
    path = location_of(cloudpath)
    if not path.startswith("file://") or FORMAT_AT_END.search(path):  # which cloud-files understands
        return None
    return os.path.abspath(expanded_path(path.removeprefix("file://")))


class LocalFiles:
    """Files below a folder, by name without the extension of their compression.

    Parameters
    ----------
    folder : str
        Path of the folder, which need not exist.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        # In the order in which they are tried: most files of a folder have the same extension.
        self._extensions = list(EXTENSIONS.items())

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> tuple[bytes, str | None] | None:
        """Return a file's bytes ``start .. stop - 1`` as stored, and its compression; None if it does not exist.

        A negative `start` is that of the last bytes.
        """
        path = os.path.join(self.folder, name)
        if name.startswith("../"):  # beside the folder, as in URLs; the folder may be a link
            path = os.path.normpath(path)
        for encoding, extension in self._extensions:
            with suppress(FileNotFoundError), open(path + extension, "rb", opener=_opened) as file:
                begin = start or 0
                if begin < 0:
                    begin = max(0, os.fstat(file.fileno()).st_size + begin)
                file.seek(begin)
                # Python reserves memory for as many bytes as are asked for.
                size = os.fstat(file.fileno()).st_size - begin if stop is not None else -1
                content = file.read() if stop is None else file.read(max(0, min(stop - begin, size)))
                self._try_first(encoding, extension)
                return content, encoding
        return None

    def stamp(self, name: str) -> tuple[object, ...] | None:
        """Return what differs once a file is written again; None if it does not exist, or was written just now."""
        path = os.path.join(self.folder, name)
        for _, extension in self._extensions:
            with suppress(OSError):
                stat = os.stat(path + extension)
                # File systems know the time to some milliseconds: a second change in that time would go unnoticed.
                is_settled = abs(time.time_ns() - stat.st_mtime_ns) > JUST_NOW_NS
                return (extension, stat.st_ino, stat.st_size, stat.st_mtime_ns) if is_settled else None
        return None

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of all files, also in subfolders, that begin with a prefix, in their order."""
        names = []
        for parent, _, files in os.walk(os.path.join(self.folder, os.path.dirname(prefix))):
            inside = os.path.relpath(parent, self.folder)
            names += files if inside == os.curdir else [os.path.join(inside, file) for file in files]
        yield from sorted(_without_extension(name) for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Remove a file; a missing one is ignored."""
        path = os.path.join(self.folder, name)
        for extension in EXTENSIONS.values():
            with suppress(FileNotFoundError):
                os.remove(path + extension)
                return

    def _try_first(self, encoding: str | None, extension: str) -> None:
        if self._extensions[0][0] != encoding:
            first = (encoding, extension)
            self._extensions = [first, *(pair for pair in EXTENSIONS.items() if pair != first)]


def _opened(path: str, flags: int) -> int:
    # A pipe is an error when the file is sought, and opening it does not wait for a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _without_extension(name: str) -> str:
    base, extension = os.path.splitext(name)
    return base if extension and extension in EXTENSIONS.values() else name
