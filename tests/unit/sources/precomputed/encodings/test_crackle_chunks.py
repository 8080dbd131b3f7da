"""Chunks in crackle have the encoded labels; damaged ones are errors, and no crash of this process."""

from __future__ import annotations

import struct

import crackle
import numpy as np
import pytest

from imagery_dask.annotations import Array
from imagery_dask.sources.precomputed.encodings.crackle_chunks import decode_crackle

SHAPE = (21, 18, 7)


def labels_of(dtype: str, edge: int = 3, shape: tuple[int, int, int] = SHAPE) -> Array:
    rng = np.random.default_rng(1)
    ids = np.concatenate([np.zeros(1, dtype), rng.integers(1, np.iinfo(dtype).max, 20, dtype=dtype, endpoint=True)])
    coarse = ids[rng.integers(0, len(ids), [-(-n // edge) for n in shape])]
    x, y, z = (np.arange(n) // edge for n in shape)
    return np.asfortranarray(coarse[np.ix_(x, y, z)])


def without_checksums(content: bytes) -> bytes:
    """Return a chunk of version 1 as one of version 0."""
    header = crackle.header(content)
    index, labels = 29, 29 + 4 * (header.sz + 1)
    sizes = content[5:20] + struct.pack("<I", header.num_label_bytes)
    return content[:4] + b"\0" + sizes + content[index : labels - 4] + content[labels : -4 * (header.sz + 1)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("options", [{}, {"markov_model_order": 3}, {"allow_pins": 1}], ids=str)
@pytest.mark.parametrize("version", [0, 1])
def test_chunks_have_the_encoded_labels(dtype: str, options: dict[str, int], version: int) -> None:
    for edge in (1, 3, 30):
        labels = labels_of(dtype, edge)
        content = crackle.compress(labels, **options)
        decoded = decode_crackle(content if version else without_checksums(content), SHAPE, dtype)
        assert decoded.dtype == dtype
        assert decoded.flags.f_contiguous
        np.testing.assert_array_equal(decoded, labels)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 2), (9, 1, 3), (300, 2, 1)])
def test_flat_chunks_have_the_encoded_labels(shape: tuple[int, int, int]) -> None:
    labels = labels_of("uint64", 1, shape)
    np.testing.assert_array_equal(decode_crackle(crackle.compress(labels), shape, "uint64"), labels)


def test_chunks_in_c_order_have_the_encoded_labels() -> None:
    labels = np.ascontiguousarray(labels_of("uint64"))
    content = crackle.compress(labels)
    assert not crackle.header(content).fortran_order
    np.testing.assert_array_equal(decode_crackle(content, SHAPE, "uint64"), labels)


@pytest.mark.parametrize("part", ["header", "index", "labels", "borders", "checksums"])
def test_a_flipped_bit_is_an_error_where_there_are_checksums(part: str) -> None:
    labels = labels_of("uint64")
    content = crackle.compress(labels)
    header = crackle.header(content)
    ends = np.cumsum([0, 29, 4 * (header.sz + 1), header.num_label_bytes]).tolist()
    edges = dict(zip(("header", "index", "labels", "borders"), zip(ends, ends[1:], strict=False), strict=False))
    edges |= {"borders": (ends[3], len(content) - 4 * (header.sz + 1)), "checksums": (-4 * (header.sz + 1), 0)}
    start, stop = edges[part]
    # Each damage that crackle notices ends its process, and the next one takes a tenth of a second to start.
    for at in range(start, stop, max(1, (stop - start) // 3)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        with pytest.raises(
            ValueError, match=r"checksum|decoder ended|its (parts|header|borders)|does not begin|borders"
        ):
            decode_crackle(bytes(damaged), SHAPE, "uint64")
    np.testing.assert_array_equal(decode_crackle(content, SHAPE, "uint64"), labels)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((21, 18, 8), "uint32"), ((18, 21, 7), "uint32"), (SHAPE, "uint64"), (SHAPE, "float32")]
)
def test_a_chunk_of_another_shape_or_dtype_is_an_error(shape: tuple[int, int, int], dtype: str) -> None:
    content = crackle.compress(labels_of("uint32"))
    with pytest.raises(ValueError, match=r"its header says \(21, 18, 7\) of 4 bytes, not"):
        decode_crackle(content, shape, dtype)


@pytest.mark.parametrize("size", [0, 3, 10, 28, 29, 40, 200])
@pytest.mark.parametrize("version", [0, 1])
def test_a_truncated_chunk_is_an_error(size: int, version: int) -> None:
    content = crackle.compress(labels_of("uint32"))
    content = content if version else without_checksums(content)
    with pytest.raises(ValueError, match=r"it does not begin|beyond its end|parts do not fill"):
        decode_crackle(content[:size], SHAPE, "uint32")


def test_labels_of_a_signed_type_have_the_same_bits() -> None:
    labels = labels_of("uint32")
    decoded = decode_crackle(crackle.compress(labels), SHAPE, "int32")
    assert decoded.dtype == "int32"
    np.testing.assert_array_equal(decoded, labels.view("int32"))
