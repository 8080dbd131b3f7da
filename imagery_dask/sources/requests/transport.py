"""Read bytes from storage by key, for every protocol of cloud-files.

cloud-files' HTTP reader returns None for both 403 and 404, and retries refused requests for minutes. Here a key
*exists*, is *missing* (None), is *refused* (`AccessRefusedError`), or the read fails, and only transient failures are
retried. Where a server does not say if a chunk is missing or refused, it is `Blob.refused_or_absent`. Bytes that fail a
check are returned with a `Blob.damage`, since the code that decodes them decides what to read again.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import google_crc32c

from imagery_dask.config import config
from imagery_dask.errors import AccessRefusedError, SourceError
from imagery_dask.sources.files.compression import LARGEST_FILE, decompress
from imagery_dask.sources.files.deadlines import TooSlowError
from imagery_dask.sources.files.failures import THROTTLING_STATUS, brief, forget_request, kind_of, pause_s, status_of
from imagery_dask.sources.files.fetching import NotDirectError, fetch
from imagery_dask.sources.files.http_files import Answer, Asked, HttpFiles, size_limit
from imagery_dask.sources.files.local_files import FORMAT_SUFFIX, LocalFiles, local_folder
from imagery_dask.sources.requests import credentials
from imagery_dask.sources.requests.absence import AbsenceControl, says_no_reason
from imagery_dask.sources.requests.counts import count_request, count_throttled
from imagery_dask.sources.requests.throttle import request_slots
from imagery_dask.urls import is_safe_for_tokens, location_of, name_in_url, server_of, without_secrets

if TYPE_CHECKING:
    from cloudfiles import CloudFiles

__all__ = ["Blob", "Files", "Request", "Transport", "complete"]

# Threads for requests that one thread cannot make for all: those that are limited, redirected, or tried again.
REQUESTS_IN_FLIGHT = 64
SLOW_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Request:
    """A file, or its bytes ``start .. stop - 1``.

    Parameters
    ----------
    key : str
        Name of the file below the cloud path.
    start, stop : int, optional
        Range of bytes; by default the whole file. With a negative `start`, and no `stop`, the last bytes of the file.
    fresh : bool
        Bypass caches, for bytes that did not decode.
    most : int
        Largest possible size of the file. No more bytes are kept, and a larger file is damaged.
    beside : str, optional
        A file that was readable, for one that need not exist. If the server also refuses a file that surely does not
        exist beside it, a refusal of `key` is no error, but `Blob.refused_or_absent`.
    """

    key: str
    start: int | None = None
    stop: int | None = None
    fresh: bool = False
    most: int = LARGEST_FILE
    beside: str | None = None

    @property
    def size_limit(self) -> int:
        """Largest possible number of bytes of the answer."""
        return size_limit(self.start, self.stop, self.most)


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes as stored, their compression, a description of their damage, and when a server says they were written.

    Large ones are the memory in which they were received, which is no `bytes` but a buffer. With `refused_or_absent`
    there are none: the server answers HTTP 403 for files that do not exist, too (`Request.beside`). With `left_out`
    there are none, because the file exists and says that it does not have them.
    """

    content: bytes | memoryview
    encoding: str | None = None
    damage: str = ""
    modified: str | None = None
    refused_or_absent: bool = False
    left_out: bool = False

    def decompressed(self, most: int = LARGEST_FILE) -> bytes | memoryview:
        """Return the bytes without the transport's compression (gzip, brotli, ...), of which there are at most `most`.

        Raise ValueError if they are damaged.
        """
        if self.damage:
            raise ValueError(self.damage)
        if not self.encoding:
            return self.content
        return decompress(bytes(self.content), self.encoding, most)


# Damaged, so that no code takes it for an empty file.
REFUSED_OR_ABSENT = Blob(b"", damage="the server does not say if it is absent or refused", refused_or_absent=True)
LEFT_OUT = Blob(b"", damage="its file does not have it", left_out=True)


