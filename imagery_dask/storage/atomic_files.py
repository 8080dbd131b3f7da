"""Read and write files in a folder or bucket atomically: a reader sees the whole file or none of it."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol
from uuid import uuid4

from imagery_dask.errors import REFUSED_STATUS, ImageryDaskError
from imagery_dask.sources.files.compression import compress as compressed
from imagery_dask.sources.files.compression import decompress
from imagery_dask.sources.files.local_files import EXTENSIONS, LocalFiles
from imagery_dask.sources.volumes.addresses import check_scheme
from imagery_dask.validate import expanded_path

if TYPE_CHECKING:
    from cloudfiles import CloudFiles

__all__ = [
    "BUCKETS",
    "WRITABLE",
    "Files",
    "NotWantedError",
    "check_wanted",
    "check_writable",
    "existing_names",
    "flush",
    "move_durably",
    "only_while",
    "records_folder",
    "split_prefix",
    "write_soon",
]

Compression = Literal["gzip", "br"]
LOCAL = "file://"
# A hint to the kernel, on Linux only; file systems may ignore it.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
SYNC_FILE_RANGE_WRITE = 2
# Errors of file systems without hard links.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
MEMORY = "memory://"
_wanted: ContextVar[Callable[[], bool] | None] = ContextVar("_wanted", default=None)
BUCKETS = ("s3", "gs")
# Schemes of URLs that can be written.
WRITABLE = (*BUCKETS, "gcs", "memory", "mem", "file")
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}([0-9a-f]{24})?\.partial")


class NotWantedError(ImageryDaskError):
    """A file was about to appear in a store that another run has replaced."""


class Put(Protocol):
    """Function that writes a file."""

    def __call__(
        self,
        name: str,
        content: bytes | Iterable[bytes],
        content_type: str | None = None,
        compress: Compression | None = None,
    ) -> None:
        """Write a file, given whole or in pieces, which are not compressed."""
        ...


@dataclass(frozen=True, slots=True)
class Files:
    """Files below a URL, by name. Small and picklable: each process finds its own credentials.

    Parameters
    ----------
    url : str
        ``file://``, ``s3://``, ``gs://``, ``memory://`` (of this process) or any other scheme that CloudFiles
        writes to; without a scheme, a local folder.
    """

    url: str

    @classmethod
    def at(cls, url: str | os.PathLike[str]) -> Files:
        """Return the files at a URL or a local path."""
        text = os.fspath(url)
        if "://" not in text:
            text = LOCAL + str(Path(expanded_path(text)).resolve())
        return cls(text.rstrip("/"))

    @property
    def folder(self) -> Path | None:
        """The local folder, or None."""
        return Path(self.url.removeprefix(LOCAL)) if self.url.startswith(LOCAL) else None

    def put(
        self,
        name: str,
        content: bytes | Iterable[bytes],
        content_type: str | None = None,
        compress: Compression | None = None,
    ) -> None:
        """Write a file atomically: by a rename on a local disk, by one PUT in a bucket.

        Compressed content is stored as CloudVolume stores it: with a suffix on a disk, with an encoding in a bucket.
        Content may be given in pieces, which are not compressed.
        """
        if self.folder is None:
            content = content if isinstance(content, bytes) else b"".join(content)
            self._cloud().put(name, content, content_type=content_type, compress=compress, raw=False)
            return
        with self.together() as put:
            put(name, content, content_type, compress)

    @contextmanager
    def together(self) -> Iterator[Put]:
        """Return a function like `put` whose local files appear together, flushed to disk, when the context ends.

        The disk is waited for once instead of once per file.
        """
        if self.folder is None:
            yield self.put
            return
        folder, written = self.folder, list[tuple[Path, Path]]()

        def put(
            name: str,
            content: bytes | Iterable[bytes],
            content_type: str | None = None,
            compress: Compression | None = None,
        ) -> None:
            del content_type
            path = folder / (name + EXTENSIONS[compress])
            partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append((partial, path))
            with open(partial, "wb") as file:
                for piece in [content] if isinstance(content, bytes) else content:
                    file.write(compressed(piece, compress) if compress else piece)
                    write_soon(file)

        try:
            yield put
            move_durably(written)
        except BaseException:
            for partial, _ in written:
                partial.unlink(missing_ok=True)
            raise

    def create(self, name: str, content: bytes) -> bool | None:
        """Write a file if none of that name exists; of several processes that try at once, one succeeds.

        Returns
        -------
        bool or None
            True if it was written; None if the storage cannot do this (file systems without links, some servers).
        """
        if self.folder is not None:
            return _linked(self.folder, name, content)
        if self.url.startswith(MEMORY):
            return None
        cloud = self._cloud()
        with cloud._get_connection() as connection:
            return _CREATES[cloud.protocol](connection, name, content) if cloud.protocol in _CREATES else None

    def get(self, name: str) -> bytes | None:
        """Return the content of a file, decompressed, or None if it does not exist."""
        if self.folder is not None:
            stored = self._local().read(name)
            return None if stored is None else decompress(*stored)
        content = self._cloud().get(name)
        return None if content is None else bytes(content)

    def get_range(self, name: str, start: int, stop: int) -> bytes | None:
        """Return the bytes ``start .. stop - 1`` of a file that is not compressed, or None if it does not exist."""
        if self.folder is not None:
            stored = self._local().read(name, start, stop)
            return None if stored is None else stored[0]
        content = self._cloud().get({"path": name, "start": start, "end": stop}, raw=True)
        return None if content is None else bytes(content)

    def size(self, name: str) -> int | None:
        """Return the size of a file that is not compressed, or None if it does not exist."""
        if self.folder is not None:
            try:
                return (self.folder / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None
        size = self._cloud().size(name)
        return None if size is None else int(size)

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of all files that begin with a prefix."""
        if self.folder is not None:
            yield from self._local().names(prefix)
            return
        if not self.url.startswith(MEMORY):
            yield from self._cloud().list(prefix=prefix)
            return
        # CloudFiles lists the whole bucket of a memory URL, at whichever folder it was opened.
        bucket, _, folder = self.url.removeprefix(MEMORY).partition("/")
        within = f"{folder}/" if folder else ""
        for name in _cloud_files(MEMORY + bucket, os.getpid()).list(prefix=within + prefix):
            yield name.removeprefix(within)

    def remove_partial(self, folder: str = "", stem: str = "") -> None:
        """Remove the partial files that killed processes left of files whose names begin with a stem."""
        if self.folder is None:
            return
        with suppress(FileNotFoundError), os.scandir(self.folder / folder) as entries:
            for name in [entry.name for entry in entries if entry.name.startswith(f".{stem}")]:
                if PARTIAL.fullmatch(name):
                    (self.folder / folder / name).unlink(missing_ok=True)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; missing ones are ignored."""
        if self.folder is None:
            self._cloud().delete(list(names))
            return
        local = self._local()
        for name in names:
            local.delete(name)

    def _local(self) -> LocalFiles:
        return LocalFiles(str(self.folder))

    def _cloud(self) -> CloudFiles:
        return _cloud_files(self.url, os.getpid())


def _linked(folder: Path, name: str, content: bytes) -> bool | None:
    """Write a file under another name and link it to its own, so that it is complete when it appears."""
    whole = folder / f".{name}.{uuid4().hex}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(content)
        os.link(whole, folder / name)
    except FileExistsError:
        return False
    except OSError as error:
        # A concurrent cleanup may have removed the file already.
        if error.errno in NO_LINKS or isinstance(error, FileNotFoundError):
            return None
        raise
    finally:
        whole.unlink(missing_ok=True)
    return True


def _created_s3(connection: Any, name: str, content: bytes) -> bool | None:
    from botocore.exceptions import ClientError

    try:
        connection._conn.put_object(
            Bucket=connection._path.bucket, Key=connection.get_path_to_file(name), Body=content,
            ContentType="application/json", IfNoneMatch="*",
        )  # fmt: skip
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status in (409, 412):  # another process is writing, or has written
            return False
        if status in (400, 501):
            return None
        raise
    return True


def _created_google(connection: Any, name: str, content: bytes) -> bool | None:
    from google.api_core.exceptions import PreconditionFailed

    blob = connection._bucket.blob(connection.get_path_to_file(name))
    try:
        blob.upload_from_string(content, "application/json", if_generation_match=0)
    except PreconditionFailed:
        return False
    return True


_CREATES = {"s3": _created_s3, "gs": _created_google}


def write_soon(file: IO[bytes]) -> None:
    """Start writing a file's data to disk without waiting; a later fsync then takes a third of the time.

    Files in memory, which become objects of a bucket, are left alone.
    """
    if _sync_file_range is not None and not isinstance(file, io.BytesIO):
        file.flush()
        _sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_WRITE)


@contextmanager
def only_while(wanted: Callable[[], bool]) -> Iterator[None]:
    """Let files of this thread appear on a local disk only while a function returns True."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def check_wanted() -> None:
    """Raise if files of this thread are not wanted any more (`only_while`).

    Raises
    ------
    NotWantedError
        Another run has replaced the store since.
    """
    wanted = _wanted.get()
    if wanted is not None and not wanted():
        raise NotWantedError("The store has been replaced by another run.")


