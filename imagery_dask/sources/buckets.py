"""Buckets of S3 and Google Cloud Storage that this process has credentials for, read by signed requests over HTTP.

Their own clients take a millisecond of Python for each request. botocore and google-auth find the credentials, and
refresh those that expire. Neither keys nor tokens are sent to another server than that of the bucket.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imagery_dask.humanize import printable
from imagery_dask.sources import credentials
from imagery_dask.sources.failures import brief
from imagery_dask.sources.files.aws_signature import AwsKeys, Signer
from imagery_dask.sources.files.http_files import Auth, HttpFiles, StatusError
from imagery_dask.sources.files.local_files import FORMAT_SUFFIX
from imagery_dask.sources.files.response import Response
from imagery_dask.urls import name_in_url, resolved_name

__all__ = ["BucketFiles", "bucket_files"]

GOOGLE = "https://storage.googleapis.com"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
LARGEST_ERROR = 2**16
FIELD = re.compile(rb"<(Code|Message)>(.*?)</\1>", re.DOTALL)
# What S3 answers if a request is signed for another region than that of the bucket.
OTHER_REGION = (301, 307, 400)


class BucketFiles(HttpFiles):
    """Files below a prefix of a bucket.

    Parameters
    ----------
    endpoint : str
        URL of the server.
    bucket, prefix : str
        Names, in which every character stands for itself.
    auth : callable
        See `HttpFiles`.
    """

    def __init__(self, endpoint: str, bucket: str, prefix: str, auth: Auth) -> None:
        super().__init__(endpoint, auth)
        self._bucket, self._prefix = bucket, prefix

    def _file_url(self, key: str) -> str:
        name = f"{self._prefix}/{key}" if self._prefix else key
        if key.startswith("../"):  # which a bucket does not resolve
            name = resolved_name(name)
            if name.startswith("../"):
                raise ValueError(f"{key!r} is outside of the bucket")
        return f"{self._url}/{name_in_url(self._bucket)}/{name_in_url(name)}"

    def _check_gone(self, response: Response) -> None:
        code, message = _error_of(response)
        if code == "NoSuchBucket":
            raise ValueError(f"{code}: {message}")

    def _check_status(self, response: Response, redirected: bool, ranged: bool) -> None:
        try:
            super()._check_status(response, redirected, ranged)
        except StatusError as error:
            code, message = _error_of(response) if error.code >= 400 else ("", "")
            text = f"{error}, {code}: {message}" if code else str(error)
            raise StatusError(text, error.code, error.headers, code) from None


class S3Files(BucketFiles):
    """Files of S3: the region of a bucket is that which the server says."""

    def __init__(self, endpoint: str, bucket: str, prefix: str, signer: Signer | None) -> None:
        super().__init__(endpoint, bucket, prefix, signer or _no_headers)
        self._signer = signer

    def _answer(self, url: str, headers: dict[str, str]) -> tuple[Response, bool]:
        response, redirected = super()._answer(url, headers)
        if self._signer is None or not self._is_of_other_region(response):
            return response, redirected
        region = response.headers["x-amz-bucket-region"]
        with response:
            before, self._signer.region = self._signer.region, region
        if self._url == amazon(before):
            url = amazon(region) + url.removeprefix(self._url)
            self._url = amazon(region)
        return super()._answer(url, headers)

    def is_last(self, response: Response, is_ranged: bool) -> bool:
        return super().is_last(response, is_ranged) and not self._is_of_other_region(response)

    def _is_of_other_region(self, response: Response) -> bool:
        region, signer = response.headers.get("x-amz-bucket-region"), self._signer
        return response.status in OTHER_REGION and signer is not None and region not in (None, signer.region)


class Bucket(NamedTuple):
    """What a path names: scheme, endpoint of its own or "", bucket, prefix, and the service of its secret file."""

    scheme: str
    endpoint: str
    name: str
    prefix: str
    service: str


def bucket_files(cloudpath: str) -> BucketFiles | None:
    """Return the files of a path in a bucket; None for other paths.

    Parameters
    ----------
    cloudpath : str
        ``s3://bucket/a``, ``s3://https://host/bucket/a``, ``gs://bucket/a``, or one with an alias of cloud-files.
    """
    bucket = _bucket_of(cloudpath)
    if bucket is None:
        return None
    if bucket.scheme == "gs":
        endpoint = os.environ.get("STORAGE_EMULATOR_HOST", GOOGLE)
        endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
        auth: Auth = _GoogleToken(bucket.name) if endpoint == GOOGLE else _no_headers
        return BucketFiles(endpoint.rstrip("/"), bucket.name, bucket.prefix, auth)
    session = _session()
    secret = credentials.aws_secret(bucket.name, bucket.service)
    region = secret.get("AWS_DEFAULT_REGION") or session.get_config_variable("region") or "us-east-1"
    keys, endpoint = _aws_keys(secret, session), bucket.endpoint or _endpoint(session, region)
    signer = None if keys is None else Signer(keys, region)
    return S3Files(endpoint.rstrip("/"), bucket.name, bucket.prefix, signer)


def _no_headers(_: str) -> dict[str, str]:
    return {}


def amazon(region: str) -> str:
    """Return the endpoint of Amazon's S3 in a region."""
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _bucket_of(cloudpath: str) -> Bucket | None:
    path = cloudpath.removeprefix("precomputed://").removesuffix(FORMAT_SUFFIX)
    scheme, _, rest = path.partition("://")
    service, endpoint = {"s3": "aws", "gs": "google"}.get(scheme, scheme), ""
    if scheme not in ("s3", "gs"):
        address = credentials.alias_of(scheme)
        scheme, _, before = address.partition("://")
        if scheme not in ("s3", "gs"):
            return None
        rest = before + rest
    if scheme == "s3" and rest.startswith(("http://", "https://")):
        protocol, _, rest = rest.partition("://")
        host, _, rest = rest.partition("/")
        endpoint = f"{protocol}://{host}"
    name, _, prefix = rest.partition("/")
    return Bucket(scheme, endpoint, name, prefix.strip("/"), service)