class Files(Protocol):
    """Files that are read by name: of a folder (`Transport`), or of a store of another kind."""

    def get(self, request: Request, /) -> Blob | None:
        """Fetch one file or byte range; None if the file does not exist."""

    def get_many(self, wanted: Iterable[Request], /) -> Iterator[tuple[Request, Blob | None]]:
        """Yield the results of many requests in their order."""


class Transport:
    """Reader of the files below one cloud path. Safe to use from many threads.

    Parameters
    ----------
    cloudpath : str
        A path in CloudVolume's form. Buckets for which this process has no credentials are read anonymously over
        HTTPS.
    login : bool
        Send the user and password for HTTP servers of cloud-files' secrets, if there are any.
    """

    def __init__(self, cloudpath: str, login: bool = True) -> None:
        self.cloudpath = cloudpath
        self._get_once: Callable[[Request], Blob | None]
        self.is_remote = True
        self._control = AbsenceControl(without_secrets(cloudpath), lambda key: self.get(Request(key)) is not None)
        self._server = server_of(cloudpath)
        folder = local_folder(cloudpath)
        self._folder = None if folder is None else LocalFiles(folder)
        self._http: HttpFiles | None = None
        if self._folder is not None:
            self.is_remote, self._get_once = False, partial(_read_local, self._folder)
        elif (files := _http_files(cloudpath, login)) is not None:
            self._http, self._server = files, files.server
            self._get_once = partial(_read_http, files)
        else:
            cloud_files = _cloud_files(cloudpath)
            self.is_remote = cloud_files.protocol != "mem"
            self._get_once = partial(_read_cloud_files, cloud_files)

    def get(self, request: Request, failure: Exception | None = None) -> Blob | None:
        """Fetch one file or byte range.

        Parameters
        ----------
        request : Request
            What is fetched.
        failure : Exception, optional
            Why a first attempt, which is counted, has failed.

        Returns
        -------
        Blob or None
            None if the file does not exist. A file that is shorter than the range, or differs from its checksum, has a
            `damage`.

        Raises
        ------
        AccessRefusedError
            If the storage answers 401, 403 or an equivalent error, unless `Request.beside` shows that this is its
            answer for a file that does not exist.
        SourceError
            If the read fails for another reason, after retries if the failure is transient.
        """
        attempts = config.get("requests.attempts")
        for attempt in range(attempts):
            try:
                if failure is not None and attempt == 0:
                    raise failure
                count_request(repeated=attempt > 0 or request.fresh)
                with self._slots():
                    blob = self._get_once(request)
                return complete(request, blob)
            except SourceError:
                raise
            except Exception as error:
                kind = kind_of(error)
                if kind == "outside":
                    return complete(request, Blob(b""))
                if kind == "not there":
                    return None
                if kind == "refused":
                    if request.beside and says_no_reason(error) and self._control.hides_absence(request.beside):
                        return REFUSED_OR_ABSENT
                    refused = self._refused(request.key, error)
                    forget_request(error)
                    raise refused from error
                if status_of(error) in THROTTLING_STATUS:
                    count_throttled()
                # Each slow answer has taken a minute and more.
                last = min(attempts, SLOW_ATTEMPTS) if isinstance(error, TooSlowError) else attempts
                if kind == "final" or attempt >= last - 1:
                    failed = SourceError(f"Reading {self._name(request.key)} failed: {brief(error)}")
                    forget_request(error)
                    raise failed from error
                time.sleep(pause_s(attempt, error))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stamp(self, key: str) -> tuple[object, ...] | None:
        """Return what differs once a local file is written again; None if it is not known (`LocalFiles.stamp`)."""
        return None if self._folder is None else self._folder.stamp(key)

    def get_many(self, wanted: Iterable[Request]) -> Iterator[tuple[Request, Blob | None]]:
        """Yield the results of many requests in their order, fetched concurrently from remote storage."""
        if not self.is_remote:
            for request in wanted:
                yield request, self.get(request)
            return
        requests_ = list(wanted)
        slots = self._slots()
        if self._http is not None and self._http.is_direct and isinstance(slots, nullcontext):
            yield from self._fetched(self._http, requests_)
            return
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

    def _fetched(self, files: HttpFiles, requests_: list[Request]) -> Iterator[tuple[Request, Blob | None]]:
        """Yield the results of many requests, of which this thread makes the first attempts."""
        results: dict[int, Blob | None | Future[Blob | None]] = {}
        first = 0
        fetched = fetch(files, [_asked(request) for request in requests_], _pool().submit)
        try:
            for index, outcome in fetched:
                request = requests_[index]
                if isinstance(outcome, NotDirectError):
                    results[index] = _pool().submit(copy_context().run, self.get, request)
                else:
                    count_request(repeated=request.fresh)
                    if isinstance(outcome, Exception):
                        results[index] = _pool().submit(copy_context().run, self.get, request, outcome)
                    else:
                        results[index] = complete(request, _blob_of(outcome))
                while first in results and _is_there(results[first]):
                    yield requests_[first], _result(results.pop(first))
                    first += 1
            for index in range(first, len(requests_)):
                yield requests_[index], _result(results.pop(index))
        finally:
            fetched.close()
            for result in results.values():
                if isinstance(result, Future):
                    result.cancel()

    def _slots(self) -> AbstractContextManager[object]:
        """Return the context in which a request is made, which waits if requests are limited."""
        return request_slots(self._server) if self.is_remote else nullcontext()

    def _name(self, key: str) -> str:
        return f"{without_secrets(self.cloudpath).rstrip('/')}/{key}"

    def _refused(self, key: str, reason: object) -> AccessRefusedError:
        return AccessRefusedError(
            f"Access was refused to {self._name(key)} ({brief(reason)}). Check the credentials that this process "
            "finds (environment, ~/.cloudvolume/secrets), or ask for read permission."
        )


