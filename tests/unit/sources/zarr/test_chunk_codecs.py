"""Chunks decode to what their codec was given, and to nothing where bytes of them are lost."""

import struct
import tracemalloc
from contextlib import suppress

import imagecodecs
import numcodecs
import numpy as np
import pytest
import xxhash
import zstandard

from imagery_dask.sources.zarr.chunk_codecs import codec_of_n5, codec_of_v2, codec_of_v3

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


@pytest.mark.parametrize("codecs", [[], ["zstd"], [{"name": "transpose", "configuration": {"order": [2, 1, 0]}}]])
def test_codecs_of_v3_without_one_that_makes_bytes_are_refused(codecs):
    """As zarr-python does."""
    with pytest.raises(ValueError, match="field 'codecs' is .* without the codec 'bytes'"):
        codec_of_v3(codecs, IDS.dtype, 3)


SKIPPABLE = struct.pack("<II", 0x184D2A50, 5) + b"hello"


@pytest.mark.parametrize("says_size", [True, False])
@pytest.mark.parametrize("first", [SKIPPABLE, None], ids=["skipped first", "two frames"])
def test_several_frames_of_zstd_are_one_chunk(first, says_size):
    """As numcodecs has it; and they become no larger than one frame may."""
    codec = codec_of_v3(["bytes", "zstd"], IDS.dtype, 3)
    frames, voxels = zstandard.ZstdCompressor(write_content_size=says_size), IDS.tobytes()
    start = frames.compress(voxels[:9000]) if first is None else first
    stored = start + frames.compress(voxels[9000 if first is None else 0 :])
    np.testing.assert_array_equal(codec.decode(stored, SHAPE), IDS)
    assert numcodecs.Zstd().decode(stored) == IDS.tobytes()
    for lost in (1, 4, 100, len(stored) // 2):
        with pytest.raises(Exception):  # noqa: B017, PT011
            codec.decode(stored[:-lost], SHAPE)
    bomb = start + frames.compress(bytes(2**26))
    tracemalloc.start()
    with pytest.raises(ValueError, match="bytes after decompression, more than it can have"):
        codec.decode(bomb, SHAPE)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**22


def test_blosc_of_v3_ends_where_its_header_says():
    stored = bytes(numcodecs.Blosc("zstd", 1, 1).encode(IDS)) + b"more"
    codec = codec_of_v3(["bytes", "blosc"], IDS.dtype, 3)
    np.testing.assert_array_equal(codec.decode(stored, SHAPE), IDS)


def lz4_blocks(voxels: bytes, has_checksum: bool) -> bytes:
    """Return bytes as LZ4BlockOutputStream of lz4-java writes them: blocks with a header, and one that is empty."""
    stored = b""
    for start in range(0, len(voxels) + 1000, 1000):
        block = voxels[start : start + 1000]
        packed = imagecodecs.lz4_encode(block) if block else b""
        is_packed = len(packed) < len(block)
        checksum = xxhash.xxh32_intdigest(block, 0x9747B28C) & 0xFFFFFFF if has_checksum and block else 0
        packed = packed if is_packed else block
        stored += struct.pack("<8sBiiI", b"LZ4Block", 0x20 if is_packed else 0x10, len(packed), len(block), checksum)
        stored += packed
    return stored


@pytest.mark.parametrize("has_checksum", [True, False])
@pytest.mark.parametrize("ids", [IDS, np.random.default_rng(3).integers(2**53, 2**64, SHAPE, np.uint64)])
def test_a_changed_byte_of_lz4_in_n5_is_found_by_its_checksum(ids, has_checksum):
    codec = codec_of_n5({"dimensions": SHAPE, "compression": {"type": "lz4"}}, ids.dtype)
    header = struct.pack(">HHIII", 0, 3, *SHAPE)
    stored = header + lz4_blocks(ids.astype(">u8").tobytes("F"), has_checksum)
    np.testing.assert_array_equal(codec.decode(stored, SHAPE), ids)
    wrong = 0
    for at in range(len(header) + 25, len(stored) - 21, 997):
        changed = stored[:at] + bytes([stored[at] ^ 4]) + stored[at + 1 :]
        if has_checksum:
            with pytest.raises((ValueError, RuntimeError)):
                codec.decode(changed, SHAPE)
        else:
            with suppress(ValueError, RuntimeError):  # of bytes that are no lz4
                wrong += bool((codec.decode(changed, SHAPE) != ids).any())
    assert has_checksum or wrong > 0


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_a_chunk_that_would_become_far_larger_than_its_voxels_is_not_decompressed(compressor):
    codec = codec_of_v2({"shape": SHAPE, "compressor": compressor.get_config()}, IDS.dtype)
    stored = compressor.encode(np.zeros(2**25, np.uint8))
    tracemalloc.start()
    with pytest.raises(ValueError, match="bytes after decompression, more than it can have"):
        codec.decode(stored, SHAPE)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24  # of which LZMA takes 8 MiB
