"""Names as parts of URLs, and URLs without their secrets."""

from __future__ import annotations

import string
from urllib.parse import unquote, urlsplit

import pytest

from imagery_dask.urls import file_url, is_safe_for_tokens, redacted, server_of, without_secrets

PRINTABLE = [c for c in string.printable if c.isprintable() and c != "/"]


@pytest.mark.parametrize("character", PRINTABLE)
def test_every_character_of_a_key_stands_for_itself(character: str) -> None:
    url = urlsplit(file_url("https://host/em", f"a{character}b/0-64"))
    assert (url.netloc, unquote(url.path), url.query, url.fragment) == ("host", f"/em/a{character}b/0-64", "", "")
    assert "+" not in url.path  # which S3 reads as a space


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://host", "https://host/info"),
        ("https://host:80/a/b/", "https://host:80/a/b/info"),
        ("https://host/a%20b", "https://host/a%20b/info"),  # is a URL already
        ("https://host/a b#c?d%zz", "https://host/a%20b%23c%3Fd%25zz/info"),  # has what a URL cannot hold
        ("https://host/em?token=a/b&v=1", "https://host/em/info?token=a/b&v=1"),
        ("https://user:p@ss@host/em", "https://user:p@ss@host/em/info"),
    ],
)
def test_the_query_of_a_base_stays_at_the_end(base: str, url: str) -> None:
    assert file_url(base, "info") == url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:secret@host/em", "https://***@host/em"),
        ("'precomputed://https://user:p@s/s@host:80/em' failed", "'precomputed://https://***@host:80/em' failed"),
        ("s3://http://key:se'cr#et?@host/b; gs://b/a@b", "s3://http://***@host/b; gs://b/a@b"),
        ("https://TOKEN@host/em", "https://***@host/em"),
        ("Reading https://user:se cr et@host/em: ask a@b", "Reading https://***@host/em: ask a@b"),
        ("tcp://127.0.0.1:1: nothing listens there, ask a@b", "tcp://127.0.0.1:1: nothing listens there, ask a@b"),
        ("gs://bucket: refused to a@b", "gs://bucket: refused to a@b"),
        ("https://host/em?token=secret&sig=s'e/c+r%et#x, z", "https://host/em?token=***&sig=***#x, z"),
        ("{'a': 'https://host/em?X-Amz-Signature=secret'}", "{'a': 'https://host/em?X-Amz-Signature=***'}"),
        ("http://host:8080/a@b?", "http://host:8080/a@b?"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("retries exceeded with url: /em/info?token=secret (", "retries exceeded with url: /em/info?token=*** ("),
        ("Is mail@host: a URL?x=1", "Is mail@host: a URL?x=1"),
    ],
)  # fmt: skip
def test_secrets_are_not_shown(text: str, expected: str) -> None:
    assert redacted(text) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize(
    ("path", "recorded"),
    [
        ("precomputed://https://user:p@s/s@host:80/em?token=abc", "precomputed://https://host:80/em"),
        ("https://user:p s@host/em", "https://host/em"),
        ("precomputed://middleauth+https://host/em", "precomputed://middleauth+https://host/em"),
        ("graphene://https://user@host/segmentation/table/a", "graphene://https://host/segmentation/table/a"),
        ("precomputed://https://host/em?", "precomputed://https://host/em?"),
        ("precomputed://gs://bucket/a?b=c", "precomputed://gs://bucket/a?b=c"),  # a name
        ("precomputed://file:///data/a?b=c@d", "precomputed://file:///data/a?b=c@d"),
    ],
)
def test_recorded_paths_have_no_secrets(path: str, recorded: str) -> None:
    assert without_secrets(path) == recorded
    assert without_secrets(recorded) == recorded


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://host/a", True), ("http://host/a", False), ("http://10.0.0.1", False), ("http://127.0.0.1:80", True),
        ("http://127.1.2.3", True), ("http://[::1]:80", True), ("http://localhost:80/a", True),
        ("http://localhost.evil.org", False), ("http://127.0.0.1.evil.org", False),
        ("http://127.0.0.1@evil.org", False),
    ],
)  # fmt: skip
def test_tokens_are_sent_over_https_or_to_this_machine(url: str, safe: bool) -> None:
    assert is_safe_for_tokens(url) is safe


def test_a_server_has_no_user() -> None:
    assert server_of("middleauth+https://user:p@ss@host:80/a") == "https://host:80"
