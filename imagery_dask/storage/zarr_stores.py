"""Open zarr stores by URL: a local path, ``s3://``, ``gs://``, ``memory://``, or another scheme of fsspec."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from imagery_dask.annotations import EachProcess
from imagery_dask.errors import AccessRefusedError
from imagery_dask.sources.files.failures import brief
from imagery_dask.storage.buckets import clear_errors, google_files, parse_bucket_url, s3_store

__all__ = [
    "GoogleObjects",
    "WholeObjects",
    "check_reachable",
    "create_group",
    "open_store",
]

ROOTS = ("zarr.json", ".zgroup", ".zarray")


class WholeObjects(ObjectStore[Any]):
    """Objects of a bucket, each written by one PUT: parts of an interrupted upload would stay, and be billed."""

    async def set(self, key: str, value: Any) -> None:
        """Write an object with one PUT."""
        self._check_writable()
        await self.store.put_async(key, value.as_buffer_like(), use_multipart=False)


class _Body(io.BytesIO):
    """Bytes of a request, which stay open for another attempt."""

    def close(self) -> None:
        """Do nothing: aiohttp closes what it has sent."""


class GoogleObjects(FsspecStore):
    """Objects of Google Cloud Storage, each written by one request whose body is the object.

    gcsfs sends a small object as a part of a multipart message, which a line break ends. If the last byte of the object
    is 13, a server may count it to the line break: one object in 256 loses that byte.
    """

    async def set(self, key: str, value: Any, byte_range: tuple[int, int] | None = None) -> None:
        """Write an object with one request."""
        if byte_range is not None:
            raise NotImplementedError("objects are written whole")
        self._check_writable()
        bucket, _, prefix = self.path.partition("/")
        await self.fs._call(
            "POST",
            f"{self.fs._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="media",
            name=f"{prefix}/{key}".lstrip("/"),
            headers={"Content-Type": "application/octet-stream"},
            data=_Body(value.to_bytes()),
        )


def open_store(url: str) -> Store:
    """Open a URL as a zarr store, with the credentials that this process finds.

    Parameters
    ----------
    url : str
        A local path or a URL.

    Returns
    -------
    zarr.abc.store.Store
        A store for zarr and xarray. It holds credentials: do not pickle it.
    """
    parsed = parse_bucket_url(url)
    if parsed.scheme == "file":
        return LocalStore(parsed.path)
    if parsed.scheme == "s3":
        return WholeObjects(s3_store(parsed))
    if parsed.scheme == "gs":
        return GoogleObjects(google_files(parsed, asynchronous=True), path=f"{parsed.bucket}/{parsed.path}".rstrip("/"))
    return FsspecStore.from_url(url)


def create_group(url: str, zarr_format: Literal[2, 3] = 3) -> zarr.Group:
    """Create the root group of a new store, which also checks that the URL can be written.

    Raises
    ------
    AccessRefusedError
        If the bucket or folder refuses writing.
    FileNotFoundError
        If the bucket does not exist.
    """
    try:
        with clear_errors(url):
            return zarr.create_group(open_store(url), zarr_format=zarr_format)
    except FileNotFoundError:
        bucket = parse_bucket_url(url).bucket
        if not bucket:
            raise
        raise FileNotFoundError(f"{url} cannot be written: the bucket {bucket!r} does not exist.") from None


def check_reachable(url: str, workers: EachProcess) -> None:
    """Raise if a worker cannot see or write the store whose root was created here.

    Raises
    ------
    AccessRefusedError, FileNotFoundError, ImportError, OSError
        The error of the first of these workers.
    """
    answers = {worker: problem for worker, problem in workers.run(_look, url).items() if problem is not None}
    for worker, (kind, text) in sorted(answers.items()):
        errors: dict[str, Callable[[str], Exception]] = {
            "refused": AccessRefusedError,
            "not there": FileNotFoundError,
            "not installed": ImportError,
        }
        raise errors.get(kind, OSError)(f"{len(answers)} workers cannot write {url}; {worker}: {text}")


def _look(url: str) -> tuple[str, str] | None:
    """Return why this process cannot use a store, or None if it can."""
    try:
        with clear_errors(url):
            zarr.open_group(open_store(url), mode="r")
    except AccessRefusedError as error:
        return "refused", str(error)
    except FileNotFoundError:
        return "not there", "the store does not exist there; a folder must be on a disk that all workers share."
    except ImportError as error:
        return "not installed", str(error)
    except Exception as error:
        return "failed", brief(error)
    if parse_bucket_url(url).scheme == "file":
        return _try_folder(Path(parse_bucket_url(url).path))
    return None


def _try_folder(folder: Path) -> tuple[str, str] | None:
    probe = folder / f".probe-{uuid.uuid4().hex}.partial"
    try:
        probe.touch()
    except OSError as error:
        return "refused", f"{error.strerror}; workers need permission to write there."
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
