"""Files are compressed as cloud-files compresses them; damaged ones are errors, and large ones have a limit."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from cloudfiles import compression

from imagery_dask.sources.files.compression import compress, decompress

CONTENT = np.random.default_rng(0).integers(0, 9, 60_000).astype("u1").tobytes()
# No compression makes it smaller, so that it is stored as it is.
NOISE = np.random.default_rng(0).bytes(60_000)
ENCODINGS = ["gzip", "br", "zstd", "xz", "bzip2"]

encodings = pytest.mark.parametrize("encoding", ENCODINGS)


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_files_are_compressed_as_cloud_files_compresses_them(encoding: str) -> None:
    assert compress(CONTENT, encoding) == compression.compress(CONTENT, encoding)


@encodings
def test_compressed_files_are_read(encoding: str) -> None:
    compressed = compression.compress(CONTENT, encoding)
    assert decompress(compressed, encoding) == CONTENT
    assert decompress(compressed, encoding.upper(), len(CONTENT)) == CONTENT


@pytest.mark.parametrize("encoding", [None, "", "identity", "aws-chunked"])
@pytest.mark.parametrize("content", [b"", b"abc"])
def test_files_without_compression_are_read_as_they_are(encoding: str | None, content: bytes) -> None:
    assert decompress(content, encoding) == content


@encodings
@pytest.mark.parametrize("content", [b"", b"abc", b"\x1f\x8b", b"\0" * 100, CONTENT[:100]])
def test_files_that_are_not_compressed_are_errors(encoding: str, content: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        decompress(content, encoding)


@encodings
@pytest.mark.parametrize("voxels", [CONTENT, NOISE], ids=["compressible", "noise"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.95])
@pytest.mark.parametrize("tail", ["zeros", "nothing"])
def test_truncated_and_zero_filled_files_are_errors(encoding: str, voxels: bytes, kept: float, tail: str) -> None:
    content = compression.compress(voxels, encoding)
    size = int(len(content) * kept)
    damaged = content[:size] + bytes(len(content) - size if tail == "zeros" else 0)
    with pytest.raises(ValueError, match="."):
        decompress(damaged, encoding)


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_gzip_file_with_a_lost_end_is_an_error(lost: int) -> None:
    """Its last eight bytes are the checksum and the length."""
    content = gzip.compress(CONTENT)
    for damaged in (content[:-lost], content[:-lost] + bytes(lost)):
        if damaged != content:
            with pytest.raises(ValueError, match="."):
                decompress(damaged, "gzip")


@encodings
@pytest.mark.parametrize("zeros", [0, 10, 900, 60_000])
def test_voxels_that_end_in_zeros_are_no_damage(encoding: str, zeros: int) -> None:
    voxels = NOISE + bytes(zeros)
    assert decompress(compression.compress(voxels, encoding), encoding) == voxels


@encodings
def test_empty_files_are_errors(encoding: str) -> None:
    with pytest.raises(ValueError, match="empty after decompression"):
        decompress(compression.compress(b"", encoding), encoding)


@encodings
def test_no_more_is_decompressed_than_a_file_can_have(encoding: str) -> None:
    bomb = compression.compress(bytes(40_000_000), encoding)
    assert len(bomb) < 50_000
    with pytest.raises(ValueError, match=r"more than 100000 bytes|zstd"):
        decompress(bomb, encoding, 100_000)
    with pytest.raises(ValueError, match="."):
        decompress(compression.compress(CONTENT, encoding), encoding, len(CONTENT) - 1)


@pytest.mark.parametrize("encoding", ["gzip", "xz", "bzip2"])
def test_files_of_several_streams_are_read(encoding: str) -> None:
    halves = [compression.compress(half, encoding) for half in (CONTENT[:1000], CONTENT[1000:])]
    assert decompress(b"".join(halves), encoding) == CONTENT
    assert decompress(b"".join(halves) + bytes(16), encoding) == CONTENT  # padded
    with pytest.raises(ValueError, match="."):
        decompress(b"".join(halves), encoding, len(CONTENT) - 1)
