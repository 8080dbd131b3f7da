"""Damage that chunks show without being decoded, of chunks that numcodecs encodes, and the names of compressors."""

from __future__ import annotations

from typing import Any

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery_dask.export.zarr.compressors import CODECS, Compressor
from imagery_dask.sources.zarr.stored_chunks import RAW, compressor_of, named_compressor, seen_damage

LIBRARIES = ["blosclz", "lz4", "lz4hc", "zlib", "zstd"]
codecs = st.one_of(
    st.builds(
        numcodecs.Blosc, st.sampled_from(LIBRARIES), st.integers(0, 9), st.integers(0, 2), st.sampled_from([0, 2**14])
    ),
    st.builds(numcodecs.Zstd, st.integers(-3, 12)),
)


@st.composite
def chunks(draw: st.DrawFn) -> tuple[bytes, str, int]:
    """Draw an encoded chunk, the name of its compressor and the size of its voxels."""
    codec = draw(codecs)
    dtype = np.dtype(draw(st.sampled_from(["uint8", "int16", "float32", "uint64"])))
    size, most = draw(st.sampled_from([1, 15, 300, 5000, 200_000])), draw(st.sampled_from([1, 3, 120]))
    voxels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, most, size).astype(dtype)
    config = codec.get_config()
    return bytes(codec.encode(voxels)), named_compressor(config["id"], config), voxels.nbytes


@given(made=chunks(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_whole_chunks_show_no_damage_and_cut_ones_do(made: tuple[bytes, str, int], data: Any) -> None:
    content, compressor, size = made
    assert seen_damage(content, compressor, size) == ""
    kept = data.draw(st.integers(0, len(content) - 1))
    assert seen_damage(content[:kept], compressor, size)
    assert seen_damage(content + b"\0" * (len(content) - kept), compressor, size)
    assert seen_damage(b"\0" * len(content), compressor, size)
    assert seen_damage(content, compressor, size + 8)


def test_raw_chunks_have_their_size() -> None:
    assert seen_damage(b"\0" * 64, RAW, 64) == ""
    assert "63 bytes" in str(seen_damage(b"\0" * 63, RAW, 64))


@pytest.mark.parametrize("codec", [numcodecs.GZip(1), numcodecs.Zstd(1, checksum=True)])
def test_checksums_are_left_to_decoding(codec: Any) -> None:
    config = codec.get_config()
    content = codec.encode(np.arange(1000))
    assert seen_damage(content, named_compressor(config["id"], config), 8000) is None


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_compressors_are_named_as_arrays_name_them(name: str, zarr_format: Any) -> None:
    compressor = Compressor.parse(f"{name}:3")
    assert compressor is not None
    codec = compressor.of_zarr(zarr_format)
    metadata: dict[str, Any] = {"zarr_format": 2, "compressor": codec.get_config() if zarr_format == 2 else None}
    if zarr_format == 3:
        metadata = {"zarr_format": 3, "codecs": [{"name": "bytes"}, codec.to_dict()]}
    assert compressor_of(metadata) == compressor.text
    again = Compressor.named(compressor.text)
    assert again is not None
    assert again.text == compressor.text


def test_other_codecs_have_no_name() -> None:
    assert compressor_of({"zarr_format": 2, "compressor": None, "filters": [{"id": "delta"}]}) == ""
    assert compressor_of({"zarr_format": 3, "codecs": [{"name": "transpose"}, {"name": "bytes"}]}) == ""
    assert compressor_of({"zarr_format": 3, "codecs": [{"name": "bytes"}, {"name": "zstd"}, {"name": "crc32c"}]}) == ""
    assert compressor_of({"zarr_format": 3, "codecs": [{"name": "bytes"}]}) == RAW
    assert Compressor.named(RAW) is None
    assert Compressor.named("crc32c None") is None


@pytest.mark.parametrize(
    "text",
    ["gzip None", "gzip -1", "gzip 2.5", "gzip True", "zstd 23", "blosc lz4 5 shuffle None", "blosc lz4 10 shuffle 0"],
)
def test_levels_that_exports_do_not_write_make_no_compressor(text: str) -> None:
    assert Compressor.named(text) is None