MIDDLEAUTH = "middleauth+"
# Hosts at which buckets are read without credentials.
PUBLIC_HOSTS = {"gs": "https://storage.googleapis.com", "s3": "https://s3.amazonaws.com"}


def _http_files(cloudpath: str, login: bool) -> HttpFiles | None:
    """Return the files of a path that is read over HTTP: of servers and of buckets."""
    url = http_url(cloudpath)
    if url is None:
        return credentials.bucket_files(cloudpath)
    if location_of(cloudpath).startswith(MIDDLEAUTH):
        return HttpFiles(url, partial(_cave_auth, url))
    found = credentials.http_login() if login else None
    headers = {} if found is None else {"Authorization": found}
    return HttpFiles(url, lambda _: headers)


def _read_local(files: LocalFiles, request: Request) -> Blob | None:
    stop = request.stop if request.start is not None else request.most + 1
    stored = files.read(request.key, request.start, stop)
    return None if stored is None else Blob(*stored, damage=_size_damage(request, stored[0]))


def _read_http(files: HttpFiles, request: Request) -> Blob | None:
    return _blob_of(files.get(_asked(request)))


def _asked(request: Request) -> Asked:
    return Asked(request.key, request.start, request.stop, request.most, request.fresh)


def _blob_of(answer: Answer | None) -> Blob | None:
    if answer is None:
        return None
    damage = answer.damage
    if answer.whole and not damage:
        damage = checksum_damage(answer.content, "crc32c", stored_checksum(answer.headers))
    modified = answer.headers.get("last-modified")
    if modified == answer.headers.get("date"):  # made for this request
        modified = None
    return Blob(answer.content, answer.headers.get("content-encoding"), damage, modified)


def _is_there(result: Blob | None | Future[Blob | None]) -> bool:
    return not isinstance(result, Future) or result.done()


def _result(result: Blob | None | Future[Blob | None]) -> Blob | None:
    return result.result() if isinstance(result, Future) else result


