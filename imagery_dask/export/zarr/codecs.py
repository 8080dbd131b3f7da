"""Compression of zarr chunks."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numcodecs
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

__all__ = ["Codec", "checked_codec", "compressor"]

Codec = Literal["blosc-zstd", "zstd", "gzip", "none"]
# Level 1 costs a third of zarr's default, and EM hardly compresses better with more.
LEVEL = 1
# Blosc's own choice at level 1 is 32 KiB: larger blocks are encoded and decoded faster, and ids take less space.
BLOSC_BLOCK = 256 * 2**10


def checked_codec(codec: Any) -> Codec:
    """Give the codec that an argument names.

    Raises
    ------
    ValueError
        When there is none of that name.
    """
    if codec not in get_args(Codec):
        raise ValueError(f"codec must be one of {', '.join(get_args(Codec))}; got {codec!r}.")
    return codec  # type: ignore[no-any-return]


def compressor(codec: Codec, zarr_format: int) -> Any:
    """Compressor for zarr v2 or v3, or None."""
    if codec == "none":
        return None
    if zarr_format == 2:
        return {
            "blosc-zstd": numcodecs.Blosc("zstd", LEVEL, numcodecs.Blosc.SHUFFLE, BLOSC_BLOCK),
            "zstd": numcodecs.Zstd(level=LEVEL),
            "gzip": numcodecs.GZip(level=LEVEL),
        }[codec]
    return {
        "blosc-zstd": BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle", blocksize=BLOSC_BLOCK),
        "zstd": ZstdCodec(level=LEVEL),
        "gzip": GzipCodec(level=LEVEL),
    }[codec]
