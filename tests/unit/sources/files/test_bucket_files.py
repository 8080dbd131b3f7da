"""Signed requests to buckets: keys of roles, regions, errors of S3, tokens of Google, and names."""

from __future__ import annotations

import calendar
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import google.auth.credentials
import pytest
from google.auth.exceptions import RefreshError
from support.settings import Configure

from imagery_dask.errors import AccessRefusedError, SourceError
from imagery_dask.sources.files import bucket_files
from imagery_dask.sources.files.aws_signature import AwsKeys, Signer
from imagery_dask.sources.requests import credentials
from imagery_dask.sources.requests.transport import Request, Transport
from imagery_dask.urls import name_in_url

KEYS = AwsKeys("an-access-key", "a-secret-key", "a-session-token")
REGION = "eu-west-1"
Answers = Callable[[str, dict[str, str]], tuple[int, dict[str, str], bytes]]


class Bucket:
    """A server that answers each request by a function of its path and headers."""

    def __init__(self) -> None:
        self.answers: Answers = lambda path, headers: (200, {}, path.encode())
        self.requests: list[tuple[str, dict[str, str]]] = []
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                bucket.requests.append((self.path, headers))
                status, sent, body = bucket.answers(self.path, headers)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **sent}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    served = Bucket()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", served.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name, value in zip(("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"), KEYS, strict=True):
        monkeypatch.setenv(f"AWS_{name}", str(value))
    yield served
    served.close()


def is_signed(url: str, headers: dict[str, str], keys: AwsKeys = KEYS, region: str = REGION) -> bool:
    moment = calendar.timegm(time.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
    expected = Signer(lambda: keys, region)(url, moment)
    return all(headers.get(name.lower()) == value for name, value in expected.items())


def error(code: str, message: str = "No.") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


NAMES = ["8_8_40/0-64", "a b+c", "a#b?c=d", "100%41", "über/日", "a&b=c;d", "x'y(z)!*~"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["s3://my.bucket/em {}", "s3://{}/my.bucket/em {}"], ids=["environment", "path"])
def test_every_name_is_signed_with_the_session_token(bucket: Bucket, name: str, form: str) -> None:
    path = form.replace("{}", bucket.url, 1).replace("{}", "1") if form.count("{}") == 2 else form.format(1)
    blob = Transport(f"precomputed://{path}").get(Request(name))
    ((asked, headers),) = bucket.requests
    assert blob is not None
    assert unquote(asked) == f"/my.bucket/em 1/{name}"
    assert asked == name_in_url(unquote(asked))
    assert is_signed(bucket.url + asked, headers)
    assert headers["x-amz-security-token"] == KEYS.token


def test_names_that_leave_the_bucket_are_not_asked_for(bucket: Bucket) -> None:
    transport = Transport("s3://bucket/a/b")
    assert transport.get(Request("../c")).content == b"/bucket/a/c"  # type: ignore[union-attr]
    with pytest.raises(SourceError, match="outside of the bucket"):
        transport.get(Request("../../../other/secret"))
    assert len(bucket.requests) == 1


def test_ranges_are_signed_and_checked(bucket: Bucket) -> None:
    def answers(path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        return 206, {"Content-Range": "bytes 10-19/100"}, b"0123456789"

    bucket.answers = answers
    blob = Transport("s3://bucket/em").get(Request("shard", 10, 20))
    assert blob is not None
    assert (blob.content, blob.damage) == (b"0123456789", "")
    assert bucket.requests[0][1]["range"] == "bytes=10-19"
    short = Transport("s3://bucket/em").get(Request("shard", 10, 30))
    assert short is not None
    assert "truncated" in short.damage


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"), (403, "SignatureDoesNotMatch"), (403, "InvalidAccessKeyId"), (400, "ExpiredToken"),
        (403, "RequestTimeTooSkewed"), (400, "InvalidToken"), (403, ""),
    ],
)  # fmt: skip
def test_refusals_are_said_once_with_their_code_and_without_secrets(bucket: Bucket, status: int, code: str) -> None:
    bucket.answers = lambda path, headers: (status, {}, error(code) if code else b"")
    with pytest.raises(
        AccessRefusedError, match=rf"Access was refused to s3://bucket/em/k \(.*HTTP {status}.*{code}"
    ) as caught:
        Transport("s3://bucket/em").get(Request("k"))
    assert len(bucket.requests) == 1
    assert not any(str(secret) in str(caught.value) for secret in KEYS)


