"""Codecs that are called directly give what CloudVolume and cloud-files give."""

from __future__ import annotations

import numpy as np
import pytest
from cloudvolume import chunks

from imagery_dask.annotations import Array
from imagery_dask.sources.codecs import decode

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
