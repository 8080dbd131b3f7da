"""The server in the path of a source."""

from __future__ import annotations

import pytest

from imagery_dask.sources.transport import server_of


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
