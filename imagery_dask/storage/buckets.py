"""Parse URLs of folders and buckets, and make clients for buckets. Each process finds its own credentials.

S3 is written with obstore: s3fs pins a botocore version that the boto3 of cloud-files does not work with. Google Cloud
Storage is written with gcsfs, which supports emulators and all kinds of Google's credentials.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from imagery_dask.annotations import Keywords
from imagery_dask.errors import REFUSED_STATUS, AccessRefusedError
from imagery_dask.sources.files.failures import brief, kind_of
from imagery_dask.sources.requests.credentials import secret_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = [
    "BucketUrl",
    "clear_errors",
    "credential_places",
    "files_at",
    "google_files",
    "parse_bucket_url",
    "s3_endpoint",
    "s3_files",
    "s3_store",
]

# About 15 s, after which an endpoint that does not answer is given up; a busy one has that long to recover.
RETRIES = 7
REQUEST_TIMEOUT = "60s"
# Time after which credentials that change (roles, instances) are requested again.
CREDENTIALS_FOR = timedelta(minutes=15)
# Names of obstore's and Google's errors.
REFUSED = (
    "PermissionDeniedError", "UnauthenticatedError", "RefreshError", "DefaultCredentialsError", "NoCredentialsError"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """A parsed URL: which bucket or folder, and how it is reached.

    Parameters
    ----------
    scheme : str
        ``file``, ``memory``, ``s3`` or ``gs``.
    bucket : str
        Name of the bucket; empty for other schemes.
    path : str
        Folder, or prefix in the bucket, without slashes at its ends.
    host : str
        Endpoint of an alias of cloud-files; empty for the default endpoint.
    service : str
        The alias or the provider, which is in the name of the secret file.
    """

    scheme: str
    bucket: str
    path: str
    host: str = ""
    service: str = ""


def parse_bucket_url(url: str) -> BucketUrl:
    """Parse a path or URL into the bucket or folder that it names.

    Parameters
    ----------
    url : str
        A local path or a URL; aliases of cloud-files (``matrix://bucket/...``) are S3 with another endpoint.
    """
    if "://" not in url:
        return BucketUrl("file", "", url)
    scheme, _, rest = url.partition("://")
    scheme = {"gcs": "gs", "mem": "memory"}.get(scheme, scheme)
    if scheme == "file":
        return BucketUrl("file", "", rest)
    host, service = _alias(scheme)
    if host:
        scheme = "s3"
    if scheme not in ("s3", "gs"):
        return BucketUrl(scheme, "", rest.strip("/"))
    bucket, _, path = rest.partition("/")
    if not bucket:
        raise ValueError(f"{url!r} names no bucket; give {scheme}://bucket/path.")
    return BucketUrl(scheme, bucket, path.strip("/"), host, service or {"s3": "aws", "gs": "google"}[scheme])


def s3_store(url: BucketUrl) -> Any:
    """Open an S3 bucket as an obstore store whose keys are relative to the URL's path."""
    store = _needed("obstore.store", "s3")
    return store.S3Store(url.bucket, prefix=url.path or None, **_s3_options(url))


def s3_files(url: BucketUrl) -> AbstractFileSystem:
    """Open an S3 bucket as a file system of fsspec."""
    files = _needed("obstore.fsspec", "s3")
    options = _s3_options(url)
    return files.FsspecStore("s3", skip_instance_cache=True, **options)


def google_files(url: BucketUrl, asynchronous: bool) -> AbstractFileSystem:
    """Open Google Cloud Storage as a file system of fsspec."""
    _needed("gcsfs", "gcs")
    core = import_module("gcsfs.core")  # not the package, whose extensions request the layout of every bucket
    options = {"asynchronous": asynchronous, "skip_instance_cache": True, "use_listings_cache": False}
    return core.GCSFileSystem(token=_google_token(url), **options)


def files_at(url: str) -> tuple[AbstractFileSystem, str]:
    """Return a file system of fsspec for a URL, and the path in it."""
    import fsspec

    parsed = parse_bucket_url(url)
    if parsed.scheme == "s3":
        return s3_files(parsed), f"{parsed.bucket}/{parsed.path}".rstrip("/")
    if parsed.scheme == "gs":
        return google_files(parsed, asynchronous=False), f"{parsed.bucket}/{parsed.path}".rstrip("/")
    return fsspec.url_to_fs(parsed.path if parsed.scheme == "file" else url)  # type: ignore[no-any-return]


def credential_places(url: BucketUrl) -> str:
    """Return the places where credentials for a URL are looked for, as text for errors."""
    files = " or ".join(str(secret_file(name)) for name in _secret_names(url))
    if url.scheme == "gs":
        return f"{files}, or Google's default credentials (gcloud auth application-default login)"
    if url.scheme == "s3":
        return f"{files}, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return "the permissions of the folder"


@contextmanager
def clear_errors(url: str) -> Iterator[None]:
    """Raise one `AccessRefusedError` for every kind of refusal; shorten other errors of obstore to one line."""
    try:
        yield
    except AccessRefusedError:
        raise
    except Exception as error:
        if _is_refusal(error):
            raise _refusal(url, error) from None
        if isinstance(error, OSError) or not type(error).__module__.startswith("obstore"):
            raise
        region = " Set AWS_DEFAULT_REGION to the bucket's region." if "without LOCATION" in str(error) else ""
        raise OSError(f"{url}: {str(error).splitlines()[0]}.{region}") from None


def _alias(scheme: str) -> tuple[str, str]:
    """Return the endpoint and name of an alias, or empty strings."""
    from cloudfiles import paths

    paths.update_aliases_from_file()
    url = str(paths.ALIASES.get(scheme, ""))
    return (url.removeprefix("s3://").rstrip("/"), scheme) if url.startswith("s3://") else ("", "")


def _secret_names(url: BucketUrl) -> tuple[str, ...]:
    return (f"{url.bucket}-{url.service}-secret.json", f"{url.service}-secret.json")


def _secret(url: BucketUrl) -> Keywords:
    """Return the content of the secret file that cloud-files uses: that of the bucket, else that of the service."""
    for name in _secret_names(url):
        with suppress(FileNotFoundError):
            content = json.loads(secret_file(name).read_text())
            return content if isinstance(content, dict) else {}
    return {}


class _Keys:
    """Credential provider for obstore; refreshes credentials that expire."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> Keywords:
        now = self._credentials.get_frozen_credentials()
        expires = datetime.now(UTC) + CREDENTIALS_FOR
        keys = {"access_key_id": now.access_key, "secret_access_key": now.secret_key}
        return keys | {"token": now.token or None, "expires_at": expires}


def _s3_options(url: BucketUrl) -> Keywords:
    secret, session = _secret(url), _session()
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    keys = [secret.get(name) or None for name in names]
    if any(keys):
        session.set_credentials(*keys)
    region = str(secret.get("AWS_DEFAULT_REGION") or session.get_config_variable("region") or "us-east-1")
    endpoint = url.host or _endpoint(session, region)
    credentials = session.get_credentials()
    plain = endpoint.startswith("http://")
    return {
        "region": region,
        # obstore has the endpoints of Amazon.
        **({} if (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com") else {"endpoint": endpoint}),
        "virtual_hosted_style_request": False,
        "client_options": {"allow_http": plain, "timeout": REQUEST_TIMEOUT},
        "retry_config": {"max_retries": RETRIES},
        # Without credentials requests are unsigned; the store may refuse them.
        **({"credential_provider": _Keys(credentials)} if credentials else {"skip_signature": True}),
    }


def s3_endpoint(url: BucketUrl) -> str:
    """Return the address of the server of an S3 bucket, as this process is configured."""
    return url.host or _endpoint(_session(), "us-east-1")


def _endpoint(session: Any, region: str) -> str:
    # botocore reads all configuration of endpoints: variables, profiles, ~/.aws/config.
    return str(session.create_client("s3", region_name=region).meta.endpoint_url)


def _session() -> Any:
    """Return a botocore session for the current environment."""
    import botocore.session

    session = botocore.session.get_session()
    session.register_component("data_loader", _service_models())
    return session


@lru_cache(maxsize=1)
def _service_models() -> Any:
    """Cache botocore's service models: each session would read them again, which takes 0.06 s."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


def _google_token(url: BucketUrl) -> Any:
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return "anon"
    return _secret(url) or None


@lru_cache(maxsize=8)
def _needed(module: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f"Writing to this URL needs {name}: pip install 'imagery_dask[{extra}]'") from error


def _is_refusal(error: Exception) -> bool:
    text = str(error)
    return (
        type(error).__name__ in REFUSED
        or (isinstance(error, OSError) and error.errno == errno.EROFS)
        or kind_of(error) == "refused"
        or (isinstance(error, OSError) and text.startswith(("Forbidden", "Unauthorized")))
        or "Anonymous caller" in text
    )


def _refusal(url: str, error: Exception) -> AccessRefusedError:
    parsed = parse_bucket_url(url)
    if parsed.scheme == "file":
        return AccessRefusedError(f"{url} cannot be written: {getattr(error, 'strerror', None) or brief(error)}.")
    # Not the message of the store, which quotes the request.
    status = next((code for code in map(str, REFUSED_STATUS) if code in str(error)), type(error).__name__)
    return AccessRefusedError(
        f"Access was refused to {url} ({status}). Check the credentials that this process finds: "
        f"{credential_places(parsed)}; they need permission to list, read and write there."
    )
