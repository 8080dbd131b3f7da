"""Sorting failed requests: what is not there, what is refused, what may pass, what will not."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from imagery_dask.config import config

__all__ = ["PASSING_STATUS", "brief", "forget_request", "kind_of", "pause_s", "retry_after_s"]

REFUSED_CODES = {
    "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "Forbidden", "Unauthorized",
}  # fmt: skip
NOT_THERE_CODES = {"404", "NoSuchKey", "NotFound"}
RANGE_NOT_SATISFIABLE = 416
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


def kind_of(error: Exception) -> str:
    """Sort a failure: "not there", "refused", "outside" (of the file), "passing" (try again) or "final"."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        code = str(response.get("Error", {}).get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    else:  # requests, google-cloud
        status = int(getattr(response, "status_code", 0) or getattr(error, "code", 0) or 0)
        code = str(status)
    if code in NOT_THERE_CODES or isinstance(error, FileNotFoundError):
        return "not there"
    if code in REFUSED_CODES or status in (401, 403) or isinstance(error, PermissionError):
        return "refused"
    if status == RANGE_NOT_SATISFIABLE:
        return "outside"
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, TypeError, ValueError)):
        return "final"
    return "passing" if status == 0 or status in PASSING_STATUS else "final"


def pause_s(attempt: int, error: Exception | None = None) -> float:
    """Seconds to wait before the next attempt, the first of which is number 0.

    Exponential with full jitter: processes that failed together come back apart. What the server asks for comes
    first, up to ``requests.longest_retry_after_s`` (`imagery_dask.config`).
    """
    asked = retry_after_s(_headers(error)) or 0.0
    longest: float = min(config.get("requests.longest_pause_s"), config.get("requests.first_pause_s") * 2.0**attempt)
    patience: float = min(config.get("requests.longest_retry_after_s"), asked)
    return patience + random.uniform(0.0, longest)


def retry_after_s(headers: Any) -> float | None:
    """Seconds that ``Retry-After`` asks for, given as a number or as a date; None where it says nothing sensible."""
    text = headers.get("Retry-After")
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        moment = _moment(text)
        if moment is None:
            return None
        # By the server's own clock, where it tells the time: this computer's may be wrong.
        here = _moment(headers.get("Date"))
        seconds = moment - (time.time() if here is None else here)
    return max(0.0, seconds) if seconds < float("inf") else None


def brief(reason: object) -> str:
    """One short line that says what went wrong."""
    text = " ".join(str(reason).split())
    name = f"{type(reason).__name__}: " if isinstance(reason, Exception) else ""
    return (name + text)[:300]


def forget_request(error: BaseException) -> None:
    """Take from an error what it keeps of its request, whose header holds the token.

    An error that is raised while another one is handled keeps that one as its context, and takes it along to wherever
    it is pickled.
    """
    if isinstance(error, requests.RequestException):
        error.request = error.response = None
    error.__context__ = error.__cause__ = None


def _headers(error: Exception | None) -> Any:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return requests.structures.CaseInsensitiveDict(found)
    return getattr(response, "headers", None) or {}


def _moment(text: Any) -> float | None:
    """Seconds since 1970 of an HTTP date."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
