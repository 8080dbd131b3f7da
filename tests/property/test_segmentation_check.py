"""Whole compressed_segmentation chunks pass the check, and the decoder reads no byte outside of chunks that pass."""

from __future__ import annotations

from typing import Any

import compressed_segmentation
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery_dask.sources.precomputed.codecs import segmentation_damage

sizes = st.tuples(*[st.integers(1, 21)] * 3)
block_sizes = st.sampled_from([(8, 8, 8), (4, 8, 2), (16, 16, 16), (3, 5, 7)])
kinds = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 17, 300, 5000]))
dtypes = st.sampled_from([np.uint32, np.uint64])


def encoded(shape: Any, kind: tuple[int, int], block_size: Any, dtype: Any) -> bytes:
    seed, count = kind
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, np.iinfo(dtype).max, count, dtype=dtype)
    return bytes(compressed_segmentation.compress(np.asfortranarray(rng.choice(ids, shape)), block_size, order="F"))


@given(sizes, block_sizes, kinds, dtypes)
@settings(max_examples=150, deadline=None)
def test_whole_chunks_pass_and_chunks_that_lack_a_voxel_do_not(
    shape: Any, block_size: Any, kind: tuple[int, int], dtype: Any
) -> None:
    content = encoded(shape, kind, block_size, dtype)
    itemsize = np.dtype(dtype).itemsize
    assert segmentation_damage(content, (*shape, 1), block_size, itemsize) == ""
    expected = compressed_segmentation.decompress(content, shape, dtype, block_size, order="F")
    for stop in (0, 2, 4, 12, len(content) // 2, len(content) - 1, len(content) - 4):
        if segmentation_damage(content[:stop], (*shape, 1), block_size, itemsize):
            continue
        # The bytes cut off may be padding of the last block, which belongs to no voxel.
        padded = content[:stop] + b"\xff" * 2**16
        decoded = compressed_segmentation.decompress(padded, shape, dtype, block_size, order="F")
        np.testing.assert_array_equal(decoded, expected)
        assert stop > 12


@given(kinds, dtypes, st.data())
@settings(max_examples=200, deadline=None)
def test_chunks_that_pass_are_decoded_from_their_own_bytes(
    kind: tuple[int, int], dtype: Any, data: st.DataObject
) -> None:
    """Bytes after the chunk do not change the voxels, and the decoder does not crash."""
    shape, block_size = (17, 9, 8), (8, 8, 8)
    content = bytearray(encoded(shape, kind, block_size, dtype))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 160) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
    if segmentation_damage(damaged, (*shape, 1), block_size, np.dtype(dtype).itemsize):
        return
    decoded = [
        compressed_segmentation.decompress(damaged + behind, shape, dtype, block_size, order="F")
        for behind in (b"\0" * 2**20, b"\xff" * 2**20)
    ]
    np.testing.assert_array_equal(*decoded)


@pytest.mark.parametrize("channels", [1, 2])
def test_chunks_of_several_channels_pass(channels: int) -> None:
    block_size = (8, 8, 8)
    one = np.frombuffer(encoded((16, 8, 8), (3, 17), block_size, np.uint64), "<u4")
    channel = one[1:]  # after the offset of the only channel
    offsets = [channels + number * len(channel) for number in range(channels)]
    content = np.concatenate([np.array(offsets, "<u4"), *[channel] * channels]).tobytes()
    assert segmentation_damage(content, (16, 8, 8, channels), block_size, 8) == ""
    assert segmentation_damage(content[:-8], (16, 8, 8, channels), block_size, 8) != ""
    assert "headers" in segmentation_damage(b"\xff" * len(content), (16, 8, 8, channels), block_size, 8)
