"""Compression of files: gzip, brotli, zstd, ..., decompressed up to a limit.

Damage by a loss of power or a cut connection is an error here: truncated data, a tail of zeros, and files that are
empty after decompression, since no file of a volume is empty.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import deflate

__all__ = ["LARGEST_FILE", "ZLIB", "compress", "decompress", "encodings_of", "joined_streams", "too_large"]

# Largest decompressed file where the caller knows no smaller limit.
LARGEST_FILE = 2**31
GZIP_MAGIC = b"\x1f\x8b"
GZIP_LEVEL = 9
# The part of a zstd file that may be zeros at its end.
ZEROS_AT_MOST = 32
# Names of HTTP and of stores that mean no compression of the content.
PLAIN = ("", "identity", "aws-chunked")
# Window bits of zlib: a gzip header, a zlib header, no header.
GZIP, ZLIB, RAW_DEFLATE = 31, 15, -15


def compress(content: bytes, encoding: str) -> bytes:
    """Compress the content of a file with gzip or brotli."""
    if encoding == "gzip":
        return bytes(deflate.gzip_compress(content, GZIP_LEVEL))
    from cloudfiles import compression

    return bytes(compression.compress(content, encoding))


def encodings_of(header: str | None) -> list[str]:
    """Return the compressions that a ``Content-Encoding`` names, the last one applied first."""
    names = [name.strip().lower() for name in (header or "").split(",")]
    return [name.removeprefix("x-") for name in reversed(names) if name not in PLAIN]


def decompress(content: bytes, encoding: str | None, most: int = LARGEST_FILE) -> bytes:
    """Return the decompressed content of a file.

    Parameters
    ----------
    content : bytes
        The file as stored.
    encoding : str or None
        As in ``Content-Encoding``; None and "" mean no compression.
    most : int
        Largest possible number of bytes of the result.

    Raises
    ------
    ValueError
        If the content is damaged, empty, or larger than `most`.
    """
    if encoding:
        for name in encodings_of(encoding):
            if name not in DECOMPRESSORS:
                raise ValueError(f"its compression {name!r} is unknown")
            try:
                content = DECOMPRESSORS[name](content, most)
            except ValueError:
                raise
            except Exception as error:  # each library has its own
                raise ValueError(f"its {name} compression is damaged ({error})") from error
            if not content:
                raise ValueError(f"it is empty after decompression ({name})")
    return content


def _gzip(content: bytes, most: int) -> bytes:
    # libdeflate is twice as fast as zlib. It takes the length from the last bytes, which are wrong in damaged files, in
    # padded ones, and in those of several members.
    length = int.from_bytes(content[-4:], "little")
    if content.startswith(GZIP_MAGIC) and 0 < length <= most:
        try:
            whole = bytes(deflate.gzip_decompress(content))
        except deflate.DeflateError:
            whole = b""
        if len(whole) == length:
            return whole
    return joined_streams(content, most, lambda: zlib.decompressobj(GZIP))


def _deflate(content: bytes, most: int) -> bytes:
    # "deflate" of HTTP has a header of zlib, but some servers leave it out.
    bits = ZLIB if content[:1] == b"\x78" else RAW_DEFLATE
    return joined_streams(content, most, lambda: zlib.decompressobj(bits))


def joined_streams(content: bytes, most: int, new: Callable[[], Any]) -> bytes:
    """Return the joined content of the streams in a file, by decompressors of the standard library.

    Raise ValueError if they are truncated, or have more than `most` bytes; a decompressor has errors of its own.
    """
    pieces, room, rest = [], most, content
    while rest:
        stream = new()
        piece = stream.decompress(rest, room + 1)
        if len(piece) > room:
            raise too_large(most)
        if not stream.eof:
            raise ValueError("its compression is truncated")
        pieces.append(piece)
        room -= len(piece)
        rest = stream.unused_data.lstrip(b"\0")  # gzip and xz allow padding
    return b"".join(pieces)


def _brotli(content: bytes, most: int) -> bytes:
    import brotli

    stream = brotli.Decompressor()
    pieces = [stream.process(content, output_buffer_limit=most + 1)]
    size = len(pieces[0])
    while not stream.is_finished() and pieces[-1] and size <= most:
        pieces.append(stream.process(b"", output_buffer_limit=most + 1 - size))
        size += len(pieces[-1])
    if size > most:
        raise too_large(most)
    if not stream.is_finished():
        raise ValueError("its compression is truncated")
    return b"".join(pieces)


def _zstd(content: bytes, most: int) -> bytes:
    import zstandard

    if zstandard.frame_content_size(content) > most:
        raise too_large(most)
    whole = content.rstrip(b"\0")
    # A frame need not have a checksum, and blocks that do not become smaller are stored as they are, but only if less
    # than a sixty-fourth would be saved. A longer tail of zeros is either padding, or what was lost.
    if len(content) - len(whole) > len(content) // ZEROS_AT_MOST + 16:
        content = whole
    # Reserves no more than the content size of the frame, if it is known.
    return bytes(zstandard.ZstdDecompressor().decompress(content, max_output_size=most))


def too_large(most: int) -> ValueError:
    """Return the error of content with more than `most` bytes."""
    return ValueError(f"it has more than {most} bytes after decompression, more than it can have")


DECOMPRESSORS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
    **dict.fromkeys(("bz2", "bzip2"), lambda content, most: joined_streams(content, most, bz2.BZ2Decompressor)),
    **dict.fromkeys(("xz", "lzma"), lambda content, most: joined_streams(content, most, lzma.LZMADecompressor)),
}
