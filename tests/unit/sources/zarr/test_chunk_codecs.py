"""Chunks decode to what their codec was given, and to nothing where bytes of them are lost."""

import numcodecs
import numpy as np
import pytest

from imagery_dask.sources.zarr.chunk_codecs import codec_of_v2, codec_of_v3

SHAPE = (8, 16, 32)
IDS = (np.random.default_rng(7).integers(0, 50, SHAPE) + 2**60).astype(np.uint64)
COMPRESSORS = [
    *(numcodecs.Blosc(name, 5, shuffle) for name in numcodecs.blosc.list_compressors() for shuffle in (0, 1, 2)),
    numcodecs.Zstd(1), numcodecs.GZip(1), numcodecs.Zlib(1), numcodecs.LZ4(), numcodecs.BZ2(), numcodecs.LZMA(),
]  # fmt: skip


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_ids_decode_whole_and_never_from_a_truncated_chunk(compressor):
    stored = bytes(compressor.encode(IDS))
    codec = codec_of_v2({"shape": SHAPE, "compressor": compressor.get_config()}, IDS.dtype)
    np.testing.assert_array_equal(codec.decode(stored, SHAPE), IDS)
    for lost in (1, 4, len(stored) // 2, len(stored) - 20, len(stored)):
        with pytest.raises(Exception):  # noqa: B017, PT011 (each codec has its own)
            codec.decode(stored[: len(stored) - lost], SHAPE)


def test_blosc_of_v3_ends_where_its_header_says():
    stored = bytes(numcodecs.Blosc("zstd", 1, 1).encode(IDS)) + b"more"
    codec = codec_of_v3(["bytes", "blosc"], IDS.dtype, 3)
    np.testing.assert_array_equal(codec.decode(stored, SHAPE), IDS)
