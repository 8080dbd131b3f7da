"""Compression of chunks by name and level, such as ``zstd:3``, for zarr v2 and v3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["BLOSC_BLOCK", "CODECS", "Compressor"]

# BLOSC_MAX_BUFFERSIZE of c-blosc.
BLOSC_BYTES = 2**31 - 1 - 16
# Blosc's own choice at level 1 is 32 KiB: larger blocks are encoded and decoded faster, and ids take less space.
BLOSC_BLOCK = 256 * 2**10
# By name: library of blosc and its shuffle, if it is one of blosc's.
BLOSC: dict[str, tuple[Literal["zstd", "lz4"], Literal["shuffle", "bitshuffle"]]] = {
    "blosc-zstd": ("zstd", "shuffle"),
    "blosc-lz4": ("lz4", "shuffle"),
    "blosc-zstd-bitshuffle": ("zstd", "bitshuffle"),
    "blosc-lz4-bitshuffle": ("lz4", "bitshuffle"),
}
# Names, and the smallest and largest level of each.
CODECS = {name: (1, 9) for name in BLOSC} | {"zstd": (1, 22), "gzip": (1, 9)}


@dataclass(frozen=True, slots=True)
class Compressor:
    """A codec and its level.

    Parameters
    ----------
    name : str
        One of `CODECS`.
    level : int
        From fast to small. Level 1 costs a third of zarr's default, and EM hardly compresses better with more.
    """

    name: str
    level: int = 1

    @classmethod
    def parse(cls, text: str) -> Compressor | None:
        """Return the compressor that a text names, ``NAME`` or ``NAME:LEVEL``; None for ``none``.

        Raises
        ------
        ValueError
            There is no such codec, or no such level of it.

        Examples
        --------
        >>> Compressor.parse("zstd:3")
        Compressor(name='zstd', level=3)
        """
        name, colon, level = text.partition(":")
        if name == "none" and not colon:
            return None
        if name not in CODECS:
            raise ValueError(f"codec must be 'auto', 'none', {', '.join(map(repr, CODECS))}; got {text!r}.")
        least, most = CODECS[name]
        if not colon:
            return cls(name)
        if not (level.isdecimal() and least <= int(level) <= most):
            raise ValueError(f"The level of codec {name!r} must be from {least} to {most}; got {level!r}.")
        return cls(name, int(level))

    def check_chunk(self, shape: Sequence[int], voxel_bytes: int) -> None:
        """Raise if the codec cannot hold chunks of a shape."""
        nbytes = math.prod(shape) * voxel_bytes
        if self.name in BLOSC and nbytes > BLOSC_BYTES:
            raise ValueError(
                f"A chunk of {' x '.join(map(str, shape))} voxels of {voxel_bytes} bytes is {nbytes:,} bytes, and "
                f"blosc holds {BLOSC_BYTES:,}. Choose smaller chunks (--chunks), or codec='zstd'."
            )

    def of_zarr(self, zarr_format: Literal[2, 3]) -> Any:
        """Return the codec of numcodecs, for zarr v2, or of zarr v3."""
        # Not where options are only checked: importing zarr takes half a second.
        if zarr_format == 2:
            import numcodecs

            if self.name in BLOSC:
                library, shuffle = BLOSC[self.name]
                number = {"shuffle": numcodecs.Blosc.SHUFFLE, "bitshuffle": numcodecs.Blosc.BITSHUFFLE}[shuffle]
                return numcodecs.Blosc(library, self.level, number, BLOSC_BLOCK)
            return numcodecs.Zstd(level=self.level) if self.name == "zstd" else numcodecs.GZip(level=self.level)
        from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

        if self.name in BLOSC:
            library, shuffle = BLOSC[self.name]
            return BloscCodec(cname=library, clevel=self.level, shuffle=shuffle, blocksize=BLOSC_BLOCK)
        return ZstdCodec(level=self.level) if self.name == "zstd" else GzipCodec(level=self.level)
