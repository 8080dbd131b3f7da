"""Chunks in compresso are decoded as compresso decodes them; damaged ones are errors."""

from __future__ import annotations

import compresso
import numpy as np
import pytest

from imagery_dask.annotations import Array
from imagery_dask.sources.precomputed.encodings.compresso_chunks import HEADER, decode_compresso

SHAPE = (21, 18, 7)
STEPS = [(4, 4, 1), (8, 8, 1), (2, 2, 1), (3, 5, 2), (1, 1, 1), (4, 4, 2)]


def labels_of(dtype: str, edge: int, kinds: int = 9, seed: int = 1) -> Array:
    """Return cubes of random ids, some of them within 7 of the largest of the dtype."""
    rng = np.random.default_rng(seed)
    largest = np.iinfo(dtype).max
    ids = np.concatenate([np.zeros(1, dtype), largest - np.arange(kinds // 2, dtype=dtype)])
    ids = np.concatenate([ids, rng.integers(1, largest, kinds, dtype=dtype)])
    coarse = ids[rng.integers(0, len(ids), [-(-n // edge) for n in SHAPE])]
    x, y, z = (np.arange(n) // edge for n in SHAPE)
    return np.asfortranarray(coarse[np.ix_(x, y, z)])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("edge", [1, 3, 30])
@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("connectivity", [4, 6])
def test_chunks_have_the_encoded_labels(dtype: str, edge: int, steps: tuple[int, int, int], connectivity: int) -> None:
    labels = labels_of(dtype, edge)
    for indexed in (True, False) if connectivity == 4 else (False,):
        options = {"steps": steps, "connectivity": connectivity, "random_access_z_index": indexed}
        decoded = decode_compresso(compresso.compress(labels, **options), SHAPE, dtype)
        assert decoded.dtype == dtype
        assert decoded.flags.f_contiguous
        np.testing.assert_array_equal(decoded, labels)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 2), (9, 1, 3), (300, 2, 1)])
def test_flat_chunks_have_the_encoded_labels(shape: tuple[int, int, int]) -> None:
    labels = np.asfortranarray(np.random.default_rng(2).integers(2**53, 2**53 + 3, shape, dtype=np.uint64))
    np.testing.assert_array_equal(decode_compresso(compresso.compress(labels), shape, "uint64"), labels)


def damages(content: bytes, count: int) -> list[bytes]:
    """Return copies with a bit flipped, cut short, and with a zeroed end."""
    rng = np.random.default_rng(4)
    damaged = []
    for at in rng.integers(0, len(content), count).tolist():
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged += [bytes(flipped), content[:at], content[:at].ljust(len(content), b"\0")]
    return damaged


@pytest.mark.parametrize("indexed", [True, False])
def test_damaged_chunks_are_errors_or_have_labels(indexed: bool) -> None:
    labels = labels_of("uint64", 3)
    content = compresso.compress(labels, random_access_z_index=indexed)
    refused = 0
    for damaged in damages(content, 60):
        try:
            assert decode_compresso(damaged, SHAPE, "uint64").shape == SHAPE
        except ValueError:
            refused += 1
    assert refused > 110  # all that are cut, and flips of anything but ids


def test_every_flip_of_a_header_is_an_error() -> None:
    labels = labels_of("uint32", 3)
    content = compresso.compress(labels)
    for at in range(HEADER.size):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            with pytest.raises(ValueError, match=r"its? |a window"):
                decode_compresso(bytes(damaged), SHAPE, "uint32")


@pytest.mark.parametrize(
    ("shape", "dtype"), [((21, 18, 8), "uint32"), ((18, 21, 7), "uint32"), (SHAPE, "uint64"), (SHAPE, "float32")]
)
def test_a_chunk_of_another_shape_or_dtype_is_an_error(shape: tuple[int, int, int], dtype: str) -> None:
    content = compresso.compress(labels_of("uint32", 3))
    with pytest.raises(ValueError, match=r"its header says \(21, 18, 7\) of 4 bytes, not"):
        decode_compresso(content, shape, dtype)


def test_labels_of_a_signed_type_have_the_same_bits() -> None:
    labels = labels_of("uint32", 3)
    decoded = decode_compresso(compresso.compress(labels), SHAPE, "int32")
    assert decoded.dtype == "int32"
    np.testing.assert_array_equal(decoded, labels.view("int32"))
