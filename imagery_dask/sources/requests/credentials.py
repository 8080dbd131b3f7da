"""Credentials, which every process looks up itself; handles, graphs and plans never contain them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from imagery_dask.sources.files.aws_signature import AwsKeys, Signer
from imagery_dask.sources.files.bucket_files import BucketFiles, S3Files, amazon
from imagery_dask.sources.files.connections import basic_auth
from imagery_dask.sources.files.failures import brief
from imagery_dask.sources.files.http_files import Auth
from imagery_dask.sources.files.local_files import FORMAT_SUFFIX
from imagery_dask.urls import location_of

__all__ = [
    "bucket_files",
    "cave_token",
    "forget_token",
    "has_aws",
    "has_google",
    "http_login",
    "own_s3_server",
    "remember_token",
    "secret_file",
    "token_places",
    "tokens_for_own_workers",
]

# One token for every CAVE server, for processes that are started with an environment.
TOKEN_VARIABLE = "CAVE_TOKEN"
# Tokens by host, given to worker processes that this process starts itself.
OWN_WORKERS_VARIABLE = "IMAGERY_DASK_TOKENS"
GOOGLE = "https://storage.googleapis.com"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
TOKEN_FILES = ("{host}-cave-secret.json", "cave-secret.json", "chunkedgraph-secret.json")

_tokens: dict[str, str] = {}


def remember_token(path: str, token: str) -> str | None:
    """Use a token for a CAVE server in this process; other processes look up their own.

    Parameters
    ----------
    path : str
        A path or URL on the server: ``graphene://https://host/...``, ``precomputed://middleauth+https://host/...``.
        Other sources (buckets, plain HTTP) take no CAVE token, and nothing is remembered for them.
    token : str
        The token.

    Returns
    -------
    str or None
        The token that was used before.
    """
    host, before = _cave_host(path), None
    if host:
        before, _tokens[host] = _tokens.get(host), token
    return before


def forget_token(path: str, before: str | None) -> None:
    """Undo `remember_token`; `before` is its return value."""
    host = _cave_host(path)
    if host and before is None:
        _tokens.pop(host, None)
    elif host and before is not None:
        _tokens[host] = before


def cave_token(host: str) -> str | None:
    """Return the token for a CAVE server, or None if this process has none; see `token_places`."""
    if host in _tokens:
        return _tokens[host]
    given = json.loads(os.environ.get(OWN_WORKERS_VARIABLE, "{}")).get(host) or os.environ.get(TOKEN_VARIABLE)
    if given:
        return str(given)
    for name in TOKEN_FILES:
        try:
            content = json.loads(secret_file(name.format(host=host)).read_text())
        except (OSError, ValueError):
            continue
        token = content.get("token") if isinstance(content, dict) else content
        if token:
            return str(token)
    return None


def token_places(host: str) -> str:
    """Return the places where `cave_token` looks, for errors."""
    files = ", ".join(str(secret_file(name.format(host=host))) for name in TOKEN_FILES)
    return f"auth_token=... or the CAVEclient (in the process that made the array), ${TOKEN_VARIABLE}, {files}"


def tokens_for_own_workers() -> Mapping[str, str]:
    """Return the environment that passes this process's tokens to worker processes that it starts."""
    return {OWN_WORKERS_VARIABLE: json.dumps(_tokens)} if _tokens else {}


def _aws_secret(bucket: str, service: str) -> dict[str, str]:
    """Return the keys for a bucket in the secret file that cloud-files uses: that of the bucket, or of the service."""
    for name in _aws_names(bucket, service):
        file = secret_file(name)
        if file.exists():
            content = json.loads(file.read_text())
            return content if isinstance(content, dict) else {}
    return {}


def _google_file(bucket: str) -> Path | None:
    """Return the file with the service account for a bucket that cloud-files uses, if there is one."""
    files = [secret_file(f"{bucket}-google-secret.json"), secret_file("google-secret.json")]
    return next((file for file in files if file.exists()), None)


def _alias_of(scheme: str) -> str:
    """Return the address that an alias of cloud-files stands for; "" if there is no such alias."""
    if scheme in ("mem", "file"):
        return ""
    from cloudfiles import paths

    paths.update_aliases_from_file()
    return str(paths.ALIASES.get(scheme, ""))


def http_login() -> str | None:
    """Return the ``Authorization`` header with the user and password in cloud-files' ``http-secret.json``, if any."""
    try:
        login = json.loads(secret_file("http-secret.json").read_text()) or {}
    except FileNotFoundError:
        return None
    return basic_auth(login["user"], login["password"]) if {"user", "password"} <= login.keys() else None


def has_google() -> bool:
    """Return True if this process can sign requests to Google Cloud Storage, or uses an emulator."""
    if os.environ.get("STORAGE_EMULATOR_HOST") or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return True
    own = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    return own.exists() or secret_file("google-secret.json").exists()


def has_aws(cloudpath: str) -> bool:
    """Return True if this process has keys for an S3 bucket, or a custom endpoint."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    in_environment = any(os.environ.get(name) for name in names)
    return in_environment or _aws_file(cloudpath) or (Path.home() / ".aws" / "credentials").exists()


def secret_file(name: str) -> Path:
    """Return the path at which cloud-files looks for a file with a secret.

    As `cloudfiles.secrets.secretpath`, but without cloud-files and the clients of the clouds, whose import takes each
    process most of a second.
    """
    folders = [
        Path(os.environ.get("CLOUD_VOLUME_DIR", Path.home() / ".cloudvolume"), "secrets"),
        Path("/"),
        Path(os.environ.get("CLOUD_FILES_DIR", Path.home() / ".cloudfiles"), "secrets"),
    ]
    return next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name)


def _cave_host(path: str) -> str | None:
    """Return the host of a path that is served by CAVE or behind its authentication, or None."""
    text = location_of(path)
    if not text.startswith(("graphene://", "middleauth+")):
        return None
    return urlsplit(text.removeprefix("graphene://").removeprefix("middleauth+")).netloc or None


def _aws_file(cloudpath: str) -> bool:
    bucket = cloudpath.partition("s3://")[2].partition("/")[0]
    return any(secret_file(name).exists() for name in _aws_names(bucket, "aws"))


def _aws_names(bucket: str, service: str) -> tuple[str, str]:
    return f"{bucket}-{service}-secret.json", f"{service}-secret.json"


# --------------------------------------------------------------------------- buckets


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
    secret = _aws_secret(bucket.name, bucket.service)
    region = secret.get("AWS_DEFAULT_REGION") or session.get_config_variable("region") or "us-east-1"
    keys, endpoint = _aws_keys(secret, session), bucket.endpoint or _endpoint(session, region)
    signer = None if keys is None else Signer(keys, region)
    return S3Files(endpoint.rstrip("/"), bucket.name, bucket.prefix, signer)


def own_s3_server() -> tuple[str, str] | None:
    """Return the endpoint of S3 that variables or profiles name in place of Amazon's, and its region."""
    session = _session()
    region = session.get_config_variable("region") or "us-east-1"
    endpoint = _endpoint(session, region)
    return None if endpoint == amazon(region) else (endpoint, region)


def _no_headers(_: str) -> dict[str, str]:
    return {}


def _bucket_of(cloudpath: str) -> Bucket | None:
    path = location_of(cloudpath).removesuffix(FORMAT_SUFFIX)
    scheme, _, rest = path.partition("://")
    service, endpoint = {"s3": "aws", "gs": "google"}.get(scheme, scheme), ""
    if scheme not in ("s3", "gs"):
        address = _alias_of(scheme)
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

        file = _google_file(bucket)
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
