"""What an info names, by `redirect` or `data_dir`, cannot have tokens sent to others, or files of this machine read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.http_server import FileServer
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient
from imagery_dask.errors import AccessRefusedError, SourceError
from imagery_dask.sources.files.http_files import Asked, HttpFiles
from imagery_dask.sources.graph.graph_server import GraphServer
from imagery_dask.sources.requests import credentials
from imagery_dask.sources.volumes.addresses import named_by_info
from imagery_dask.urls import redacted

SHAPE = (32, 32, 16)
Servers = Callable[[Path], FileServer]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("precomputed://https://host/em", "middleauth+https://host/em"),
        ("precomputed://https://host/em", "precomputed://middleauth+https://other/em"),
        ("precomputed://middleauth+https://host/em", "middleauth+https://other/em"),
        ("precomputed://middleauth+https://host/em", "middleauth+https://host.other/em"),
        ("precomputed://middleauth+https://host/em", "middleauth+https://host@other/em"),
        ("precomputed://middleauth+https://host/em", "middleauth+http://host/em"),
        ("precomputed://file:///data/em", "middleauth+https://host/em"),
        ("precomputed://gs://bucket/em", "middleauth+https://host/em"),
        ("precomputed://https://host/em", "ngauth+https://host/em"),
        ("precomputed://https://host/em", "file:///data/em"),
        ("precomputed://https://host/em", "precomputed://file:///data/em"),
        ("precomputed://http://127.0.0.1:80/em", "file:///data/em"),
        ("precomputed://s3://bucket/em", "file:///data/em"),
        ("precomputed://https://host/em", "/data/em"),
        ("precomputed://file:///data/em", "em"),
        ("precomputed://https://host/em", "mem://bucket/em"),
        ("precomputed://gs://bucket/em", "s3://https://other/bucket/em"),
        ("precomputed://s3://https://host/bucket/em", "s3://https://other/bucket/em"),
        ("precomputed://https://host/em", "graphene://https://host/segmentation/table/a"),
        ("precomputed://https://host/em", "zarr3://file:///data/em"),
        ("precomputed://https://host/em", "precomputed://zarr3://file:///data/em"),
        ("precomputed://https://host/em", "n5:///data/em"),
        ("precomputed://https://host/em", "zarr://middleauth+https://host/em"),
        ("graphene://https://host/segmentation/table/a", "zarr2://file:///data/em"),
        ("precomputed://https://host/em", 5),
        ("precomputed://https://host/em", {"path": "gs://bucket/em"}),
        ("graphene://https://host/segmentation/table/a", "file:///data/em"),
        ("graphene://https://host/segmentation/table/a", "middleauth+https://other/em"),
        ("graphene://https://host/segmentation/table/a", None),
    ],
)
def test_an_info_cannot_name_what_only_the_user_may(path: str, target: Any) -> None:
    with pytest.raises(SourceError, match="in the info of") as caught:
        named_by_info(path, "redirect", target)
    assert path in str(caught.value)
    assert redacted(repr(target)) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("precomputed://https://host/em", "https://other/em"),
        ("precomputed://https://host/em", "precomputed://gs://bucket/em"),
        ("precomputed://https://host/em", "s3://bucket/em"),
        ("precomputed://middleauth+https://host/em", "middleauth+https://host/other"),
        ("precomputed://middleauth+https://host/em", "https://other/em"),
        ("precomputed://file:///data/em", "file:///data/other"),
        ("graphene://https://host/segmentation/table/a", "middleauth+https://host/em"),
        ("graphene://https://host/segmentation/table/a", "gs://bucket/em"),
        ("graphene://http://127.0.0.1:80/segmentation/table/a", "file:///data/em"),
    ],
)
def test_an_info_may_name_what_needs_no_trust(path: str, target: str) -> None:
    named = named_by_info(path, "redirect", target)
    assert named == f"precomputed://{target.removeprefix('precomputed://')}"


def test_a_redirect_is_followed_without_login(
    tmp_path: Path, http_server_factory: Callable[..., FileServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    logins = []

    def recording(self: HttpFiles, url: str, auth: Any) -> None:
        logins.append((url, bool(auth(url))))
        create(self, url, auth)

    create = HttpFiles.__init__
    monkeypatch.setattr(HttpFiles, "__init__", recording)
    monkeypatch.setattr(credentials, "http_login", lambda: "Basic YTpi")
    data = coordinate_volume(SHAPE, dtype=np.uint8)
    write_volume(tmp_path / "em", data)
    server, other = http_server_factory(tmp_path), http_server_factory(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "info").write_text(json.dumps({"redirect": f"{other.url}/em"}))
    client = ImageryClient(image_source=f"{server.url}/old")
    np.testing.assert_array_equal(client.image_cutout([[0, 0, 0], SHAPE]).compute(), data)
    assert logins == [(f"{server.url}/old", True), (f"{other.url}/em", False)]


@pytest.mark.parametrize("target", ["{url}", "{url}/", "precomputed://{url}"])
def test_a_redirect_to_itself_is_none(tmp_path: Path, file_server: FileServer, target: str) -> None:
    data = coordinate_volume(SHAPE, dtype=np.uint8)
    write_volume(tmp_path / "em", data)
    url = f"{file_server.url}/em"
    info = json.loads((tmp_path / "em" / "info").read_text())
    (tmp_path / "em" / "info").write_text(json.dumps(info | {"redirect": target.format(url=url)}))
    np.testing.assert_array_equal(ImageryClient(image_source=url).image_cutout([[0, 0, 0], SHAPE]).compute(), data)


@pytest.mark.parametrize("target", ["file://{folder}/em", "{folder}/em", "middleauth+{url}/em", "{url}/a", 5,
                                    "http://[bad", "ftp://host/em", "FILE://{folder}/em"])  # fmt: skip
def test_a_redirect_that_is_not_followed_is_an_error(tmp_path: Path, file_server: FileServer, target: Any) -> None:
    write_volume(tmp_path / "em", coordinate_volume(SHAPE, dtype=np.uint8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        named = target.format(folder=tmp_path, url=file_server.url) if isinstance(target, str) else target
        (tmp_path / name / "info").write_text(
            json.dumps({"redirect": named if name == "b" else f"{file_server.url}/b"})
        )
    with pytest.raises(SourceError, match="redirect"):
        ImageryClient(image_source=f"{file_server.url}/a")


def test_a_token_stays_on_its_server_after_a_redirect(
    tmp_path: Path, http_server_factory: Callable[..., FileServer]
) -> None:
    (tmp_path / "em").mkdir()
    (tmp_path / "em" / "info").write_bytes(b"{}")
    server, other = http_server_factory(tmp_path), http_server_factory(tmp_path)
    from support.http_server import Fault

    server.faults = lambda path, n: Fault(302, headers={"Location": f"{other.url}/em/info"}) if n == 1 else None
    files = HttpFiles(f"{server.url}/em", lambda _: {"Authorization": "Bearer secret"})
    answer = files.get(Asked("info", None, None, 100, False))
    assert answer is not None
    assert answer.content == b"{}"
    assert [request.authorization for request in server.requests] == ["Bearer secret"]
    assert [request.authorization for request in other.requests] == [None]


def test_no_token_is_sent_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAVE_TOKEN", "secret")
    with pytest.raises(AccessRefusedError, match="plain HTTP is not encrypted. Use https://host"):
        GraphServer("http://host").get_json("/segmentation/table/a/info")
    for source in ("graphene://http://192.0.2.1/segmentation/table/a", "graphene://http://localhost.example/s/table/a"):
        with pytest.raises(AccessRefusedError, match="plain HTTP"):
            ImageryClient(segmentation_source=source)
