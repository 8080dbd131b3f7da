"""The size of a picture is read from its header, before decoders allocate what it says."""

from __future__ import annotations

import numpy as np
import pytest
from cloudvolume import chunks

from imagery_dask.sources.precomputed.codecs import decode
from imagery_dask.sources.precomputed.encodings.picture_sizes import check_picture_size

SHAPES = [
    (1, 1, 1),
    (8, 8, 1),
    (8, 8, 8),
    (64, 64, 1),
    (24, 20, 1),
    (300, 9, 2),
    (16, 9, 1),
    (513, 513, 1),
    (2, 1, 9000),
]


@pytest.mark.parametrize(("encoding", "channels"), [("jpeg", 1), ("jpeg", 3), ("png", 1), ("png", 3), ("jxl", 1)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pictures_of_a_chunks_size_are_accepted(encoding: str, channels: int, shape: tuple[int, int, int]) -> None:
    voxels = np.asfortranarray(np.random.default_rng(0).integers(0, 255, (*shape, channels)).astype(np.uint8))
    content = bytes(chunks.encode(voxels, encoding))
    check_picture_size(content, encoding, voxels.shape)
    with pytest.raises(ValueError, match=r"it has \d+ x \d+ pixels, not the \d+ of"):
        check_picture_size(content, encoding, (*shape[:2], shape[2] + 1, channels))


@pytest.mark.parametrize("encoding", ["jpeg", "png", "jxl"])
def test_a_picture_that_is_larger_than_its_chunk_is_not_decoded(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(chunks.encode(np.zeros((512, 512, 1, 1), np.uint8, order="F"), encoding))
    monkeypatch.setattr(chunks, "decode", None)
    with pytest.raises(ValueError, match="it has 512 x 512 pixels, not the 4096 of"):
        decode(content, encoding, (64, 64, 1, 1), "uint8", (8, 8, 8))
