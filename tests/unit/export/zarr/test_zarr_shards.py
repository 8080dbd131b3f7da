"""Shards encoded by this package are read by zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from imagery_dask.export.zarr.block_array import open_array
from imagery_dask.export.zarr.zarr_shards import shard_encoder

SHAPE = (40, 70, 33)
CODECS = [BloscCodec(cname="zstd", clevel=1), ZstdCodec(level=1), ZstdCodec(level=1, checksum=True), GzipCodec(), None]


def created(folder: Path, dtype: Any, codec: Any = None, fill: float = 0, **options: Any) -> Any:
    options = {"chunks": (16, 16, 16), "shards": (32, 32, 32), "dtype": dtype, "fill_value": fill} | options
    return zarr.create_array(folder, name="0", shape=SHAPE, compressors=codec, **options)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32", "bool"])
def test_zarr_reads_encoded_shards(tmp_path: Path, codec: Any, dtype: str) -> None:
    created(tmp_path, dtype, codec)
    voxels = np.random.default_rng(0).integers(0, 2, SHAPE).astype(dtype)
    voxels[:16, :16, :16] = 0  # an empty chunk of a shard
    voxels[:32, 32:64] = 0  # an empty shard
    if dtype == "float32":
        voxels[:16, :16, :16] = -0.0
    array = open_array(str(tmp_path), "0", run="run")
    assert shard_encoder(array.padded) is not None
    array.write_block((slice(None),) * 3, voxels)
    read = zarr.open_array(tmp_path, path="0", mode="r")[:]
    np.testing.assert_array_equal(read, voxels)
    assert np.asarray(read).tobytes() == voxels.tobytes()
    assert (tmp_path / "0/c/0/1/0").exists() == bool(voxels[:32, 32:64].any())


@pytest.mark.parametrize("options", [{"fill": 7}, {"shards": None}, {"dtype": "uint16", "serializer": "big"}])
def test_other_arrays_are_encoded_by_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    if "serializer" in options:
        options = options | {"serializer": zarr.codecs.BytesCodec(endian="big")}
    created(tmp_path, options.pop("dtype", "uint8"), **options)
    assert shard_encoder(open_array(str(tmp_path), "0", run="run").padded) is None
