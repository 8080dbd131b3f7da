"""Local files are read, listed and removed as cloud-files does it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cloudfiles import CloudFiles, compression

from imagery_dask.sources.files.local_files import LocalFiles, local_folder

NAMES = ("info", "1_1_1/0-8", "1_1_1/8-16", "1_1_1.json", "deep/er/info", ".hidden")


@pytest.fixture(params=[None, "gzip", "br", "zstd", "xz", "bzip2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with files that cloud-files has compressed."""
    files = CloudFiles(f"file://{tmp_path}", progress=False)
    files.puts([(name, name.encode()) for name in NAMES], compress=request.param)
    return tmp_path


def test_files_are_read_as_stored(folder: Path) -> None:
    files = LocalFiles(str(folder))
    for name in NAMES:
        stored = files.read(name)
        assert stored is not None
        assert compression.decompress(*stored) == name.encode()
    assert files.read("1_1_1/none") is None
    assert files.read("none/0-8") is None


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 5), (3, None), (None, 2), (2, 100), (100, 200)])
def test_ranges_of_bytes(tmp_path: Path, start: int | None, stop: int | None) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert LocalFiles(str(tmp_path)).read("file", start, stop) == (b"0123456789"[start:stop], None)


def test_a_folder_may_have_files_with_and_without_compression(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"packed")
    (tmp_path / "b").write_bytes(b"plain")
    files = LocalFiles(str(tmp_path))
    for _ in range(2):
        assert files.read("a") == (b"packed", "gzip")
        assert files.read("b") == (b"plain", None)


@pytest.mark.parametrize("prefix", ["", "i", "info", "1_1_1", "1_1_1/", "1_1_1/0", "deep/", "none", "none/x"])
def test_names_are_those_of_cloud_files(folder: Path, prefix: str) -> None:
    expected = list(CloudFiles(f"file://{folder}", progress=False).list(prefix=prefix))
    assert list(LocalFiles(str(folder)).names(prefix)) == expected


def test_removed_files_are_gone_and_missing_ones_ignored(folder: Path) -> None:
    files = LocalFiles(str(folder))
    for name in ("info", "1_1_1/0-8", "none"):
        files.delete(name)
    assert sorted(files.names()) == sorted(set(NAMES) - {"info", "1_1_1/0-8"})


def test_errors_other_than_missing_files_are_raised(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        LocalFiles(str(tmp_path)).read("file/inside")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        LocalFiles(str(tmp_path)).read("folder")


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("precomputed://file:///data/em", "/data/em"),
        ("file:///data/em/", "/data/em"),
        ("file://~/em", "~/em"),
        ("precomputed://gs://bucket/em", None),
        ("mem://bucket/em", None),
        ("https://host/file:///em", None),
        ("file:///data/em|neuroglancer-precomputed:", None),
    ],
)
def test_the_folder_of_a_path(path: str, folder: str | None) -> None:
    assert local_folder(path) == (None if folder is None else os.path.expanduser(folder))
