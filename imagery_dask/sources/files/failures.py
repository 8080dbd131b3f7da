"""Classification of failed requests: missing, refused, transient or permanent."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from imagery_dask.config import config
from imagery_dask.errors import REFUSED_STATUS
from imagery_dask.humanize import printable
from imagery_dask.urls import redacted

__all__ = [
    "PASSING_STATUS",
    "THROTTLING_STATUS",
    "brief",
    "code_of",
    "forget_request",
    "kind_of",
    "pause_s",
    "retry_after_s",
    "status_of",
]

REFUSED_CODES = {
    "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "Forbidden", "Unauthorized",
}  # fmt: skip
NOT_THERE_CODES = {"404", "NoSuchKey", "NotFound"}
# Codes of S3 with a status that is final otherwise.
PASSING_CODES = {"RequestTimeout", "SlowDown"}
RANGE_NOT_SATISFIABLE = 416
# A server that asks for fewer requests, or has too much to do: slow down.
THROTTLING_STATUS = {429, 503}
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


def kind_of(error: Exception) -> str:
    """Classify a failure.

    Returns
    -------
    str
        "not there", "refused", "outside" (the byte range is beyond the end of the file), "passing" (try again) or
        "final".
    """
    code, status = code_of(error), status_of(error)
    if code in NOT_THERE_CODES or isinstance(error, FileNotFoundError):
        return "not there"
    if code in REFUSED_CODES or status in REFUSED_STATUS or isinstance(error, PermissionError):
        return "refused"
    if status == RANGE_NOT_SATISFIABLE:
        return "outside"
    if isinstance(error, (TypeError, ValueError)):  # among them those of requests for an invalid URL
        return "final"
    return "passing" if code in PASSING_CODES or status == 0 or status in PASSING_STATUS else "final"


def code_of(error: Exception) -> str:
    """Return the code that a bucket gives for a failure, such as ``ExpiredToken``; without one, the HTTP status."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "reason", "") or status_of(error))


def status_of(error: Exception) -> int:
    """Return the HTTP status of a failure; 0 if there was no answer."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # requests, google-cloud, `StatusError`
    return int(getattr(response, "status_code", 0) or getattr(error, "code", 0) or 0)


def pause_s(attempt: int, error: Exception | None = None) -> float:
    """Return the seconds to wait after attempt number `attempt`, counted from 0.

    The pause grows exponentially, with full jitter, so that processes that failed together retry at different times.
    The server's ``Retry-After`` is added, up to ``requests.longest_retry_after_s`` (`imagery_dask.config`).
    """
    asked = retry_after_s(_headers(error)) or 0.0
    longest: float = min(config.get("requests.longest_pause_s"), config.get("requests.first_pause_s") * 2.0**attempt)
    patience: float = min(config.get("requests.longest_retry_after_s"), asked)
    return patience + random.uniform(0.0, longest)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which has a number or a date; None if it is invalid."""
    headers = {name.lower(): value for name, value in headers.items()}
    text: Any = headers.get("retry-after")
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        moment = _moment(text)
        if moment is None:
            return None
        # Relative to the server's clock if it sends one, because the local clock may be wrong.
        here = _moment(headers.get("date"))
        seconds = moment - (time.time() if here is None else here)
    return max(0.0, seconds) if seconds < float("inf") else None


def brief(reason: object) -> str:
    """Return a reason as one short line, without passwords and tokens of URLs, and without codes for a terminal."""
    text = redacted(printable(str(reason)))
    name = f"{type(reason).__name__}: " if isinstance(reason, Exception) else ""
    return (name + text)[:300]


def forget_request(error: BaseException) -> None:
    """Remove the request, whose header holds the token, and the passwords and tokens of URLs from an error.

    The context and cause are removed too, because they keep other errors with their requests when the error is
    pickled.
    """
    from requests import RequestException

    if isinstance(error, RequestException):
        error.request = error.response = None
        error.args = (redacted(str(error)),)
    error.__context__ = error.__cause__ = None


def _headers(error: Exception | None) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        headers: Mapping[str, str] = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return headers
    return getattr(response, "headers", None) or getattr(error, "headers", None) or {}


def _moment(text: Any) -> float | None:
    """Return an HTTP date as seconds since 1970, or None if it is invalid."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
