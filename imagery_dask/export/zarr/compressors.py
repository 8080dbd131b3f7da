"""Compression of chunks by name and level, such as ``zstd:3``, for zarr v2 and v3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from imagery_dask.sources.zarr.stored_chunks import SHUFFLES, named_compressor

__all__ = ["BLOSC_BLOCK", "CODECS", "Compressor"]

# BLOSC_MAX_BUFFERSIZE of c-blosc.
BLOSC_BYTES = 2**31 - 1 - 16
# Blosc's own choice at level 1 is 32 KiB: larger blocks are encoded and decoded faster, and ids take less space.
BLOSC_BLOCK = 256 * 2**10
BLOSC = "blosc-"
# Names, of blosc with its library and shuffle (by default of bytes), and the smallest and largest level of each.
CODECS = {
    "blosc-zstd": (1, 9), "blosc-lz4": (1, 9), "blosc-zstd-bitshuffle": (1, 9), "blosc-lz4-bitshuffle": (1, 9),
    "zstd": (1, 22), "gzip": (1, 9),
}  # fmt: skip
# What sources are compressed with, and exports can repeat.
LIBRARIES = ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
# ZSTD_minCLevel of zstd.
LOWEST_ZSTD = -(2**17)


@dataclass(frozen=True, slots=True)
class Compressor:
    """A codec and its level.

    Parameters
    ----------
    name : str
        One of `CODECS`, or of a source.
    level : int
        From fast to small. Level 1 costs a third of zarr's default, and EM hardly compresses better with more.
    block : int
        Bytes of a block of blosc; 0 leaves them to blosc.
    checksum : bool
        Whether zstd adds a checksum.
    """

    name: str
    level: int = 1
    block: int = BLOSC_BLOCK
    checksum: bool = False

    @classmethod
    def parse(cls, text: str) -> Compressor | None:
        """Return the compressor that a text names, ``NAME`` or ``NAME:LEVEL``; None for ``none``.

        Raises
        ------
        ValueError
            There is no such codec, or no such level of it.

        Examples
        --------
        >>> Compressor.parse("zstd:3").text
        'zstd 3'
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

    @classmethod
    def named(cls, text: str) -> Compressor | None:
        """Return the compressor that a source names (`named_compressor`); None if exports do not write it, or of none.

        Examples
        --------
        >>> Compressor.named("blosc lz4 5 noshuffle 0")
        Compressor(name='blosc-lz4-noshuffle', level=5, block=0, checksum=False)
        >>> Compressor.named("lzma 1") is None, Compressor.named("gzip None") is None
        (True, True)
        """
        match text.split():
            case ["blosc", library, level, shuffle, block] if library in LIBRARIES and shuffle in SHUFFLES:
                if _is_whole(level, 0, 9) and _is_whole(block, 0, BLOSC_BYTES):
                    return cls(f"{BLOSC}{library}-{shuffle}", int(level), int(block))
            case ["zstd", level, *others] if _is_whole(level, LOWEST_ZSTD, 22):
                return cls("zstd", int(level), checksum=bool(others))
            case ["gzip", level] if _is_whole(level, 0, 9):
                return cls("gzip", int(level))
        return None

    @property
    def text(self) -> str:
        """What a source that is compressed so names (`named_compressor`)."""
        if not self.name.startswith(BLOSC):
            return named_compressor(self.name, {"level": self.level, "checksum": self.checksum})
        library, shuffle = self._blosc
        return named_compressor(
            "blosc", {"cname": library, "clevel": self.level, "shuffle": shuffle, "blocksize": self.block}
        )

    @property
    def _blosc(self) -> tuple[Any, Any]:
        """Library and shuffle."""
        library, _, shuffle = self.name.removeprefix(BLOSC).partition("-")
        return library, shuffle or "shuffle"

    def check_chunk(self, shape: Sequence[int], voxel_bytes: int) -> None:
        """Raise if the codec cannot hold chunks of a shape."""
        nbytes = math.prod(shape) * voxel_bytes
        if self.name.startswith(BLOSC) and nbytes > BLOSC_BYTES:
            raise ValueError(
                f"A chunk of {' x '.join(map(str, shape))} voxels of {voxel_bytes} bytes is {nbytes:,} bytes, and "
                f"blosc holds {BLOSC_BYTES:,}. Choose smaller chunks (--chunks), or codec='zstd'."
            )

    def of_zarr(self, zarr_format: Literal[2, 3]) -> Any:
        """Return the codec of numcodecs, for zarr v2, or of zarr v3."""
        # Not where options are only checked: importing zarr takes half a second.
        is_blosc = self.name.startswith(BLOSC)
        if zarr_format == 2:
            import numcodecs

            if is_blosc:
                library, shuffle = self._blosc
                return numcodecs.Blosc(library, self.level, SHUFFLES.index(shuffle), self.block)
            is_zstd = self.name == "zstd"
            return numcodecs.Zstd(self.level, self.checksum) if is_zstd else numcodecs.GZip(self.level)
        from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

        if is_blosc:
            library, shuffle = self._blosc
            return BloscCodec(cname=library, clevel=self.level, shuffle=shuffle, blocksize=self.block)
        if self.name == "zstd":
            return ZstdCodec(level=self.level, checksum=self.checksum)
        return GzipCodec(level=self.level)


def _is_whole(text: str, least: int, most: int) -> bool:
    """Return True if a text is a whole number within limits; what a source says need not be."""
    return text.removeprefix("-").isdecimal() and least <= int(text) <= most
