"""Receipts: a fixed-size record of each block whose bytes are in the store.

A receipt has 92 bytes and a checksum: a receipt that a crash truncated is invalid, and its block is written again. The
receipts of ten million blocks are 920 MB, which numpy reads in a few seconds (``python -m benchmarks scale-receipts``).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.sources import ReadCounts

__all__ = ["RECEIPT", "chosen", "counts_of", "receipt", "receipts_in"]

RECEIPT = np.dtype(
    [
        ("mark", "V4"),
        ("block", "<u8"),
        ("digest", "V16"),
        ("voxels", "<u8"),
        ("written_bytes", "<u8"),
        ("stored_bytes", "<u8"),
        ("chunks", "<u4"),
        ("missing", "<u4"),
        ("zero_roots", "<u4"),
        ("root_requests", "<u4"),
        ("ids_sent", "<u4"),
        ("attempts", "<u4"),
        ("seconds", "<f4"),
        ("finished", "<f8"),
        ("crc", "<u4"),
    ]
)
MARK = b"IDR1"
RAW = np.dtype(f"V{RECEIPT.itemsize}")
# Receipts that are checked together at first, and after an invalid one; the number doubles while all are valid.
LOOK_AHEAD, LOOK_AHEAD_AT_MOST = 8, 2**14


def receipt(
    block: int, digest: bytes, voxels: int, written_bytes: int, counts: ReadCounts, attempts: int, seconds: float
) -> bytes:
    """Return the receipt of a block, as it is stored.

    Parameters
    ----------
    block : int
        Number of the block.
    digest : bytes
        Hash of the written data, 16 bytes.
    voxels, written_bytes : int
        Number of voxels written, and their uncompressed bytes.
    counts : ReadCounts
        What was read for the block.
    attempts : int
        Number of the attempt that succeeded, from 1.
    seconds : float
        Duration of that attempt.
    """
    record = np.zeros(1, RECEIPT)
    record["mark"], record["block"], record["digest"] = np.void(MARK), block, np.void(digest)
    record["voxels"], record["written_bytes"], record["attempts"] = voxels, written_bytes, attempts
    for name in ("stored_bytes", "chunks", "missing", "zero_roots", "root_requests", "ids_sent"):
        record[name] = min(getattr(counts, name), np.iinfo(RECEIPT[name]).max)
    record["seconds"], record["finished"] = seconds, time.time()
    content = record.tobytes()[:-4]
    return content + zlib.crc32(content).to_bytes(4, "little")


def receipts_in(contents: Iterable[bytes], blocks: int | None = None) -> Array:
    """Return the last valid receipt of each block in the contents of files, sorted by block.

    Parameters
    ----------
    contents : iterable of bytes
        Files. If `blocks` is given, each is dropped before the next one is taken.
    blocks : int, optional
        Number of blocks of the run; receipts of others are left out.

    Returns
    -------
    ndarray of RECEIPT
        Of several receipts of a block, the one that was written last.
    """
    files: Iterable[Array] = map(_whole, contents)
    numbers = None
    if blocks is None:
        files = list(files)
        numbers = np.unique(np.concatenate([np.zeros(0, np.uint64), *(rows["block"] for rows in files)]))
    # Each receipt goes to the row of its block, since sorting would take longer. Rows without a receipt stay zero.
    last = np.zeros(len(numbers) if numbers is not None else blocks or 0, RECEIPT)
    raw = last.view(RAW)
    for rows in files:
        at = rows["block"] if numbers is None else numbers.searchsorted(rows["block"])
        inside = at < len(last)
        rows, at = chosen(rows, inside), at[inside]
        at = at.astype(np.int64)
        finished = rows["finished"]
        if (finished[1:] < finished[:-1]).any():  # threads of a process, or its clock was set back
            order = np.argsort(finished, kind="stable")
            rows, at = chosen(rows, order), at[order]
        newer = rows["finished"] >= last["finished"][at]
        rows, at = chosen(rows, newer), at[newer]
        raw[at] = rows.view(RAW)  # of equal numbers, numpy keeps the last
    return chosen(last, _marked(last))


def chosen(receipts: Array, which: Array) -> Array:
    """Return the receipts that a mask or indices choose; numpy would copy them field by field, ten times as slowly."""
    if which.dtype == bool and which.all():
        return receipts
    return np.asarray(receipts.view(RAW)[which].view(RECEIPT))


def counts_of(receipts: Array) -> ReadCounts:
    """Return the sum of what was read for some blocks."""
    total = ReadCounts()
    for name in ("stored_bytes", "chunks", "missing", "zero_roots", "root_requests", "ids_sent"):
        setattr(total, name, int(receipts[name].sum(dtype=np.uint64)))
    return total


def _whole(content: bytes) -> Array:
    """Return the valid receipts of a file. After an invalid one, the next mark begins a receipt."""
    size, at, ahead = RECEIPT.itemsize, 0, LOOK_AHEAD
    parts: list[Array] = []
    start = 0  # of the receipts since the last invalid one
    while len(content) - at >= size:
        rows = np.frombuffer(content, RECEIPT, min(ahead, (len(content) - at) // size), at)
        good = _good(rows)
        count = len(good) if good.all() else int(np.argmin(good))
        at += count * size
        ahead = min(2 * ahead, LOOK_AHEAD_AT_MOST)
        if count < len(rows):
            parts.append(np.frombuffer(content, RECEIPT, (at - start) // size, start))
            ahead = LOOK_AHEAD
            start = content.find(MARK, at + 1)
            if start < 0:
                break
            at = start
    else:
        parts.append(np.frombuffer(content, RECEIPT, (at - start) // size, start))
    if len(parts) == 1:
        return parts[0]
    return np.asarray(np.concatenate([np.zeros(0, RAW), *(part.view(RAW) for part in parts)]).view(RECEIPT))


def _good(rows: Array) -> NDArray[np.bool_]:
    """Return which receipts are valid."""
    marked = _marked(rows)
    if marked.all() and zlib.crc32(rows) == _crc_of_valid(len(rows)):  # type: ignore[arg-type]
        return marked
    raw = rows.view(np.uint8).reshape(len(rows), RECEIPT.itemsize)
    checks = np.fromiter((zlib.crc32(row) for row in raw[:, :-4].copy(order="C")), np.uint32, len(rows))
    return np.asarray(marked & (checks == rows["crc"]))


@lru_cache(maxsize=64)
def _crc_of_valid(count: int) -> int:
    """Return the CRC-32 of any `count` valid receipts.

    The CRC-32 of data that its own CRC-32 follows is a constant, and the CRC-32 of a concatenation depends on those of
    its pieces and their lengths alone. So one checksum of many receipts says whether all of them are valid, ten times
    as fast as one for each. Damage escapes it once in 2**32, as it does one checksum.
    """
    content = bytes(RECEIPT.itemsize - 4)
    return zlib.crc32((content + zlib.crc32(content).to_bytes(4, "little")) * count)


def _marked(rows: Array) -> NDArray[np.bool_]:
    """Return which rows begin with the mark."""
    return np.asarray(rows["mark"].view("<u4") == int.from_bytes(MARK, "little"))
