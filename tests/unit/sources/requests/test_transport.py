"""The server in the path of a source, and the checksums of stored files."""

from __future__ import annotations

import base64
import hashlib

import pytest

from imagery_dask.sources.requests.transport import checksum_damage, server_of, stored_checksum

CONTENT = b"123456789"
CRC32C = base64.b64encode(bytes.fromhex("e3069283")).decode()  # the check value in the definition of the CRC
MD5 = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()


@pytest.mark.parametrize(
    ("path", "server"),
    [
        ("precomputed://https://host:8080/a/b", "https://host:8080"),
        ("https://user:secret@host/a", "https://host"),
        ("precomputed://middleauth+https://host/a", "https://host"),
        ("gs://bucket/a/b", "gs://bucket"),
        ("s3://bucket", "s3://bucket"),
        ("s3://https://s3.host:9000/bucket/a", "https://s3.host:9000"),
    ],
)
def test_the_server_of_a_path_has_no_secret(path: str, server: str) -> None:
    assert server_of(path) == server


@pytest.mark.parametrize(("kind", "value"), [("crc32c", CRC32C), ("md5", MD5)])
def test_wrong_checksums_are_reported(kind: str, value: str) -> None:
    assert checksum_damage(CONTENT, kind, value) == ""
    assert checksum_damage(CONTENT, kind, value.rstrip("=")) == ""
    assert kind in checksum_damage(CONTENT[:-1], kind, value)
    assert value in checksum_damage(CONTENT + b"0", kind, value)


@pytest.mark.parametrize(("kind", "value"), [(None, None), ("crc32c", None), ("crc32c", ""), ("sha1", "abc")])
def test_missing_and_unknown_checksums_are_not_checked(kind: str | None, value: str | None) -> None:
    assert checksum_damage(CONTENT, kind, value) == ""


@pytest.mark.parametrize(
    ("headers", "checksum"),
    [
        ({}, None),
        ({"x-goog-hash": "crc32c=AAAA==,md5=BBBB=="}, "AAAA=="),
        ({"x-goog-hash": "md5=BBBB==, crc32c=AAAA=="}, "AAAA=="),
        ({"x-goog-hash": "md5=BBBB=="}, None),
        ({"x-goog-hash": "crc32c=AAAA==", "x-goog-stored-content-encoding": "identity"}, "AAAA=="),
        (
            {"x-goog-hash": "crc32c=AAAA==", "x-goog-stored-content-encoding": "gzip", "content-encoding": "gzip"},
            "AAAA==",
        ),
        # Decompressed by the server, so that the bytes received are not those stored.
        ({"x-goog-hash": "crc32c=AAAA==", "x-goog-stored-content-encoding": "gzip"}, None),
        ({"x-goog-hash": "crc32c=AAAA==", "content-encoding": "gzip"}, None),
    ],
)
def test_the_stored_checksum_is_taken_only_for_bytes_as_stored(headers: dict[str, str], checksum: str | None) -> None:
    assert stored_checksum(headers) == checksum
