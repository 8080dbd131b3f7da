"""Decode chunks in crackle, and raise ValueError for damaged ones.

Crackle (0.55) does not compare the checksum of the labels, ignores the errors of slices, of which it returns memory as
it was, and crashes on some damaged borders. So a chunk whose labels are the numbers of its components, which has the
borders of the given one, is decoded in a process of its own; checksums are compared and labels are assigned here. The
numbers begin anywhere, so that memory of an earlier chunk does not have them.
Version 0 of the format has no checksums: sizes, counts and indices are checked, and a changed label, or a border that
moved, cannot be noticed.

A chunk is a header, the bytes of borders of each slice, labels (the table of labels, the number of components of each
slice, the label of each component), a model of the borders, and the borders. Format:
https://github.com/seung-lab/crackle
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.sources.precomputed.encodings.decoder_process import decoder_process

__all__ = ["decode_crackle"]

MAGIC = b"crkl"
# Version 0, and version 1 without the checksum that follows.
HEADERS = (struct.Struct("<4sBHIIIBI"), struct.Struct("<4sBHIIIBQ"))
SIZE = HEADERS[1].size + 1
CRC_POLYNOMIAL = 0xE7
# Bits of the header: data widths, label format (flat, or pins), signed, order of the model.
WIDTH, STORED_WIDTH, LABEL_FORMAT, SIGNED, MODEL_ORDER = (0, 3), (2, 3), (5, 3), (8, 1), (9, 15)
FLAT, PINS = 0, 2
UINT32 = 2


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a chunk, with sizes that agree with each other and checksums that match."""

    bits: int
    shape: tuple[int, int, int]
    grid: int
    index: bytes
    labels: bytes
    # The model of the borders, and the borders.
    borders: bytes
    # Checksum of the components of each slice; empty in version 0.
    checksums: NDArray[np.uint32]


def decode_crackle(content: bytes, shape: tuple[int, int, int], dtype: str) -> Array:
    """Return the labels of a chunk.

    Parameters
    ----------
    content : bytes
        The chunk.
    shape : tuple of 3 int
        Voxels along x, y, z.
    dtype : str
        Data type of the labels.

    Returns
    -------
    labels : numpy.ndarray, shape (x, y, z)
        In Fortran order.

    Raises
    ------
    ValueError
        The chunk is damaged.
    SourceError
        The process that decodes chunks cannot be started.
    """
    parts = _parse(content, shape, np.dtype(dtype))
    counts, labels = _components(parts, np.dtype(dtype))
    process = decoder_process("crackle_child")
    first = int.from_bytes(os.urandom(4), "little") % (2**32 - 2 - int(counts.sum())) + 1
    components = process.decode(_numbered(parts, counts, first), shape, "uint32")
    components -= np.uint32(first)
    _check_components(components, counts, parts.checksums)
    if labels is None:
        return process.decode(content, shape, dtype)
    return labels.take(components.T).T


def _parse(content: bytes, shape: tuple[int, int, int], dtype: np.dtype) -> _Parts:
    version = content[4] if len(content) >= SIZE else -1
    if content[:4] != MAGIC or version not in (0, 1):
        raise ValueError(f"it does not begin as crackle of version 0 or 1: {content[:5]!r}, {len(content)} bytes")
    header = HEADERS[version]
    _, _, bits, *written_shape, grid, label_bytes = header.unpack_from(content)
    if version and _crc8(content[5 : header.size]) != content[header.size]:
        raise ValueError("the checksum of its header does not match")
    width = 1 << _field(bits, WIDTH)
    if tuple(written_shape) != tuple(shape) or width != dtype.itemsize or dtype.kind not in "iu":
        raise ValueError(f"its header says {tuple(written_shape)} of {width} bytes, not {tuple(shape)} {dtype}")
    if 2**grid < max(shape[:2]) or _field(bits, LABEL_FORMAT) not in (FLAT, PINS):
        raise ValueError("its header is damaged")
    index_at = header.size + version
    index = content[index_at : index_at + 4 * shape[2]]
    labels_at = index_at + 4 * (shape[2] + version)
    if len(content) < labels_at:
        raise ValueError("its index is beyond its end")
    order = _field(bits, MODEL_ORDER)
    model_bytes = (5 * 4**order + 4) // 8 if order else 0
    borders_at = labels_at + label_bytes
    end = borders_at + model_bytes + int(np.frombuffer(index, "<u4").sum(dtype=np.uint64))
    checksums_at = end + 4 * version
    if checksums_at + 4 * version * shape[2] != len(content):
        raise ValueError(f"its parts do not fill its {len(content)} bytes")
    labels = content[labels_at:borders_at]
    if version and google_crc32c.value(index) != _uint32(content, labels_at - 4):
        raise ValueError("the checksum of its index does not match")
    if version and google_crc32c.value(labels) != _uint32(content, end):
        raise ValueError("the checksum of its labels does not match")
    checksums = np.frombuffer(content, "<u4", offset=checksums_at) if version else np.zeros(0, np.uint32)
    return _Parts(bits, shape, grid, index, labels, content[borders_at:end], checksums)