def move_durably(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename files so that neither their content nor their names are lost in a power failure.

    Their content, of which the writing has begun (`write_soon`), is flushed before they are renamed. Then one folder is
    flushed, and with it the journal of the file system, which holds all the names.
    """
    for source, _ in moves:
        _wait_for_disk(source)
    check_wanted()
    for source, target in moves:
        os.replace(source, target)
    if moves:
        _wait_for_disk(moves[-1][1].parent)


def flush(files: Files, names: Iterable[str]) -> None:
    """Wait until files of a local folder, and their names, are on disk; in a bucket they are."""
    folder = files.folder
    if folder is None:
        return
    paths = [folder / name for name in names]
    for path in [*paths, *{path.parent for path in paths}]:
        with suppress(FileNotFoundError):
            _wait_for_disk(path)


def _wait_for_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=16)
def _cloud_files(url: str, process: int) -> CloudFiles:
    from cloudfiles import CloudFiles

    del process  # connections do not survive a fork
    files = CloudFiles(url.replace("memory://", "mem://", 1), progress=False)
    if files.protocol in BUCKETS:
        _refuse_at_once(files.protocol)
        # Listing would still be refused only after seven attempts, so a file is requested first.
        files.get(".is-access-refused")
    return files


@lru_cache(maxsize=len(BUCKETS))
def _refuse_at_once(protocol: str) -> None:
    """Make cloud-files give up at the first refusal, not after seven attempts (half a minute)."""
    from cloudfiles.cloudfiles import get_interface_class

    interface = get_interface_class(protocol)
    for ask in (interface.get_file, interface.put_file, interface.delete_files):
        _ask_again_unless_refused(ask.retry)


def _ask_again_unless_refused(attempts: Any) -> None:
    """Make a `tenacity.Retrying` treat a refusal as final."""
    before = attempts.retry
    attempts.retry = lambda attempt: not _is_refused(attempt.outcome.exception()) and before(attempt)


def _is_refused(error: BaseException | None) -> bool:
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode") in REFUSED_STATUS
    return getattr(error, "code", None) in REFUSED_STATUS  # google-cloud


def split_prefix(prefix: object) -> tuple[Files, str]:
    """Split a prefix into the files of its folder or bucket and the stem of the names."""
    if not isinstance(prefix, (str, os.PathLike)):
        raise TypeError(f"prefix must be a path or a URL that ends with the beginning of the names; got {prefix!r}.")
    text = os.fspath(prefix)
    check_scheme(text, WRITABLE)
    folder, slash, stem = text.rpartition("/")
    if not stem or folder.endswith(":/"):
        raise ValueError(f"prefix must end with the beginning of the files' names, as in 'folder/em'; got {text!r}.")
    return Files.at(folder or ("/" if slash else ".")), stem


def existing_names(files: Files, stem: str) -> set[str]:
    """Return the names of files that begin with a stem."""
    if files.folder is None:
        return set(files.names(stem))
    if not files.folder.is_dir():
        return set()
    with os.scandir(files.folder) as entries:  # not recursive
        return {entry.name for entry in entries if entry.name.startswith(stem)}


def check_writable(files: Files, stem: str) -> None:
    """Raise if files cannot be written, found by writing one and removing it."""
    try:
        if files.folder is None:
            probe = f".{stem}.{uuid4().hex[:8]}.probe"
            files.put(probe, b"")
            files.delete([probe])
            return
        with TemporaryFile(dir=_nearest_folder(files.folder)):
            pass
    except Exception as error:  # each storage raises its own types
        raise OSError(f"Cannot write to {files.url}: {error}") from error


def _nearest_folder(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file")
    return folder


def records_folder(url: str) -> Files:
    """Return the folder of a store's records: ``URL.receipts``, or ``.receipts`` in a bucket that is the store."""
    url = url.rstrip("/")
    scheme, separator, rest = url.partition("://")
    is_bucket = separator and scheme not in ("file", "memory") and "/" not in rest
    return Files.at(f"{url}/.receipts" if is_bucket else f"{url}.receipts")
