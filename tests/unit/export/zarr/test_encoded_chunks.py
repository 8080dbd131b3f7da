"""Chunks and shards that are encoded here are read by zarr, and are the same whenever they are encoded."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec

from imagery_dask.export.zarr.block_array import open_array
from imagery_dask.export.zarr.compressors import Compressor

SHAPE = (40, 70, 33)
CODECS = [BloscCodec(cname="zstd", clevel=1), ZstdCodec(level=1), ZstdCodec(level=1, checksum=True), GzipCodec(), None]


def created(folder: Path, dtype: Any, codec: Any = None, fill: float = 0, **options: Any) -> Any:
    options = {"chunks": (16, 16, 16), "shards": (32, 32, 32), "dtype": dtype, "fill_value": fill} | options
    return zarr.create_array(folder, name="0", shape=SHAPE, compressors=codec, **options)


@pytest.mark.parametrize("shards", [(32, 32, 32), None])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32", "bool"])
def test_zarr_reads_what_is_encoded(tmp_path: Path, codec: Any, dtype: str, shards: Any) -> None:
    created(tmp_path, dtype, codec, shards=shards)
    voxels = np.random.default_rng(0).integers(0, 2, SHAPE).astype(dtype)
    voxels[:16, :16, :16] = 0  # an empty chunk of a shard
    voxels[:32, 32:64] = 0  # an empty shard
    if dtype == "float32":
        voxels[:16, :16, :16] = -0.0
    open_array(str(tmp_path), "0", run="run").write_block((slice(None),) * 3, voxels)
    read = zarr.open_array(tmp_path, path="0", mode="r")[:]
    np.testing.assert_array_equal(read, voxels)
    assert np.asarray(read).tobytes() == voxels.tobytes()
    empty = "0/c/0/1/0" if shards else "0/c/0/2/0"
    assert not (tmp_path / empty).exists()
    assert (tmp_path / "0/c/0/0/1").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"fill": 7}, "the fill value"), ({"dtype": "uint16", "serializer": BytesCodec(endian="big")}, "BytesCodec")],
)
def test_other_arrays_are_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    created(tmp_path, options.pop("dtype", "uint8"), **options)
    with pytest.raises(ValueError, match=reason):
        open_array(str(tmp_path), "0", run="run")


@pytest.mark.parametrize("shards", [(32, 32, 32), None])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["gzip", "zstd", "blosc-zstd"])
def test_equal_voxels_become_equal_files_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, zarr_format: Any, shards: Any
) -> None:
    codec = Compressor(name).of_zarr(zarr_format)
    created(tmp_path, "uint64", codec, zarr_format=zarr_format, shards=shards if zarr_format == 3 else None)
    array = open_array(str(tmp_path), "0", run="run", zarr_format=zarr_format)
    voxels, whole = np.random.default_rng(0).integers(2**53, 2**60, SHAPE, dtype=np.uint64), (slice(None),) * 3
    written = array.write_block(whole, voxels)
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 100)
    assert array.digest_of(whole, [(whole, voxels)]) == written == array.digest(whole)
    np.testing.assert_array_equal(zarr.open_array(tmp_path, path="0", mode="r")[:], voxels)
