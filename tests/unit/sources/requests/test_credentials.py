"""Files with secrets are found where cloud-files finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cloudfiles import secrets
from requests import Request
from requests.auth import HTTPBasicAuth

from imagery_dask.sources.requests.credentials import http_login, secret_file

NAME = "http-secret.json"


@pytest.mark.parametrize("present", [(), ("volume",), ("files",), ("volume", "files")], ids="+".join)
@pytest.mark.parametrize("named", [True, False], ids=["variables", "home"])
def test_files_with_secrets_are_those_of_cloud_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], named: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in ("volume", "files"):
        folder = tmp_path / (kind if named else f".cloud{kind}")
        variable = f"CLOUD_{kind.upper()}_DIR"
        if named:
            monkeypatch.setenv(variable, str(folder))
        else:
            monkeypatch.delenv(variable)
        # cloud-files reads the variables when it is imported.
        monkeypatch.setattr(secrets, f"CLOUD_{kind.upper()}_SECRETS_DIR", str(folder / "secrets"))
        (folder / "secrets").mkdir(parents=True)
        if kind in present:
            (folder / "secrets" / NAME).write_text(f'{{"user": "{kind}", "password": "secret"}}')
    assert secret_file(NAME) == Path(secrets.secretpath(NAME))
    monkeypatch.setattr(secrets, "HTTP_CREDENTIALS", None, raising=False)
    expected = secrets.http_credentials()
    login = None if expected is None else HTTPBasicAuth(expected["user"], expected["password"])
    prepared = Request("GET", "http://localhost", auth=login).prepare()
    assert http_login() == prepared.headers.get("Authorization")
