"""Buckets to write to, with the credentials that this process finds: none is passed from one process to another.

S3 is written with obstore: s3fs pins a botocore of its own, which boto3 (of cloud-files) does not work with. Google
Cloud Storage is written with gcsfs, which knows emulators and every kind of Google's credentials.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from cloudfiles import paths
from cloudfiles.secrets import secretpath

__all__ = ["BucketUrl", "credential_places", "google_files", "bucket_url", "s3_files", "s3_store"]

# An endpoint that does not answer is given up after about 15 s; a busy one gets that long to recover.
RETRIES = 7
REQUEST_TIMEOUT = "60s"
# Credentials that change (roles, instances) are asked for again after this time.
CREDENTIALS_FOR = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """Where a location is.

    Parameters
    ----------
    scheme : str
        ``file``, ``memory``, ``s3``, ``gs`` or another one of fsspec's.
    bucket : str
        Name of the bucket; empty for the others.
    path : str
        Folder, or prefix in the bucket, without slashes around it.
    host : str
        Endpoint of an alias of cloud-files; empty for the scheme's own.
    service : str
        The alias, or the provider: names the secret file.
    """

    scheme: str
    bucket: str
    path: str
    host: str = ""
    service: str = ""


def bucket_url(location: str) -> BucketUrl:
    """Say where a location is.

    Parameters
    ----------
    location : str
        A local path or a URL; aliases of cloud-files (``matrix://bucket/...``) are S3 with a host of their own.
    """
    if "://" not in location:
        return BucketUrl("file", "", location)
    scheme, _, rest = location.partition("://")
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
        raise ValueError(f"{location!r} names no bucket; give {scheme}://bucket/path.")
    return BucketUrl(scheme, bucket, path.strip("/"), host, service or {"s3": "aws", "gs": "google"}[scheme])


def s3_store(place: BucketUrl) -> Any:
    """Open an S3 bucket as an obstore store whose keys begin below the place's path."""
    store = _needed("obstore.store", "s3")
    return store.S3Store(place.bucket, prefix=place.path or None, **_s3_options(place))


def s3_files(place: BucketUrl) -> Any:
    """Open an S3 bucket as a file system of fsspec."""
    files = _needed("obstore.fsspec", "s3")
    options = _s3_options(place)
    return files.FsspecStore("s3", skip_instance_cache=True, **options)


def google_files(place: BucketUrl, asynchronous: bool) -> Any:
    """Open Google Cloud Storage as a file system of fsspec."""
    _needed("gcsfs", "gcs")
    core = import_module("gcsfs.core")  # without the package's extensions, which ask for every bucket's layout
    options = {"asynchronous": asynchronous, "skip_instance_cache": True, "use_listings_cache": False}
    return core.GCSFileSystem(token=_google_token(place), **options)


def credential_places(place: BucketUrl) -> str:
    """Say where credentials for a place are looked for, for errors."""
    files = " or ".join(str(secretpath(name)) for name in _secret_names(place))
    if place.scheme == "gs":
        return f"{files}, or Google's default credentials (gcloud auth application-default login)"
    if place.scheme == "s3":
        return f"{files}, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return "the permissions of the folder"


def _alias(scheme: str) -> tuple[str, str]:
    """Endpoint and name of an alias, or nothing."""
    paths.update_aliases_from_file()
    url = str(paths.ALIASES.get(scheme, ""))
    return (url.removeprefix("s3://").rstrip("/"), scheme) if url.startswith("s3://") else ("", "")


def _secret_names(place: BucketUrl) -> tuple[str, ...]:
    return (f"{place.bucket}-{place.service}-secret.json", f"{place.service}-secret.json")


def _secret(place: BucketUrl) -> dict[str, Any]:
    """Content of the secret file that cloud-files would take: the bucket's own before the general one."""
    for name in _secret_names(place):
        with suppress(FileNotFoundError):
            content = json.loads(Path(secretpath(name)).read_text())
            return content if isinstance(content, dict) else {}
    return {}


class _Keys:
    """Provider of credentials for obstore; asks anew for those that expire."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        now = self._credentials.get_frozen_credentials()
        expires = datetime.now(UTC) + CREDENTIALS_FOR
        keys = {"access_key_id": now.access_key, "secret_access_key": now.secret_key}
        return keys | {"token": now.token or None, "expires_at": expires}


def _s3_options(place: BucketUrl) -> dict[str, Any]:
    secret, session = _secret(place), _session()
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    keys = [secret.get(name) or None for name in names]
    if any(keys):
        session.set_credentials(*keys)
    region = str(secret.get("AWS_DEFAULT_REGION") or session.get_config_variable("region") or "us-east-1")
    # botocore knows every place where an endpoint can be configured: variables, profiles, ~/.aws/config.
    endpoint = place.host or str(session.create_client("s3", region_name=region).meta.endpoint_url)
    credentials = session.get_credentials()
    plain = endpoint.startswith("http://")
    return {
        "region": region,
        # Amazon's own is left to obstore.
        **({} if (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com") else {"endpoint": endpoint}),
        "virtual_hosted_style_request": False,
        "client_options": {"allow_http": plain, "timeout": REQUEST_TIMEOUT},
        "retry_config": {"max_retries": RETRIES},
        # Unsigned requests without credentials: the store says whether it takes them.
        **({"credential_provider": _Keys(credentials)} if credentials else {"skip_signature": True}),
    }


def _session() -> Any:
    """Session of botocore for the environment as it is now."""
    session = botocore.session.get_session()
    session.register_component("data_loader", _service_models())
    return session


@lru_cache(maxsize=1)
def _service_models() -> Any:
    """Keep what botocore knows of Amazon's services: each session would read it anew, for 0.06 s."""
    return botocore.session.get_session().get_component("data_loader")


def _google_token(place: BucketUrl) -> Any:
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return "anon"
    return _secret(place) or None


@lru_cache(maxsize=8)
def _needed(module: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f"Writing there needs {name}: pip install 'imagery_dask[{extra}]'") from error
