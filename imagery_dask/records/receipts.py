"""Receipts: a fixed-size record of each block whose bytes are in the store.

A receipt has 92 bytes and a checksum: a receipt that a crash truncated is invalid, and its block is written again. The
receipts of a million blocks are 92 MB in a few files, which numpy reads in a second.
"""

from __future__ import annotations

import time
import zlib

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.sources import ReadCounts

__all__ = ["RECEIPT", "counts_of", "receipt", "receipts_in"]

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
# Receipts that are checked together at first, and after an invalid one; the number doubles while all are valid.
LOOK_AHEAD = 8


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


def receipts_in(contents: list[bytes]) -> Array:
    """Return the last valid receipt of each block in the contents of files, sorted by block."""
    parts = [_whole(content) for content in contents]
    rows_of_blocks = np.concatenate([np.zeros(0, RECEIPT), *parts])
    # Sort by block, then by time: the last receipt of a block counts.
    rows_of_blocks = rows_of_blocks[np.lexsort((rows_of_blocks["finished"], rows_of_blocks["block"]))]
    last = np.ones(len(rows_of_blocks), bool)
    last[:-1] = rows_of_blocks["block"][1:] != rows_of_blocks["block"][:-1]
    return np.asarray(rows_of_blocks[last])


def counts_of(receipts: Array) -> ReadCounts:
    """Return the sum of what was read for some blocks."""
    total = ReadCounts()
    for name in ("stored_bytes", "chunks", "missing", "zero_roots", "root_requests", "ids_sent"):
        setattr(total, name, int(receipts[name].sum(dtype=np.uint64)))
    return total


def _whole(content: bytes) -> Array:
    """Return the valid receipts of a file. After an invalid one, the next mark begins a receipt."""
    size, parts, at, ahead = RECEIPT.itemsize, [], 0, LOOK_AHEAD
    while len(content) - at >= size:
        rows = np.frombuffer(content, RECEIPT, min(ahead, (len(content) - at) // size), at)
        good = _good(rows)
        count = len(good) if good.all() else int(np.argmin(good))
        parts.append(rows[:count])
        at += count * size
        ahead *= 2
        if count < len(rows):
            ahead = LOOK_AHEAD
            following = content.find(MARK, at + 1)
            if following < 0:
                break
            at = following
    return np.concatenate([np.zeros(0, RECEIPT), *parts])


def _good(rows: Array) -> NDArray[np.bool_]:
    raw = rows.view(np.uint8).reshape(len(rows), RECEIPT.itemsize)
    marked = (raw[:, :4] == np.frombuffer(MARK, np.uint8)).all(axis=1)
    checks = np.fromiter((zlib.crc32(row) for row in raw[:, :-4].copy(order="C")), np.uint32, len(rows))
    return np.asarray(marked & (checks == rows["crc"]))
