"""Credentials, found by each process for itself: none travels in a handle, a graph or a plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cloudfiles.secrets import secretpath

__all__ = ["has_aws", "has_google", "remember_token", "secrets_for"]

_tokens: dict[str, str] = {}


def remember_token(cloudpath: str, token: str) -> None:
    """Use a token for reads of a path in this process; other processes find their own."""
    _tokens[cloudpath] = token


def secrets_for(cloudpath: str) -> Any:
    """Return what cloud-files takes as ``secrets`` for a path; None lets it look by itself."""
    if cloudpath in _tokens:
        return _tokens[cloudpath]
    if _is_bucket(cloudpath, "s3") and not _aws_file(cloudpath) and os.environ.get("AWS_ACCESS_KEY_ID"):
        # cloud-files insists on a session token beside keys from the environment; keys of one's own have none.
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
        return {name: os.environ[name] for name in names if os.environ.get(name)}
    return None


def has_google() -> bool:
    """Whether this process can sign requests to Google Cloud Storage (or is pointed at an emulator)."""
    if os.environ.get("STORAGE_EMULATOR_HOST") or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return True
    own = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    return own.exists() or Path(secretpath("google-secret.json")).exists()


def has_aws(cloudpath: str) -> bool:
    """Whether this process has keys for an S3 bucket, or a custom endpoint."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    in_environment = any(os.environ.get(name) for name in names)
    return in_environment or _aws_file(cloudpath) or (Path.home() / ".aws" / "credentials").exists()


def _is_bucket(cloudpath: str, scheme: str) -> bool:
    return cloudpath.removeprefix("precomputed://").startswith(f"{scheme}://")


def _aws_file(cloudpath: str) -> bool:
    bucket = cloudpath.partition("s3://")[2].partition("/")[0]
    names = ("aws-secret.json", f"{bucket}-aws-secret.json")
    return any(Path(secretpath(name)).exists() for name in names)
