"""Classification of failures, and pauses before another attempt."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest
import requests
from support.settings import Configure
from urllib3.exceptions import IncompleteRead, ReadTimeoutError

from imagery_dask.config import config
from imagery_dask.sources.files.failures import brief, kind_of, pause_s, retry_after_s

NOW = 1_800_000_000
DATE = formatdate(NOW, usegmt=True)


def http_error(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError(response=response)


class ClientError(Exception):
    """An error with the attributes of botocore's ClientError."""

    def __init__(self, status: int, code: str = "", **headers: str) -> None:
        self.response = {
            "Error": {"Code": code or str(status)},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
        }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *[(http_error(status), "passing") for status in (408, 425, 429, 500, 502, 503, 504)],
        *[(http_error(status), "refused") for status in (401, 403)],
        (http_error(404), "not there"),
        (http_error(416), "outside"),
        *[(http_error(status), "final") for status in (400, 405, 501)],
        (ClientError(503, "SlowDown"), "passing"),
        (ClientError(403, "AccessDenied"), "refused"),
        (ClientError(404, "NoSuchKey"), "not there"),
        (ClientError(416, "InvalidRange"), "outside"),
        (requests.ConnectTimeout(), "passing"),
        (requests.ReadTimeout(), "passing"),
        (ReadTimeoutError(None, "", "timed out"), "passing"),  # type: ignore[arg-type]
        (IncompleteRead(3, 4), "passing"),
        (ConnectionResetError(), "passing"),
        (FileNotFoundError(), "not there"),
        (PermissionError(), "refused"),
        (requests.exceptions.InvalidURL(), "final"),
    ],
    ids=str,
)
def test_errors_are_classified(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 0.5 "}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": formatdate(NOW + 90, usegmt=True), "Date": DATE}, 90.0),
        ({"Retry-After": formatdate(NOW - 90, usegmt=True), "Date": DATE}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": ""}, None),
    ],
    ids=str,
)
def test_retry_after_is_read_as_seconds_or_date(headers: Any, seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


@pytest.mark.parametrize("date", [{}, {"Date": "yesterday"}], ids=["no date", "no sensible date"])
def test_a_date_without_the_servers_clock_uses_the_local_clock(date: dict[str, str]) -> None:
    headers = {"Retry-After": formatdate(time.time() + 60, usegmt=True), **date}
    assert retry_after_s(headers) == pytest.approx(60, abs=2)


def test_pauses_grow_and_are_random() -> None:
    for attempt in range(12):
        longest = min(config.get("requests.longest_pause_s"), config.get("requests.first_pause_s") * 2**attempt)
        pauses = [pause_s(attempt) for _ in range(300)]
        assert 0 <= min(pauses) < 0.1 * longest
        assert 0.9 * longest < max(pauses) <= longest


@pytest.mark.parametrize(
    "error", [http_error(429, Retry_After="20"), ClientError(503, **{"retry-after": "20"})], ids=str
)
def test_a_pause_is_at_least_what_the_server_requests(error: Exception) -> None:
    pauses = [pause_s(1, error) for _ in range(100)]
    assert min(pauses) >= 20
    assert max(pauses) <= 20 + 2 * config.get("requests.first_pause_s")
    assert len(set(pauses)) > 50


def test_pauses_requested_by_the_server_are_limited(configure: Configure) -> None:
    assert config.get("requests.longest_retry_after_s") == 120
    configure("requests.longest_retry_after_s", 5.0)
    assert 5 <= pause_s(0, http_error(503, Retry_After="86400")) < 6


def test_a_reason_has_no_codes_for_a_terminal() -> None:
    assert (
        brief(ValueError("HTTP/1.1 \x1b]0;title\x07\x1b[2J \x00 done\r\n2"))
        == "ValueError: HTTP/1.1 ?]0;title??[2J ? done 2"
    )
