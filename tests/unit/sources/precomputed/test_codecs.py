"""Codecs that are called directly give what CloudVolume and cloud-files give."""

from __future__ import annotations

import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from cloudvolume import chunks

from imagery_dask.annotations import Array
from imagery_dask.sources.precomputed.codecs import decode, missing_package

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


@pytest.mark.parametrize(("encoding", "dtype"), SAMPLES.items())
def test_empty_chunks_are_errors(encoding: str, dtype: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        decode(b"", encoding, SHAPE, dtype, BLOCK)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_chunks_have_8_or_16_bits_and_up_to_four_channels(dtype: str, channels: int) -> None:
    shape = (*SHAPE[:3], channels)
    voxels = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    picture = np.ascontiguousarray(voxels.transpose(2, 1, 0, 3).reshape(-1, SHAPE[0], channels))  # z and y, x
    content = imagecodecs.png_encode(picture[..., 0] if channels == 1 else picture)
    np.testing.assert_array_equal(decode(content, "png", shape, dtype, BLOCK), voxels)
    if dtype == "uint16":
        with pytest.raises(ValueError, match="16 bits per voxel, more than uint8"):
            decode(content, "png", shape, "uint8", BLOCK)
    with pytest.raises(ValueError, match="channels|reshape"):
        decode(content, "png", (*SHAPE[:3], channels % 4 + 1), dtype, BLOCK)


@pytest.mark.parametrize(("encoding", "dtype"), SAMPLES.items())
def test_truncated_chunks_are_errors(encoding: str, dtype: str) -> None:
    content = bytes(chunks.encode(voxels_of(dtype), encoding, BLOCK))
    with pytest.raises(Exception, match="."):
        decode(content[: len(content) // 3], encoding, SHAPE, dtype, BLOCK)


def test_a_package_that_cannot_be_imported_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zfpc.py").write_text("import a_library_that_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "zfpc", raising=False)
    assert missing_package("zfpc") == "zfpc"
    assert missing_package("raw") is None
