"""Credentials, which every process looks up itself; handles, graphs and plans never contain them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from imagery_dask.sources.files.connections import basic_auth

__all__ = [
    "alias_of",
    "aws_secret",
    "cave_token",
    "forget_token",
    "google_file",
    "has_aws",
    "has_google",
    "http_login",
    "remember_token",
    "secret_file",
    "token_places",
    "tokens_for_own_workers",
]

# One token for every CAVE server, for processes that are started with an environment.
TOKEN_VARIABLE = "CAVE_TOKEN"
# Tokens by host, given to worker processes that this process starts itself.
OWN_WORKERS_VARIABLE = "IMAGERY_DASK_TOKENS"
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


def aws_secret(bucket: str, service: str) -> dict[str, str]:
    """Return the keys for a bucket in the secret file that cloud-files uses: that of the bucket, or of the service."""
    for name in _aws_names(bucket, service):
        file = secret_file(name)
        if file.exists():
            content = json.loads(file.read_text())
            return content if isinstance(content, dict) else {}
    return {}


def google_file(bucket: str) -> Path | None:
    """Return the file with the service account for a bucket that cloud-files uses, if there is one."""
    files = [secret_file(f"{bucket}-google-secret.json"), secret_file("google-secret.json")]
    return next((file for file in files if file.exists()), None)


def alias_of(scheme: str) -> str:
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
    text = path.removeprefix("precomputed://")
    if not text.startswith(("graphene://", "middleauth+")):
        return None
    return urlsplit(text.removeprefix("graphene://").removeprefix("middleauth+")).netloc or None


def _aws_file(cloudpath: str) -> bool:
    bucket = cloudpath.partition("s3://")[2].partition("/")[0]
    return any(secret_file(name).exists() for name in _aws_names(bucket, "aws"))


def _aws_names(bucket: str, service: str) -> tuple[str, str]:
    return f"{bucket}-{service}-secret.json", f"{service}-secret.json"