def _field(bits: int, field: tuple[int, int]) -> int:
    return bits >> field[0] & field[1]


def _uint32(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "little")


def _crc8(content: bytes) -> int:
    crc = 0xFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ CRC_POLYNOMIAL if crc & 1 else crc >> 1
    return crc


def _components(parts: _Parts, dtype: np.dtype) -> tuple[NDArray[np.int64], Array | None]:
    """Return the number of components of each slice and the label of each component; None if pins give it."""
    labels = parts.labels
    stored = np.dtype(f"<u{1 << _field(parts.bits, STORED_WIDTH)}")
    pins = _field(parts.bits, LABEL_FORMAT) == PINS
    at = stored.itemsize if pins else 0  # the background precedes the table
    count = int.from_bytes(labels[at : at + 8], "little")
    at += 8
    x, y, z = parts.shape
    kind = np.dtype(f"<u{_bytes_for(x * y)}")
    end = at + count * stored.itemsize + z * kind.itemsize
    if end > len(labels) or not (count or pins) or stored.itemsize > dtype.itemsize:
        raise ValueError("its labels are beyond their end")
    counts = np.frombuffer(labels, kind, z, end - z * kind.itemsize).astype(np.int64)
    if (counts < 1).any() or (counts > x * y).any():
        raise ValueError("the number of its components is damaged")
    if pins:
        return counts, None
    index = np.dtype(f"<u{_bytes_for(count)}")
    if len(labels) - end != counts.sum() * index.itemsize:
        raise ValueError("the number of its components does not agree with their labels")
    indices = np.frombuffer(labels, index, -1, end)
    if indices.max() >= count:
        raise ValueError("a component has a label beyond the table")
    table = np.frombuffer(labels, stored, count, at).astype(f"u{dtype.itemsize}")
    return counts, table.view(dtype).take(indices)


def _bytes_for(value: int) -> int:
    return next(size for size in (1, 2, 4, 8) if value < 256**size)


def _numbered(parts: _Parts, counts: NDArray[np.int64], first: int) -> bytes:
    """Return a chunk of version 0 whose labels are the numbers of its components, from `first`."""
    count = int(counts.sum())
    numbers = np.arange(count, dtype="<u4")
    x, y, _ = parts.shape
    # One label more, since crackle does not decode chunks of one.
    labels = b"".join((
        (count + 1).to_bytes(8, "little"), (numbers + np.uint32(first)).tobytes(), b"\xff\xff\xff\xff",
        counts.astype(f"<u{_bytes_for(x * y)}").tobytes(), numbers.astype(f"<u{_bytes_for(count + 1)}").tobytes(),
    ))  # fmt: skip
    signed_and_format = SIGNED[1] << SIGNED[0] | LABEL_FORMAT[1] << LABEL_FORMAT[0]
    bits = parts.bits & ~(signed_and_format | 15) | UINT32 << WIDTH[0] | UINT32 << STORED_WIDTH[0]
    header = HEADERS[0].pack(MAGIC, 0, bits, *parts.shape, parts.grid, len(labels))
    return b"".join((header, parts.index, labels, parts.borders))


def _check_components(components: Array, counts: NDArray[np.int64], checksums: NDArray[np.uint32]) -> None:
    """Raise ValueError if the components of a slice are not those that were encoded."""
    ends = np.cumsum(counts)
    slices = components.T.reshape(len(counts), -1)
    if (slices.min(axis=1) != ends - counts).any() or (slices.max(axis=1) != ends - 1).any():
        raise ValueError("the borders of its slices do not agree with the number of its components")
    for first, numbers, checksum in zip((ends - counts).tolist(), slices, checksums.tolist(), strict=False):
        if google_crc32c.value((numbers - np.uint32(first)).tobytes()) != checksum:
            raise ValueError("the checksum of a slice does not match")