def _error_of(response: Response) -> tuple[str, str]:
    """Return the code and the message of a bucket's error, which is XML; "" if it has none."""
    found = dict(FIELD.findall(response.read_up_to(LARGEST_ERROR)))
    code, message = (printable(found.get(name, b"").decode(errors="replace")) for name in (b"Code", b"Message"))
    return code, message


# --------------------------------------------------------------------------- credentials


def _session() -> Any:
    import botocore.session

    return botocore.session.Session()


def _aws_keys(secret: Mapping[str, str], session: Any) -> Callable[[], AwsKeys] | None:
    """Return a function that returns the keys of now, from a secret file or from botocore's chain; None without any."""
    given = [secret.get(name) or None for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")]
    if given[0] and given[1]:
        keys = AwsKeys(given[0], given[1], given[2])
        return lambda: keys
    found = session.get_credentials()
    if found is None:
        return None

    def current() -> AwsKeys:
        frozen = found.get_frozen_credentials()  # refreshes those that expire
        return AwsKeys(frozen.access_key, frozen.secret_key, frozen.token)

    return current


def _endpoint(session: Any, region: str) -> str:
    """Return the endpoint that variables, or profiles of ``~/.aws/config``, name; else Amazon's."""
    ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if named and not ignored:
        return named
    file = Path(os.environ.get("AWS_CONFIG_FILE", Path.home() / ".aws" / "config")).expanduser()
    if ignored or not file.exists():
        return amazon(region)
    # The client takes a quarter of a second to make.
    url = str(session.create_client("s3", region_name=region).meta.endpoint_url)
    return amazon(region) if ".amazonaws.com" in url else url


class _GoogleToken:
    """The tokens of a service account, or of Google's default credentials; they are refreshed before they expire."""

    def __init__(self, bucket: str) -> None:
        import google.auth
        from google.auth.transport.requests import Request
        from google.oauth2 import service_account

        file = credentials.google_file(bucket)
        if file is not None:
            self._credentials = service_account.Credentials.from_service_account_file(str(file), scopes=[GOOGLE_SCOPE])
        else:
            self._credentials, _ = google.auth.default(scopes=[GOOGLE_SCOPE])
        self._refresh, self._lock = Request(), threading.Lock()

    def __call__(self, url: str) -> dict[str, str]:
        from google.auth.exceptions import RefreshError

        headers: dict[str, str] = {}
        try:
            with self._lock:  # so that one thread refreshes
                self._credentials.before_request(self._refresh, "GET", url, headers)
        except RefreshError as error:
            if error.retryable:
                raise
            raise PermissionError(f"Google gives no token: {brief(error)}") from error
        return {{"authorization": "Authorization"}.get(name, name): value for name, value in headers.items()}