@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (400, "RequestTimeout"), (500, "InternalError"), (429, "")]
)
def test_failures_that_pass_are_tried_again(bucket: Bucket, status: int, code: str, configure: Configure) -> None:
    configure("requests.first_pause_s", 0.01)

    def answers(path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        first = len(bucket.requests) == 1
        return (status, {"Retry-After": "0"}, error(code)) if first else (200, {}, b"content")

    bucket.answers = answers
    blob = Transport("s3://bucket/em").get(Request("k"))
    assert blob is not None
    assert (blob.content, len(bucket.requests)) == (b"content", 2)


def test_a_missing_file_is_none_and_a_missing_bucket_is_not(bucket: Bucket) -> None:
    bucket.answers = lambda path, headers: (404, {}, error("NoSuchKey"))
    assert Transport("s3://bucket/em").get(Request("k")) is None
    bucket.answers = lambda path, headers: (404, {}, error("NoSuchBucket", "The specified bucket does not exist"))
    with pytest.raises(SourceError, match="NoSuchBucket: The specified bucket does not exist"):
        Transport("s3://bucket/em").get(Request("k"))


@pytest.mark.parametrize("status", [301, 307, 400])
def test_the_region_of_a_bucket_is_that_which_the_server_says(bucket: Bucket, status: int) -> None:
    def answers(path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if is_signed(bucket.url + path, headers, region="ap-south-1"):
            return 200, {}, b"content"
        return status, {"x-amz-bucket-region": "ap-south-1"}, error("PermanentRedirect")

    bucket.answers = answers
    transport = Transport("s3://bucket/em")
    for key in "ab":
        blob = transport.get(Request(key))
        assert blob is not None
        assert blob.content == b"content"
    assert [path for path, _ in bucket.requests] == ["/bucket/em/a", "/bucket/em/a", "/bucket/em/b"]


def test_a_region_changes_the_endpoint_of_amazon_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(self: object, url: str, headers: dict[str, str]) -> Any:
        asked.append(url)
        return Answer(301 if len(asked) == 1 else 200), False

    class Answer:
        def __init__(self, status: int) -> None:
            self.status, self.headers = status, {"x-amz-bucket-region": "eu-north-1"}

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(bucket_files.HttpFiles, "_answer", answer)
    files = bucket_files.S3Files(bucket_files.amazon("us-east-1"), "b", "em", Signer(lambda: KEYS, "us-east-1"))
    assert files._answer(files._file_url("k"), {})[0].status == 200
    assert asked == [f"https://s3.{region}.amazonaws.com/b/em/k" for region in ("us-east-1", "eu-north-1")]
    assert files._file_url("l") == "https://s3.eu-north-1.amazonaws.com/b/em/l"


def test_signatures_and_tokens_stay_at_their_server(bucket: Bucket) -> None:
    other = Bucket()
    try:
        bucket.answers = lambda path, headers: (307, {"Location": other.url + path}, b"")
        assert Transport("s3://bucket/em").get(Request("k")) is not None
        ((_, headers),) = other.requests
        assert not [name for name in headers if name.startswith(("authorization", "x-amz"))]
    finally:
        other.close()


def test_a_custom_endpoint_without_keys_is_read_without_a_signature(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert Transport("s3://bucket/em").get(Request("k")) is not None
    assert "authorization" not in bucket.requests[0][1]


def test_secret_files_of_cloud_files_come_before_the_environment(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    for name in ("bucket-aws", "aws"):
        own = {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-west-2"}
        (tmp_path / "secrets" / f"{name}-secret.json").write_text(json.dumps(own))
    for asked, name in (("bucket", "bucket-aws"), ("other", "aws")):
        Transport(f"s3://{asked}/em").get(Request("k"))
        path, headers = bucket.requests[-1]
        assert is_signed(bucket.url + path, headers, AwsKeys(name, "s"), "us-west-2")


# --------------------------------------------------------------------------- Google


class GoogleCredentials(google.auth.credentials.Credentials):
    """Credentials whose tokens are numbered; the first has expired when it is used."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.number, self._failure = 0, failure

    @property
    def valid(self) -> bool:
        return self.number >= 2

    def refresh(self, request: object) -> None:
        if self._failure is not None:
            raise self._failure
        self.number += 1
        self.token = f"token-{self.number}"


@pytest.fixture
def google_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    monkeypatch.setattr(credentials, "GOOGLE", bucket.url)
    return bucket


def test_tokens_of_google_are_refreshed_and_stay_at_their_server(
    google_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = GoogleCredentials()
    monkeypatch.setattr("google.auth.default", lambda scopes: (found, "project"))
    other = Bucket()
    try:
        transport = Transport("gs://bucket/em")
        for key in "abc":
            transport.get(Request(key))
        sent = [headers["authorization"] for _, headers in google_bucket.requests]
        assert sent == ["Bearer token-1", "Bearer token-2", "Bearer token-2"]
        google_bucket.answers = lambda path, headers: (302, {"Location": other.url + path}, b"")
        transport.get(Request("d"))
        assert "authorization" not in other.requests[0][1]
    finally:
        other.close()


def test_checksums_of_google_are_compared(google_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("google.auth.default", lambda scopes: (GoogleCredentials(), "project"))
    google_bucket.answers = lambda path, headers: (200, {"x-goog-hash": "crc32c=4waSgw=="}, path[-9:].encode())
    good, bad = (Transport("gs://bucket/em").get(Request(key)) for key in ("123456789", "123456780"))
    assert good is not None
    assert bad is not None
    assert (good.damage, "crc32c" in bad.damage) == ("", True)


def test_credentials_that_google_refuses_are_a_refusal(google_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = RefreshError("invalid_grant: Token has been expired or revoked.")
    monkeypatch.setattr("google.auth.default", lambda scopes: (GoogleCredentials(failure), "project"))
    with pytest.raises(AccessRefusedError, match="Google gives no token.*expired or revoked"):
        Transport("gs://bucket/em").get(Request("info"))
    assert google_bucket.requests == []
