"""Chunks and shards that are encoded here are read by zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec

from imagery_dask.export.zarr.block_array import open_array

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