def _read_cloud_files(files: CloudFiles, request: Request) -> Blob | None:
    """Read a file by a client of cloud-files: of memory, and of servers that only it knows."""
    with files._get_connection() as connection:
        # Without cloud-files' own retries, which repeat refused requests seven times, for up to minutes.
        get_file = inspect.unwrap(type(connection).get_file)
        # A range limits what is received.
        is_end = request.start is not None and request.stop is None  # which cloud-files cannot ask for
        start, stop = (request.start, request.stop) if request.start is not None else (0, request.most + 1)
        content, encoding, *_ = get_file(connection, request.key, None if is_end else start, stop)
    if is_end and content is not None:
        content = content[request.start :]
    return None if content is None else Blob(content, encoding or None, _size_damage(request, content))


def _size_damage(request: Request, content: bytes | memoryview) -> str:
    if request.start is not None or len(content) <= request.most:
        return ""
    return f"it has more than {request.most} bytes, more than it can have"


def _cave_auth(url: str, asked: str) -> dict[str, str]:
    """Return the header with the token for a server behind CAVE's authentication, which is only sent over HTTPS."""
    del asked
    token = credentials.cave_token(urlsplit(url).netloc) if is_safe_for_tokens(url) else None
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def http_url(cloudpath: str) -> str | None:
    """Return the URL at which a path is read over HTTP; None for other protocols.

    Buckets for which this process has no credentials are read from their public URL.
    """
    path = location_of(cloudpath).removesuffix(FORMAT_SUFFIX).removeprefix(MIDDLEAUTH)
    scheme, _, rest = path.partition("://")
    if scheme in ("http", "https"):
        return path
    if scheme not in PUBLIC_HOSTS or not _is_anonymous(cloudpath):
        return None
    if rest.startswith(("http://", "https://")):  # of S3, with another server
        server, _, name = rest.partition("://")[2].partition("/")
        return f"{rest.partition('://')[0]}://{server}/{name_in_url(name)}"
    return f"{PUBLIC_HOSTS[scheme]}/{name_in_url(rest)}"


def _cloud_files(cloudpath: str) -> CloudFiles:
    from cloudfiles import CloudFiles

    return CloudFiles(cloudpath, locking=False, progress=False)


def reachable_path(cloudpath: str) -> str:
    """Return a path that this process can read with CloudVolume: buckets without credentials become public HTTPS."""
    if _is_anonymous(cloudpath):
        from cloudvolume.paths import to_https_protocol

        return str(to_https_protocol(cloudpath))
    return cloudpath


def _is_anonymous(cloudpath: str) -> bool:
    """Return True for a bucket for which this process has no credentials."""
    scheme = location_of(cloudpath).partition("://")[0]
    return (scheme == "gs" and not credentials.has_google()) or (scheme == "s3" and not credentials.has_aws(cloudpath))


def complete(request: Request, blob: Blob | None) -> Blob | None:
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


def checksum_damage(content: bytes | memoryview, kind: str | None, expected: str | None) -> str:
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
        digest = google_crc32c.value(bytes(content)).to_bytes(4, "big")
    else:
        digest = hashlib.md5(content, usedforsecurity=False).digest()
    actual = base64.b64encode(digest).decode()
    if actual.rstrip("=") == expected.rstrip("="):
        return ""
    return f"its {kind} is {actual}, but the server sent {expected}"


def stored_checksum(headers: Mapping[str, str]) -> str | None:
    """Return the CRC32C that Google sends for an object (``x-goog-hash``), if the body is the object as stored.

    None if the server decompresses the object while sending it, since the checksum is that of the compressed object.
    Headers have names in lower case.
    """
    stored = headers.get("x-goog-stored-content-encoding", "identity")
    if stored != (headers.get("content-encoding") or "identity"):
        return None
    for part in headers.get("x-goog-hash", "").split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "crc32c":
            return value
    return None


@lru_cache(maxsize=1)
def _pool_of(process: int) -> ThreadPoolExecutor:
    del process
    return ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="imagery-dask-fetch")


def _pool() -> ThreadPoolExecutor:
    # Keyed by process: threads do not survive a fork.
    return _pool_of(os.getpid())
