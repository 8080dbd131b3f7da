"""Hashes of written blocks (XXH3, 128 bits), by which `verify` finds damage.

They detect accidental damage only; they are not cryptographic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xxhash import xxh3_128

from imagery_dask.annotations import Array

__all__ = ["digest_of", "digest_of_bytes", "join_digests"]


def digest_of(voxels: Array) -> bytes:
    """Return the hash (16 bytes) of voxels (x, y, z[, c]), in Fortran order whatever their order in memory.

    -0.0 counts as 0.0, since stores do not distinguish them.
    """
    if voxels.dtype.kind == "f":
        voxels = voxels + voxels.dtype.type(0)
    return digest_of_bytes(np.asfortranarray(voxels).T.data)


def digest_of_bytes(content: bytes | memoryview) -> bytes:
    """Return the hash (16 bytes) of bytes."""
    return bytes(xxh3_128(content).digest())


def join_digests(digests: Sequence[bytes]) -> bytes:
    """Return the hash of a sequence of hashes."""
    return digest_of_bytes(b"".join(digests))
