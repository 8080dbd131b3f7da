"""Read files over HTTP, and tell data from answers that are none.

Only 200 and 206 are data, and only 404 and 410 mean that a file does not exist. Other answers (204, redirects without
a target, login pages) are errors. Each request is limited in bytes and in time, whatever the server sends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from imagery_dask.config import config
from imagery_dask.humanize import printable
from imagery_dask.sources.files.connections import Prepared, Variables, escaped, prepared, send
from imagery_dask.sources.files.deadlines import deadline_of
from imagery_dask.sources.files.in_flight import link_of
from imagery_dask.sources.files.response import Response
from imagery_dask.urls import file_url, name_in_url, redacted, server_of, without_values

__all__ = ["Answer", "Asked", "Auth", "HttpFiles", "StatusError", "size_limit"]

REDIRECTS = 10
REDIRECT_STATUS = (301, 302, 303, 307, 308)
GONE = (404, 410)
# Returns headers, such as ``Authorization``, for a URL.
Auth = Callable[[str], Mapping[str, str]]
HTML = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(?:\d+|\*)\s*", re.I)


class Answer(NamedTuple):
    """Bytes of a file as stored, their headers (`Response.headers`), and why they are not what was asked for, if so."""

    content: bytes | memoryview
    headers: dict[str, str]
    whole: bool
    damage: str = ""


class Asked(NamedTuple):
    """A file, or its bytes ``start .. stop - 1``.

    Attributes
    ----------
    key : str
        Name of the file below the URL.
    start, stop : int or None
        Range of bytes; None for the whole file. A negative `start`, without `stop`, is that of the last bytes.
    most : int
        Largest possible size of the file. A larger one is damaged, and only `most` of its bytes are received.
    fresh : bool
        Bypass caches.
    """

    key: str
    start: int | None
    stop: int | None
    most: int
    fresh: bool

    @property
    def size_limit(self) -> int:
        """Largest possible number of bytes of the answer."""
        return size_limit(self.start, self.stop, self.most)


def size_limit(start: int | None, stop: int | None, most: int) -> int:
    """Return the largest possible number of bytes of a range of a file, which has at most `most`."""
    if start is None:
        return most
    return -start if start < 0 else most if stop is None else stop - start


class StatusError(Exception):
    """An answer whose status is neither that of data nor of a missing file.

    Parameters
    ----------
    text : str
        The status, and where it comes from.
    code : int
        The status.
    headers : dict of str
        Headers of the answer, by name in lower case.
    reason : str
        The code that a bucket gives for it, such as ``ExpiredToken``.
    """

    def __init__(self, text: str, code: int, headers: dict[str, str], reason: str = "") -> None:
        super().__init__(text, code, headers, reason)
        self.code, self.headers, self.reason = code, headers, reason

    def __str__(self) -> str:
        return str(self.args[0])


class HttpFiles:
    """Files below a URL. Safe to use from many threads.

    Parameters
    ----------
    url : str
        An HTTP URL, in which characters are escaped that a URL cannot hold. Its query is sent with each request.
    auth : callable
        Returns the headers with which a request for a URL proves who asks. They are sent to the server of `url` only.
    """

    def __init__(self, url: str, auth: Auth) -> None:
        self._url, self._auth, self.server = url, auth, server_of(url)
        self.link, self._base = link_of(self.server), file_url(url, "")
        self._has_query = "?" in self._base
        #: Whether files come without redirects: the last one did.
        self.is_direct = False

    def get(self, asked: Asked) -> Answer | None:
        """Return a file, or None if it does not exist.

        Raises
        ------
        StatusError
            The answer is neither data nor a missing file.
        OSError, ValueError
            See `send`.
        """
        with deadline_of(sum(config.get("requests.timeout_s"))):
            response, redirected = self._answer(self._file_url(asked.key), _headers(asked))
            self.is_direct = not redirected and (asked.start is None or response.status != 200)
            if not redirected:
                self.link.answered(response.waited_s)
            with response:
                return self.answer(response, asked, redirected)

    def request(self, asked: Asked, known: Variables) -> tuple[str, Prepared]:
        """Return the URL of a file, and the request for it, of which `answer` takes the answer; see `prepared`."""
        url = self._file_url(asked.key)
        return url, prepared("GET", url, {**_headers(asked), **self._auth(url)}, known=known)

    def is_last(self, response: Response, is_ranged: bool) -> bool:
        """Return True if an answer is not that another request is needed, which `get` makes."""
        is_last = not (response.status in REDIRECT_STATUS and "location" in response.headers)
        self.is_direct = is_last and not (is_ranged and response.status == 200)
        return self.is_direct

    def answer(self, response: Response, asked: Asked, redirected: bool = False) -> Answer | None:
        """Return the file that an answer has, or None if it does not exist; see `get`."""
        if response.status in GONE and (not redirected or _is_asked(response.url, asked.key)):
            self._check_gone(response)
            return None
        self._check_status(response, redirected, ranged=asked.start is not None)
        if response.status == 206:
            return _part(response, asked.start or 0, asked.stop, asked.size_limit)
        if (asked.start or 0) < 0:
            return _end(response, asked)
        return _whole(response, asked.start, asked.size_limit)

    def _answer(self, url: str, headers: dict[str, str]) -> tuple[Response, bool]:
        """Return the answer at the end of all redirects, whose bodies are not read, and True if there were any."""
        server, is_asked = server_of(url), True
        for number in range(REDIRECTS):
            # The token, and the user and password of the URL, are only for the server that was asked.
            is_asked = is_asked and server_of(url) == server
            response = send("GET", url, {**headers, **self._auth(url)} if is_asked else headers)
            target = response.headers.get("location")
            if target is None or response.status not in REDIRECT_STATUS:
                return response, number > 0
            with response:
                url = urljoin(url, escaped(target))
        raise ValueError(f"it redirects more than {REDIRECTS} times")

    def _file_url(self, key: str) -> str:
        return file_url(self._url, key) if self._has_query else f"{self._base}/{name_in_url(key.lstrip('/'))}"

    def _check_gone(self, response: Response) -> None:
        """Raise if an answer says that more is missing than the file."""

    def _check_status(self, response: Response, redirected: bool, ranged: bool) -> None:
        _check_status(response, redirected, ranged)


def _headers(asked: Asked) -> dict[str, str]:
    headers = {"Cache-Control": "no-cache"} if asked.fresh else {}
    if asked.start is not None and asked.start < 0:
        headers["Range"] = f"bytes={asked.start}"
    elif asked.start is not None and asked.stop is not None:
        headers["Range"] = f"bytes={asked.start}-{asked.stop - 1}"
    return headers


def _is_asked(url: str, key: str) -> bool:
    """Return True if a request was redirected to the same file elsewhere, not to a page such as a login."""
    return unquote(urlsplit(url).path).endswith("/" + key.lstrip("/"))


def _check_status(response: Response, redirected: bool, ranged: bool) -> None:
    """Raise `StatusError` unless an answer is data."""
    status = response.status
    if status == 200 or (status == 206 and ranged):
        return
    via = f" at {redacted(response.url)}, to which the request was redirected" if redirected else ""
    meaning = "" if status >= 400 else ", which is neither data nor a missing file"
    text = f"HTTP {status}{via}{meaning}"
    if status in GONE:  # of another page; the file itself may exist
        raise ValueError(text)
    raise StatusError(text, status, response.headers)


def _part(response: Response, start: int, stop: int | None, most: int) -> Answer:
    """Return the answer to a request for a range."""
    content = response.read_up_to(most + 1)
    response.check_length(len(content), most)
    sent = response.headers.get("content-range")
    match = CONTENT_RANGE.fullmatch(sent or "")
    damage = _html_damage(content)
    begins = match is not None and (start < 0 or int(match[1]) == start)
    if sent is not None and (match is None or not begins or (stop is not None and int(match[2]) >= stop)):
        damage = damage or f"bytes {start} to {stop} were requested, and the server sent {sent!r}"
    if len(content) > most:  # several parts, or another range
        damage = damage or f"bytes {start} to {stop} were requested, and the server sent more"
    return Answer(content[:most], response.headers, False, damage)


def _end(response: Response, asked: Asked) -> Answer:
    """Return the last bytes of a file that a server sends whole, without regard to the range."""
    whole = _whole(response, None, asked.most)
    return Answer(whole.content[asked.start :], whole.headers, False, whole.damage)


def _whole(response: Response, start: int | None, most: int) -> Answer:
    """Return an answer with the whole file, cut to the requested range, which a server may ignore."""
    page = ""
    for number, piece in enumerate(response.pieces(start or 0)):
        page = _html_damage(piece) if number == 0 else page
    content = response.read_up_to(most if start is not None else most + 1)
    if start is not None:
        return Answer(content, response.headers, False, page or (_html_damage(content) if start == 0 else ""))
    response.check_length(len(content), most)
    damage = _html_damage(content)
    if len(content) > most:
        damage = damage or f"it has more than {most} bytes, more than it can have"
    return Answer(content[:most], response.headers, not damage, damage)


def _html_damage(content: bytes | memoryview) -> str:
    if not HTML.match(content[:1024]):
        return ""
    title = re.search(rb"<title[^>]*>(.*?)</title>", content[:65536], re.I | re.S)
    name = without_values(redacted(printable(title[1].decode(errors="replace"))))[:100] if title else ""
    return f"the server answered with an HTML page{f' ({name!r})' if name else ''} instead of data"
