"""Codecs of other writers, by the names of the option ``codec``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numcodecs
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from imagery_dask.export.downsampling.codec_names import codec_of


def array_of(folder: Path, zarr_format: Any, **options: Any) -> Any:
    zarr.create_array(folder, shape=(64, 64), chunks=(16, 16), dtype="uint16", zarr_format=zarr_format, **options)
    return json.loads((folder / (".zarray" if zarr_format == 2 else "zarr.json")).read_bytes())


@pytest.mark.parametrize(
    ("compressor", "name"),
    [
        (None, "none"),
        (numcodecs.Zstd(0), "zstd:1"),
        (numcodecs.Zstd(7), "zstd:7"),
        (numcodecs.GZip(9), "gzip:9"),
        (numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE), "blosc-lz4:5"),
        (numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE), "blosc-zstd-bitshuffle:3"),
        (numcodecs.Blosc("zstd", 3, numcodecs.Blosc.NOSHUFFLE), None),
        (numcodecs.Blosc("zlib", 3), None),
        (numcodecs.LZ4(), None),
    ],
)
def test_codecs_of_zarr_v2(tmp_path: Path, compressor: Any, name: str | None) -> None:
    assert codec_of(array_of(tmp_path, 2, compressors=compressor)) == name


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"compressors": None}, "none"),
        ({"compressors": ZstdCodec(level=4)}, "zstd:4"),
        ({"compressors": GzipCodec(level=2), "filters": TransposeCodec(order=(1, 0))}, "gzip:2"),
        ({"compressors": BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")}, "blosc-lz4-bitshuffle:1"),
        ({"compressors": BloscCodec(cname="lz4hc", clevel=1)}, None),
        ({"compressors": [ZstdCodec(), Crc32cCodec()]}, None),
        ({"compressors": ZstdCodec(level=3), "shards": (32, 32)}, "zstd:3"),
    ],
)
def test_codecs_of_zarr_v3(tmp_path: Path, options: Any, name: str | None) -> None:
    assert codec_of(array_of(tmp_path, 3, **options)) == name
