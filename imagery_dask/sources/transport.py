"""Read bytes from storage by key, for every protocol of cloud-files.

cloud-files' HTTP reader returns None for both 403 and 404, and retries refused requests for minutes. Here a key
*exists*, is *missing* (None), is *refused* (`AccessRefusedError`), or the read fails, and only transient failures are
retried. Bytes that fail a check are returned with a `Blob.damage`, since the code that decodes them decides what to
read again.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import google_crc32c

from imagery_dask.config import config
from imagery_dask.errors import REFUSED_STATUS, AccessRefusedError, SourceError
from imagery_dask.sources import credentials
from imagery_dask.sources.codecs import decompress
from imagery_dask.sources.counts import count_request
from imagery_dask.sources.failures import brief, forget_request, kind_of, pause_s
from imagery_dask.sources.local_files import LocalFiles, local_folder
from imagery_dask.sources.throttle import request_slots

if TYPE_CHECKING:
    from cloudfiles import CloudFiles
    from requests import Response
    from requests.adapters import HTTPAdapter

__all__ = ["Blob", "Request", "Transport"]

# Requests at the same time from one process, enough to hide the latency of object stores.
REQUESTS_IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class Request:
    """A file, or its bytes ``start .. stop - 1``; `fresh` bypasses caches, for bytes that did not decode."""

    key: str
    start: int | None = None
    stop: int | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes as stored, their compression, and a description of their damage, if any."""

    content: bytes
    encoding: str | None = None
    damage: str = ""

    @property
    def is_nothing(self) -> bool:
        """True for an empty file, which represents a chunk that was not written."""
        return not self.content and not self.damage

    def decompressed(self) -> bytes:
        """Return the bytes without the transport's compression (gzip, brotli, ...); raise ValueError if damaged."""
        if self.damage:
            raise ValueError(self.damage)
        return decompress(self.content, self.encoding)


class Transport:
    """Reader of the files below one cloud path. Safe to use from many threads.

    Parameters
    ----------
    cloudpath : str
        A path in CloudVolume's form. Buckets for which this process has no credentials are read anonymously over
        HTTPS.
    """

    def __init__(self, cloudpath: str) -> None:
        self.cloudpath = cloudpath
        self._get_once: Callable[[Request], Blob | None]
        folder = local_folder(cloudpath)
        if folder is not None:
            self.is_remote, self._get_once = False, partial(_read_local, LocalFiles(folder))
            return
        self._files = _cloud_files(cloudpath)
        self._local = threading.local()
        self._server = server_of(self._files.cloudpath)
        protocol = self._files.protocol
        self.is_remote = protocol != "mem"
        behind_cave = protocol == "middleauth+https"
        self._token_host = urlsplit(cloudpath.partition("middleauth+")[2]).netloc if behind_cave else None
        self._get_once = self._http_get if protocol in HTTP_PROTOCOLS else self._cloud_files_get

    def get(self, request: Request) -> Blob | None:
        """Fetch one file or byte range.

        Returns
        -------
        Blob or None
            None if the file does not exist. A file that is shorter than the range, or differs from its checksum, has a
            `damage`.

        Raises
        ------
        AccessRefusedError
            If the storage answers 401, 403 or an equivalent error.
        SourceError
            If the read fails for another reason, after retries if the failure is transient.
        """
        attempts = config.get("requests.attempts")
        for attempt in range(attempts):
            count_request(repeated=attempt > 0 or request.fresh)
            try:
                with self._slots():
                    blob = self._get_once(request)
                return _complete(request, blob)
            except SourceError:
                raise
            except Exception as error:
                kind = kind_of(error)
                if kind == "outside" and request.start is not None:
                    return _complete(request, Blob(b""))
                if kind == "not there":
                    return None
                if kind == "refused":
                    refused = self._refused(request.key, error)
                    forget_request(error)
                    raise refused from error
                if kind in ("final", "outside") or attempt == attempts - 1:
                    failed = SourceError(f"Reading {self._name(request.key)} failed: {brief(error)}")
                    forget_request(error)
                    raise failed from error
                time.sleep(pause_s(attempt, error))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def get_many(self, wanted: Iterable[Request]) -> Iterator[tuple[Request, Blob | None]]:
        """Yield the results of many requests in their order, fetched concurrently from remote storage."""
        if not self.is_remote:
            for request in wanted:
                yield request, self.get(request)
            return
        requests_ = list(wanted)
        futures = [_pool().submit(copy_context().run, self.get, request) for request in requests_]
        try:
            for index, request in enumerate(requests_):
                blob = futures[index].result()
                futures[index] = None  # type: ignore[call-overload]  # free the bytes once they are used
                yield request, blob
        finally:
            for future in futures:
                if future is not None:
                    future.cancel()

    def _slots(self) -> AbstractContextManager[object]:
        """Return the context in which a request is made, which waits if requests are limited."""
        return request_slots(self._server) if self.is_remote else nullcontext()

    def _name(self, key: str) -> str:
        return f"{self.cloudpath.rstrip('/')}/{key}"

    def _refused(self, key: str, reason: object) -> AccessRefusedError:
        return AccessRefusedError(
            f"Access was refused to {self._name(key)} ({brief(reason)}). Check the credentials that this process "
            "finds (environment, ~/.cloudvolume/secrets), or ask for read permission. A store that answers 403 for "
            "objects that do not exist must also allow listing."
        )

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._files._get_connection()
            if self._files.protocol in HTTP_PROTOCOLS:
                # cloud-files' adapter keeps 10 connections; beyond these, every request opens and closes one.
                for scheme in ("http://", "https://"):
                    connection.session.mount(scheme, _adapter(os.getpid()))
        return connection

    def _cloud_files_get(self, request: Request) -> Blob | None:
        connection = self._connection()
        # Without cloud-files' own retries, which repeat refused requests seven times, for up to minutes.
        get_file = inspect.unwrap(type(connection).get_file)
        content, encoding, checksum, kind = get_file(connection, request.key, request.start, request.stop)
        if content is None:
            return None
        # Not checked on S3: the ETag is the MD5 of some objects, but not of others (encrypted ones).
        checked = request.start is None and self._files.protocol == "gs"
        return Blob(content, encoding or None, checksum_damage(content, kind, checksum) if checked else "")

    def _http_get(self, request: Request) -> Blob | None:
        connection = self._connection()
        headers = dict(connection.default_headers())
        token = credentials.cave_token(self._token_host) if self._token_host else None
        auth = credentials.Bearer(token) if token else None
        if request.start is not None and request.stop is not None:
            headers["Range"] = f"bytes={request.start}-{request.stop - 1}"
        if request.fresh:
            headers["Cache-Control"] = "no-cache"
        url = connection.get_path_to_file(request.key)
        with connection.session.get(
            url, headers=headers, auth=auth, stream=True, timeout=config.get("requests.timeout_s")
        ) as response:
            if response.status_code in (404, 410):
                return None
            if response.status_code in REFUSED_STATUS:
                raise self._refused(request.key, f"HTTP {response.status_code}")
            response.raise_for_status()
            # Still compressed: `Blob.decompressed` decodes once.
            content = response.raw.read(decode_content=False)
            _check_length(response, len(content))
            damage = ""
            if response.status_code == 200:
                damage = checksum_damage(content, "crc32c", stored_checksum(response.headers))
                if request.start is not None:
                    # The server ignored the range and sent the whole file, as HTTP allows.
                    content = content[request.start : request.stop]
            return Blob(content, response.headers.get("Content-Encoding"), damage)


