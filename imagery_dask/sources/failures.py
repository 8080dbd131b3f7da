"""Sorting failed requests: what is not there, what is refused, what may pass, what will not."""

from __future__ import annotations

import random
from typing import Any

import requests

__all__ = ["ATTEMPTS", "PASSING_STATUS", "brief", "forget_request", "kind_of", "pause_s"]

ATTEMPTS = 5
LONGEST_PAUSE_S = 8.0
# A server that asks for more patience than this is taken for one that is down.
LONGEST_RETRY_AFTER_S = 60.0
REFUSED_CODES = {
    "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "Forbidden", "Unauthorized",
}  # fmt: skip
NOT_THERE_CODES = {"404", "NoSuchKey", "NotFound"}
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


def kind_of(error: Exception) -> str:
    """Sort a failure: "not there", "refused", "passing" (try again) or "final"."""
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
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, TypeError, ValueError)):
        return "final"
    return "passing" if status == 0 or status in PASSING_STATUS else "final"


def pause_s(attempt: int, error: Exception | None = None) -> float:
    """Seconds to wait before the next attempt: exponential with jitter, or what the server asks for."""
    asked = _retry_after(getattr(error, "response", None))
    if asked is not None:
        return min(LONGEST_RETRY_AFTER_S, asked)
    return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, 0.2 * 2.0**attempt)


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


def _retry_after(response: Any) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
