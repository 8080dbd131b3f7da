"""Files are compressed as cloud-files compresses them, and decompressed up to a limit."""

from __future__ import annotations

import pytest
from cloudfiles import compression

from imagery_dask.sources.files.compression import compress, decompress


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_files_are_compressed_as_cloud_files_compresses_them(encoding: str) -> None:
    content = bytes(range(256)) * 40
    assert compress(content, encoding) == compression.compress(content, encoding)


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "xz", "bzip2"])
def test_compressed_files_are_read(encoding: str) -> None:
    content = bytes(range(256)) * 40
    assert decompress(compression.compress(content, encoding), encoding) == content


@pytest.mark.parametrize("encoding", [None, ""])
def test_files_without_compression_are_read_as_they_are(encoding: str | None) -> None:
    assert decompress(b"abc", encoding) == b"abc"


@pytest.mark.parametrize("content", [b"", b"abc", b"\x1f\x8b"])
def test_files_that_are_not_compressed_are_errors(content: bytes) -> None:
    with pytest.raises(Exception, match="."):
        decompress(content, "gzip")