HTTP_PROTOCOLS = ("http", "https", "middleauth+https")


def _read_local(files: LocalFiles, request: Request) -> Blob | None:
    stored = files.read(request.key, request.start, request.stop)
    return None if stored is None else Blob(*stored)


def _cloud_files(cloudpath: str) -> CloudFiles:
    from cloudfiles import CloudFiles

    secrets = credentials.secrets_for(cloudpath)
    return CloudFiles(reachable_path(cloudpath), secrets=secrets, locking=False, progress=False)


def reachable_path(cloudpath: str) -> str:
    """Return a path that this process can read: buckets without credentials become anonymous HTTPS."""
    scheme = cloudpath.removeprefix("precomputed://").partition("://")[0]
    if (scheme == "gs" and not credentials.has_google()) or (scheme == "s3" and not credentials.has_aws(cloudpath)):
        from cloudvolume.paths import to_https_protocol

        return str(to_https_protocol(cloudpath))
    return cloudpath


def server_of(cloudpath: str) -> str:
    """Return the server of a path: ``scheme://host``, or ``scheme://bucket`` if it has no host of its own."""
    path = cloudpath.removeprefix("precomputed://").removeprefix("middleauth+")
    endpoint = path.partition("://")[2]
    parts = urlsplit(endpoint if "://" in endpoint else path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _complete(request: Request, blob: Blob | None) -> Blob | None:
    """Mark a byte range that is shorter than requested as damaged: its chunk is lost, not missing."""
    if blob is None or blob.damage or request.start is None or request.stop is None:
        return blob
    if len(blob.content) == request.stop - request.start:
        return blob
    damage = (
        f"{request.key} is truncated: its index or format refers to bytes {request.start} to {request.stop}, and "
        f"{len(blob.content)} of them were received"
    )
    return replace(blob, damage=damage)


def _check_length(response: Response, received: int) -> None:
    promised = response.headers.get("Content-Length")
    if promised is not None and int(promised) != received:
        raise ConnectionError(f"the body was truncated: {received} of {promised} bytes")


def checksum_damage(content: bytes, kind: str | None, expected: str | None) -> str:
    """Return a description of a checksum mismatch; "" if the bytes agree with their checksum or there is none.

    Parameters
    ----------
    content : bytes
        Bytes of the whole file, as stored.
    kind : {"crc32c", "md5"} or None
        Algorithm; others are not checked.
    expected : str or None
        Checksum in base64.
    """
    if not expected or kind not in ("crc32c", "md5"):
        return ""
    if kind == "crc32c":
        digest = google_crc32c.value(content).to_bytes(4, "big")
    else:
        digest = hashlib.md5(content, usedforsecurity=False).digest()
    actual = base64.b64encode(digest).decode()
    if actual.rstrip("=") == expected.rstrip("="):
        return ""
    return f"its {kind} is {actual}, but the server sent {expected}"


def stored_checksum(headers: Mapping[str, str]) -> str | None:
    """Return the CRC32C that Google sends for an object (``x-goog-hash``), if the body is the object as stored.

    None if the server decompresses the object while sending it, since the checksum is that of the compressed object.
    """
    stored = headers.get("x-goog-stored-content-encoding", "identity")
    if stored != (headers.get("Content-Encoding") or "identity"):
        return None
    for part in headers.get("x-goog-hash", "").split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "crc32c":
            return value
    return None


@lru_cache(maxsize=1)
def _adapter(process: int) -> HTTPAdapter:
    from requests.adapters import HTTPAdapter

    del process
    return HTTPAdapter(pool_connections=8, pool_maxsize=2 * REQUESTS_IN_FLIGHT)


@lru_cache(maxsize=1)
def _pool_of(process: int) -> ThreadPoolExecutor:
    del process
    return ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="imagery-dask-fetch")


def _pool() -> ThreadPoolExecutor:
    # Keyed by process: threads do not survive a fork.
    return _pool_of(os.getpid())
