"""Codecs that are called directly give what CloudVolume and cloud-files give."""

from __future__ import annotations

import numpy as np
import pytest
from cloudfiles import compression
from cloudvolume import chunks

from imagery_dask.annotations import Array
from imagery_dask.sources.codecs import compress, decode, decompress

SHAPE = (24, 16, 9, 1)
BLOCK = (8, 8, 8)
SAMPLES = {
    "raw": "uint16", "jpeg": "uint8", "png": "uint8", "compressed_segmentation": "uint64", "compresso": "uint32",
    "crackle": "uint64", "jxl": "uint8",
}  # fmt: skip


def voxels_of(dtype: str) -> Array:
    values = np.random.default_rng(3).integers(0, 200, SHAPE).astype(dtype)
    return np.asfortranarray(values + np.iinfo(dtype).max // 2)


@pytest.mark.parametrize(("encoding", "dtype"), SAMPLES.items())
def test_chunks_decode_as_cloudvolume_decodes_them(encoding: str, dtype: str) -> None:
    content = bytes(chunks.encode(voxels_of(dtype), encoding, BLOCK))
    expected = chunks.decode(content, encoding, SHAPE, np.dtype(dtype), BLOCK)
    voxels = decode(content, encoding, SHAPE, dtype, BLOCK)
    assert voxels.dtype == dtype
    assert voxels.shape == SHAPE
    np.testing.assert_array_equal(voxels, expected)


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "png"])
def test_empty_chunks_are_zeros(encoding: str) -> None:
    np.testing.assert_array_equal(decode(b"", encoding, SHAPE, "uint8", BLOCK), np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize(("encoding", "dtype"), SAMPLES.items())
def test_truncated_chunks_are_errors(encoding: str, dtype: str) -> None:
    content = bytes(chunks.encode(voxels_of(dtype), encoding, BLOCK))
    with pytest.raises(Exception, match="."):
        decode(content[: len(content) // 3], encoding, SHAPE, dtype, BLOCK)


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
